"""EGNN fields on CPU against a per-edge port of the published layers, on the same edges.

The port concatenates `[h_i, h_j, d², d₀²]` for every edge and sums with index_add; both compute the
same function, which is checked first. Both are given edge lists made beforehand, and take turns in
one process with one thread; figures are medians of CPU seconds.

    python benchmarks/edge_layers.py [--rounds 7] [--only layers | exact_divergence]

With `--only` the other table stays in the results as it was measured.
"""

from __future__ import annotations

import argparse

import torch
from harness import earlier_results, processor, race, write_results
from published_port import PublishedField
from torch import Tensor

from eqflow import rng
from eqflow.flows import ContinuousFlow, Exact, Hutchinson
from eqflow.geometry import Segments, centred
from eqflow.nn import EGNNField

# Sizes of the clouds, width, layers.
SHAPES = {
    "DW4, B = 1000": (lambda: torch.full((1000,), 4), 32, 3, 2),
    "LJ13, B = 256": (lambda: torch.full((256,), 13), 32, 3, 3),
    "LJ55, B = 32": (lambda: torch.full((32,), 55), 32, 3, 3),
    "QM9, B = 64, n ≤ 29": (lambda: drawn_sizes(64, 18, 3, 9, 29), 64, 6, 3),
    "QM9, B = 32, n = 23 … 27": (lambda: drawn_sizes(32, 25, 1.5, 23, 27), 64, 6, 3),
}
# One molecule at a time and several together: a loop over directions gains most from a batch.
EXACT_SHAPES = {
    "LJ13, one": (1, 13, 32, 3),
    "LJ13, B = 16": (16, 13, 32, 3),
    "18 atoms, one": (1, 18, 64, 6),
    "18 atoms, B = 16": (16, 18, 64, 6),
}
TIME = torch.tensor(0.3)


