"""How the cost of an EGNN field grows with points, width and batch, against a per-edge port.

One CPU thread, float32, complete graphs, the same weights and edges; both take turns in one process
and figures are medians of CPU seconds. Points grow at a constant number of edges. Peak memory of
forward + backward is the growth of resident memory in a process of its own. Every time is set
against counted operations and bytes over measured ceilings: see `cpu_roofline`.

python benchmarks/scaling.py [rounds=7]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu_roofline import EXACT, KINDS, Shape, measure_ceilings, roofline, work_of
from edge_layers import pair_of_fields
from harness import RESULTS, race, write_results
from peers_contest import agreement, settled
from solvers import peak_mebibytes
from torch import Tensor

from eqflow import rng
from eqflow.flows import ContinuousFlow, Exact, Hutchinson

LAYERS = 3
EDGES = 128 * 127
SWEEPS = {
    "points": [
        Shape(EDGES // (n * (n - 1)), n, width=32, layers=LAYERS)
        for n in (2, 4, 8, 16, 32, 64, 128)
    ],
    "width": [Shape(16, 16, F, LAYERS) for F in (32, 64, 128, 256)],
    "clouds": [Shape(B, 13, width=32, layers=LAYERS) for B in (1, 4, 16, 64, 256)],
}
WORKS = (*KINDS, EXACT)
TIME = torch.tensor(0.3)
# Directions past which the port's loop over them takes too long to repeat.
MOST_DIRECTIONS = 96
# CPU seconds that one pair of cases may take for a steadier median, and its rounds at most.
BUDGET, MOST_ROUNDS = 0.5, 41
# CPU seconds of a pair from which on there are fewer rounds, and how many.
SLOW, SLOW_ROUNDS = 1.0, 3


def main(rounds: int = 7) -> None:
    """Print, write and draw all sweeps."""
    from scaling_figure import draw

    torch.set_num_threads(1)
    with settled():
        ceilings = measure_ceilings()
        print("  ".join(f"{name}: {rate / 1e9:.3g} G/s" for name, rate in ceilings.items()))
        sweeps = {
            name: [_row(shape, rounds, ceilings) for shape in shapes]
            for name, shapes in SWEEPS.items()
        }
    results = {"rounds": rounds, "ceilings": ceilings, "sweeps": sweeps}
    write_results("scaling", results)
    draw(results, RESULTS / "scaling.png")


def _row(shape: Shape, rounds: int, ceilings: dict[str, float]) -> dict[str, Any]:
    """Times, memory and rooflines at one shape."""
    print(f"{shape.clouds} × {shape.points} points, {shape.edges} edges, width {shape.width}")
    both = Both(shape)
    found: dict[str, Any] = shape._asdict() | {"edges": shape.edges, "difference": both.compare()}
    found["work"] = {work: _timed(both, work, rounds, ceilings) for work in WORKS}
    memory = {who: _peak_of_process(who, shape) for who in ("eqflow", "port")}
    found["peak_mebibytes"] = memory | {"ratio": memory["port"] / memory["eqflow"]}
    print(f"  {'peak memory':<20}{memory['eqflow']:9.1f} MiB{memory['port']:9.1f} MiB", flush=True)
    return found


def _timed(both: Both, work: str, rounds: int, ceilings: dict[str, float]) -> dict[str, Any]:
    cases = {"eqflow": both.eqflow[work], "port": both.port[work]}
    if work == EXACT and both.directions > MOST_DIRECTIONS:
        del cases["port"]
    once = sum(race(cases, 1).values())
    least = min(rounds, SLOW_ROUNDS) if once > SLOW else rounds
    rounds = max(least, min(int(BUDGET / (2 * once)), MOST_ROUNDS))
    seconds = race(cases, rounds, steady=True)
    found: dict[str, Any] = {"seconds": seconds, "counted": work_of(both.shape, work)._asdict()}
    found["roofline"] = {
        who: roofline(both.shape, work, taken, ceilings) for who, taken in seconds.items()
    }
    for who, of in found["roofline"].items():
        print(
            f"  {work:<20}{who:<8}{1e3 * seconds[who]:10.3f} ms"
            f"{of['operations_a_second'] / 1e9:8.1f} GFLOP/s, {of['fraction']:6.1%} of the ceiling"
            f" of {of['bound']}, {of['fraction_with_activations']:6.1%} with activations"
        )
    if "port" in seconds:
        found["ratio"] = seconds["port"] / seconds["eqflow"]
    return found


class Both:
    """The same field twice on one batch, and what is done with each by kind of work."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        sizes = torch.full((shape.clouds,), shape.points)
        mine, theirs, x, clouds = pair_of_fields(sizes, shape.width, shape.layers, shape.dimension)
        self.mine, self.theirs, self.x, self.clouds = mine, theirs, x, clouds
        self.velocity = ContinuousFlow(mine).dynamics(clouds)(TIME, x)
        self.probe = Hutchinson().probes(x, clouds, rng.generator(0, "probe"))
        self.directions = shape.points * shape.dimension
        edges = self.velocity.edges
        self.row, self.col = edges.receiver, edges.sender
        of_mine = (self._my_value, self._my_gradients, self._my_trace, self._my_exact)
        of_port = (self._port_value, self._port_gradients, self._port_trace, self._port_exact)
        self.eqflow: dict[str, Callable[[], Any]] = dict(zip(WORKS, of_mine, strict=True))
        self.port: dict[str, Callable[[], Any]] = dict(zip(WORKS, of_port, strict=True))

    def compare(self) -> float:
        """Largest difference of velocities and of their derivatives along the probe."""
        return agreement(
            str(self.shape), [*self._my_trace()], [part.detach() for part in self._port_trace()]
        )

    @torch.no_grad()
    def _my_value(self) -> Tensor:
        return self.velocity(self.x)

    def _my_gradients(self) -> None:
        self.mine.zero_grad(set_to_none=True)
        self.velocity(self.x).square().sum().backward()

    @torch.no_grad()
    def _my_trace(self) -> tuple[Tensor, Tensor]:
        trace = Hutchinson()(self.velocity, self.x, self.clouds, self.probe)
        return trace.velocity, trace.estimates.squeeze(1)

    @torch.no_grad()
    def _my_exact(self) -> Tensor:
        found = Exact()(self.velocity, self.x, self.clouds, self.x.new_zeros(0))
        return found.estimates.squeeze(1)

    def _port_at(self, x: Tensor) -> Tensor:
        return self.theirs(TIME, x, self.row, self.col, self.clouds)

    @torch.no_grad()
    def _port_value(self) -> Tensor:
        return self._port_at(self.x)

    def _port_gradients(self) -> None:
        self.theirs.zero_grad(set_to_none=True)
        self._port_at(self.x).square().sum().backward()

    def _port_trace(self) -> tuple[Tensor, Tensor]:
        x, probe = self.x.clone().requires_grad_(), self.probe[0]
        value = self._port_at(x)
        (row,) = torch.autograd.grad(value, x, probe)
        return value, self.clouds.sum((row * probe).sum(-1))

    def _port_exact(self) -> Tensor:
        """The published way: a graph of the graph for each direction."""
        flat = self.x.reshape(self.clouds.count, -1).clone().requires_grad_()
        value = self._port_at(flat.reshape(self.x.shape)).reshape(flat.shape)
        trace = flat.new_zeros(len(flat))
        for k in range(flat.shape[1]):
            (row,) = torch.autograd.grad(value[:, k].sum(), flat, create_graph=True)
            trace = trace + row[:, k]
        return trace.detach()


def _peak_of_process(who: str, shape: Shape) -> float:
    """Peak of forward + backward in a fresh process that returns memory as soon as it is free."""
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(Path(__file__)), "--peak", who, *map(str, shape)]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(output.stdout))


def _print_peak(who: str, *shape: str) -> None:
    torch.set_num_threads(1)
    both = Both(Shape(*map(int, shape)))
    cases = both.eqflow if who == "eqflow" else both.port
    print(json.dumps(peak_mebibytes(cases["forward + backward"])))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        _print_peak(*sys.argv[2:])
    else:
        main(*(int(argument.partition("=")[2]) for argument in sys.argv[1:]))
