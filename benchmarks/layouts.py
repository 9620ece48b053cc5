"""Whether a dense layout or a compiled field would be worth having on a CPU.

Against the package's route, edges sorted by receiver, on one CPU thread, float32:

- "dense": all pairs of a batch as B × n × n with explicit differences, sums over senders as batched
  products, the diagonal and what is padded taken out by a mask. The same weights; written here, for
  this comparison.
- "compiled": the package's plain formulas (`eqflow.edges.reference.edge_mlp`) on the sorted edges,
  the whole field in one `torch.compile`; "dense, compiled" likewise.

Equal results come first. All take turns in one process; figures are medians of CPU seconds.
Compiling takes minutes; without a C++ compiler it is left out.

python benchmarks/layouts.py [rounds=7]
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from edge_layers import SHAPES, pair_of_fields
from harness import race, write_results
from peers_contest import settled
from torch import Tensor
from torch.nn.functional import linear, silu

from eqflow import rng
from eqflow.edges import DISTANCE_EPSILON, Dual
from eqflow.geometry import Segments
from eqflow.nn import EGCL, EGNNField

RAGGED = "QM9, B = 64, n ≤ 29"
COMPARED = ("DW4, B = 1000", "LJ13, B = 256", "LJ55, B = 32", RAGGED)
# What is compiled: a minute each, and more.
COMPILED = {"LJ13, B = 256": ("eqflow", "dense"), RAGGED: ("eqflow",)}
TIME = torch.tensor(0.3)
# Largest difference from eqflow, relative to the largest entry: of velocities in float32, and of
# gradients, which are sums over all edges.
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4

Case = Callable[[], Tensor]


def main(rounds: int = 7) -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    compiler = os.environ.get("CXX", "g++")
    compiles = shutil.which(compiler) is not None
    if not compiles:
        print(f"torch.compile is left out: found no C++ compiler {compiler!r}; name one in CXX.")
    torch.compiler.config.force_disable_caches = True  # `first_call` is that of a first run
    # The choice of the backend has a cache that the compiler does without.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
    with settled():
        table = {name: _compare(name, COMPILED if compiles else {}, rounds) for name in COMPARED}
    write_results("layouts", {"rounds": rounds, "compiled": compiles, "shapes": table})


# The dense layout.


class Pairs(NamedTuple):
    """Packed clouds as B × n × n pairs.

    Attributes:
        clouds: The packed ones.
        there: 1 at points, 0 where a cloud is padded, shape (B, n, 1).
        kept: 1 at pairs of different points, shape (B, n, 1, n).
    """

    clouds: Segments
    there: Tensor
    kept: Tensor

    @classmethod
    def of(cls, clouds: Segments) -> Pairs:
        """Padded to the largest cloud."""
        there = clouds.to_dense(torch.ones(clouds.rows, 1))
        kept = there @ there.transpose(1, 2) * (1 - torch.eye(clouds.longest))
        return cls(clouds, there, kept.unsqueeze(2))


def dense_velocity(field: EGNNField, t: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
    """The velocity of an `EGNNField` that knows only time, on complete graphs, (N, d)."""
    start = x = pairs.clouds.to_dense(x)
    h = field.egnn.embed(t.expand(*x.shape[:2], 1))
    a = _squared(_differences(x))
    for layer in field.egnn.layers:
        x, h = dense_layer(layer, x, h, a, pairs)
    v = (x - start) * pairs.there
    v = v - v.sum(1, keepdim=True) / pairs.there.sum(1, keepdim=True)
    return pairs.clouds.from_dense(v)


def dense_layer(
    layer: EGCL, x: Tensor, h: Tensor, a: Tensor, pairs: Pairs
) -> tuple[Tensor, Tensor]:
    """One convolution with gates, as `EGNNField` has them; `a` is (B, n, n, 1)."""
    D = _differences(x)
    d2 = _squared(D)
    z = linear(torch.cat([d2, a], -1), layer.scalars.weight)
    z = z.add_(layer.receiver(h).unsqueeze(2)).add_(layer.sender(h).unsqueeze(1))
    m = silu(layer.message(silu(z)))
    m = m * torch.sigmoid(layer.attention(m))
    phi = layer.coordinate_out(silu(layer.coordinate(m)))
    c = layer.coordinate_range * torch.tanh(phi) / ((d2 + DISTANCE_EPSILON).sqrt() + 1)
    x = x + ((c.transpose(2, 3) * pairs.kept) @ D).squeeze(2)
    if layer.feature_update is None:
        return x, h
    total = (pairs.kept @ m).squeeze(2)
    return x, h + layer.feature_update(torch.cat([h, total], -1))


def _differences(x: Tensor) -> Tensor:
    """`x_i − x_j`, (B, n, d) to (B, n, n, d)."""
    return x.unsqueeze(2) - x.unsqueeze(1)


def _squared(D: Tensor) -> Tensor:
    return D.square().sum(-1, keepdim=True)


# The comparison.


def _compare(name: str, compiled: Mapping[str, tuple[str, ...]], rounds: int) -> dict[str, Any]:
    sizes, width, layers, dimension = SHAPES[name]
    field, _, x, clouds = pair_of_fields(sizes(), width, layers, dimension)
    edges, pairs = field.connect(x, clouds), Pairs.of(clouds)
    probe = rng.rademacher(tuple(x.shape), x, rng.generator(0, "probe")).unsqueeze(1)
    print(f"{name}: {edges.count} edges, {pairs.kept.numel()} pairs in the dense layout")

    velocities: dict[str, Case] = {
        "eqflow": lambda: field(TIME, x, edges),
        "dense": lambda: dense_velocity(field, TIME, x, pairs),
    }
    traces: dict[str, Case] = {
        "eqflow": lambda: torch.cat(
            [part.flatten() for part in field.pushforward(TIME, Dual(x, probe), edges)]
        )
    }
    _off(velocities["eqflow"])()  # what a graph makes when first asked for is no part of a field
    for cases in (velocities, traces):
        for layout in compiled.get(name, ()):
            if layout in cases:
                cases[f"{layout}, compiled"] = torch.compile(cases[layout], fullgraph=True)

    weights = list(field.parameters())
    works = {
        "forward": ({k: _off(case) for k, case in velocities.items()}, TOLERANCE),
        "forward + backward": (
            {k: _gradient(case, weights) for k, case in velocities.items()},
            GRADIENT_TOLERANCE,
        ),
        "likelihood gradient": (
            {k: _gradient(case, weights) for k, case in traces.items()},
            GRADIENT_TOLERANCE,
        ),
    }
    found = {
        work: _table(work, cases, tolerance, rounds)
        for work, (cases, tolerance) in works.items()
        if len(cases) > 1
    }
    return {"edges": edges.count, "dense_pairs": pairs.kept.numel()} | found


def _table(
    work: str, cases: Mapping[str, Case], tolerance: float, rounds: int
) -> dict[str, dict[str, float]]:
    expected = cases["eqflow"]()
    rows: dict[str, dict[str, float]] = {}
    for layout, case in cases.items():
        started = time.perf_counter()
        difference = float((case() - expected).abs().max() / expected.abs().max())
        rows[layout] = {"difference": difference, "first_call": time.perf_counter() - started}
        if not difference < tolerance:
            raise SystemExit(f"{work}, {layout}: differs by {difference:.1e} from eqflow's.")
    seconds = race(cases, rounds)
    for layout, row in rows.items():
        row |= {"seconds": seconds[layout], "ratio": seconds[layout] / seconds["eqflow"]}
        print(
            f"  {work:<20}{layout:<18}{1e3 * row['seconds']:9.2f} ms{row['ratio']:7.2f} × eqflow's"
            f"   differs by {row['difference']:.0e}, first call {row['first_call']:.1f} s",
            flush=True,
        )
    return rows


def _off(case: Case) -> Case:
    """Without gradients, as when sampling."""

    def run() -> Tensor:
        with torch.no_grad():
            return case()

    return run


def _gradient(case: Case, weights: list[Tensor]) -> Case:
    """Of the sum of squares, by all weights."""

    def run() -> Tensor:
        gradients = torch.autograd.grad(case().square().sum(), weights)
        return torch.cat([part.flatten() for part in gradients])

    return run


if __name__ == "__main__":
    main(*(int(argument.partition("=")[2]) for argument in sys.argv[1:]))