def main() -> None:
    """Print and write both tables."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--only", choices=["layers", "exact_divergence"])
    asked = words.parse_args()
    torch.set_num_threads(1)
    results = earlier_results("edge_layers")
    tables = {"layers": (_layers, SHAPES), "exact_divergence": (_exact, EXACT_SHAPES)}
    for table, (measure, shapes) in tables.items():
        if asked.only in (None, table):
            results[table] = {
                name: {"processor": processor(), **measure(*shape, asked.rounds)}
                for name, shape in shapes.items()
            }
            write_results("edge_layers", results)


def _layers(sizes, width: int, layers: int, dimension: int, rounds: int) -> dict[str, object]:
    mine, theirs, x, clouds = pair_of_fields(sizes(), width, layers, dimension)
    flow = ContinuousFlow(mine)
    velocity = flow.dynamics(clouds)(TIME, x)
    row, col = velocity.edges.receiver, velocity.edges.sender
    probe = Hutchinson().probes(x, clouds, rng.generator(0, "probe"))

    def port(moved: Tensor) -> Tensor:
        return theirs(TIME, moved, row, col, clouds)

    def port_trace(*, training: bool) -> tuple[Tensor, Tensor]:
        moved = x.clone().requires_grad_()
        value = port(moved)
        (rows,) = torch.autograd.grad(value, moved, probe[0], create_graph=training)
        return value, (rows * probe[0]).sum()

    def my_trace() -> tuple[Tensor, Tensor]:
        trace = Hutchinson()(velocity, x, clouds, probe)
        return trace.velocity, trace.estimates.sum()

    with torch.no_grad():
        error = float((port(x) - velocity(x)).abs().max() / velocity(x).abs().max())
    traces = port_trace(training=False)[1].detach(), my_trace()[1].detach()
    trace_error = float((traces[0] - traces[1]).abs() / traces[0].abs())
    cases = {
        "forward": (_off(lambda: velocity(x)), _off(lambda: port(x))),
        "forward + backward": (
            lambda: _descend(mine, velocity(x).square().sum()),
            lambda: _descend(theirs, port(x).square().sum()),
        ),
        "value + one probe": (_off(my_trace), lambda: port_trace(training=False)),
        # The published code has `create_graph=True` there, also where it only scores.
        "value + one probe, as published": (_off(my_trace), lambda: port_trace(training=True)),
        "likelihood gradient": (
            lambda: _descend(mine, sum(part.square().sum() for part in my_trace())),
            lambda: _descend(
                theirs, sum(part.square().sum() for part in port_trace(training=True))
            ),
        ),
    }
    found = {"velocity error": error, "trace error": trace_error, "edges": len(row)}
    print(f"{sizes().numel()} clouds, {len(row)} edges, width {width}, {layers} layers")
    return found | _table(cases, rounds)


def _exact(count: int, points: int, width: int, layers: int, rounds: int) -> dict[str, object]:
    mine, theirs, x, clouds = pair_of_fields(torch.full((count,), points), width, layers, 3)
    velocity = ContinuousFlow(mine).dynamics(clouds)(TIME, x)
    row, col = velocity.edges.receiver, velocity.edges.sender

    def loop() -> Tensor:
        """The published way: a graph of the graph for each of `n d` directions."""
        flat = x.reshape(count, -1).clone().requires_grad_()
        value = theirs(TIME, flat.reshape(-1, 3), row, col, clouds).reshape(count, -1)
        trace = torch.zeros(count)
        for k in range(flat.shape[1]):
            (rows,) = torch.autograd.grad(value[:, k].sum(), flat, create_graph=True)
            trace = trace + rows[:, k]
        return trace.detach()

    def exact() -> Tensor:
        return Exact()(velocity, x, clouds, x.new_zeros(0)).estimates.squeeze(1)

    with torch.no_grad():
        mine_found = exact()
    error = float(((loop() - mine_found) / mine_found).abs().max())
    print(f"exact divergence: {count} × {points} points, width {width}, {layers} layers")
    table = _table({"exact divergence": (_off(exact), loop)}, min(rounds, 5))
    forward = race({"field": _off(lambda: velocity(x))}, rounds, steady=True)["field"]
    mine_seconds = table["exact divergence"]["eqflow"]
    return {"error": error, "evaluations of the field": mine_seconds / forward} | table


def pair_of_fields(
    sizes: Tensor, width: int, layers: int, dimension: int
) -> tuple[EGNNField, PublishedField, Tensor, Segments]:
    """Our field and the port at the same weights, and a random state on clouds of these sizes."""
    with rng.seeded(0, "weights"):
        mine = EGNNField(width=width, layers=layers)
        theirs = PublishedField(width, layers)
    for layer in mine.egnn.layers:
        layer.coordinate_out.weight.data *= 300  # as after training, not as at its start
    theirs.copy_from(mine)
    clouds = Segments.of_lengths(sizes)
    x = rng.normal((clouds.rows, dimension), torch.zeros(()), rng.generator(0, "state"))
    return mine, theirs, centred(x, clouds), clouds


def _table(cases: dict, rounds: int) -> dict[str, dict[str, float]]:
    table = {}
    for name, (mine, theirs) in cases.items():
        seconds = race({"eqflow": mine, "port": theirs}, rounds, steady=True)
        table[name] = seconds | {"ratio": seconds["port"] / seconds["eqflow"]}
        print(f"  {name}: {seconds['eqflow']:.4f} s, {table[name]['ratio']:.2f}×", flush=True)
    return table


def _off(case):
    """Without gradients, as when sampling and scoring."""

    def run() -> object:
        with torch.no_grad():
            return case()

    return run


def _descend(model: torch.nn.Module, loss: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    loss.backward()


def drawn_sizes(count: int, mean: float, spread: float, low: int, high: int) -> Tensor:
    """Sizes of clouds as a data set of molecules has them, rounded and bounded."""
    drawn = rng.normal((count,), torch.zeros(()), rng.generator(0, "sizes"))
    return (mean + spread * drawn).round().clamp(low, high).long()


if __name__ == "__main__":
    main()
