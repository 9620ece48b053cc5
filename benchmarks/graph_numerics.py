"""Ways to solve graph diffusion on Cora: products, evaluations of attention, CPU time and error.

First GRAND-l, a linear equation: the exact series against eqflow's dopri5, torchdiffeq's, and fixed
steps. Second GRAND-nl, whose attention is that of the state: exponential steps against dopri5.
Third a stiff one, Perona and Malik's edge-stopping diffusion without normalisation: implicit steps
against explicit ones. Weights are random; errors are those against float64 at 1e-10, relative.
Times are CPU seconds of one thread, of a solve without gradients and of a solve with its gradient
by state and weights.

    python benchmarks/graph_numerics.py CORA [--rounds 5]

CORA is the folder with the raw files of Planetoid.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import race, write_results
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges, squared_distance
from eqflow.flows import Solver, diffuse
from eqflow.graphs import planetoid
from eqflow.nn import AbstractField, with_self_loops
from eqflow.nn.diffusion import GRAND, AbstractDiffusion, Coefficients

WIDTH = 80
# As GRAND's published time on Cora, at rate 1: the slowest to solve.
TIME = 18.3
STIFF_TIME = 5.0
OWN = {"rtol": 1e-10, "atol": 1e-10, "step_limit": 100_000}


def dopri5(tolerance: float, implementation: str = "eqflow") -> Solver:
    """Adaptive, at one tolerance."""
    return Solver(rtol=tolerance, atol=tolerance, implementation=implementation)  # type: ignore[arg-type]


LINEAR = {
    **{f"series at {tol:.0e}": Solver("exponential", rtol=tol) for tol in (1e-2, 1e-3, 1e-5)},
    **{f"dopri5 at {tol:.0e}": dopri5(tol) for tol in (1e-2, 1e-3, 1e-5)},
    **{
        f"torchdiffeq dopri5 at {tol:.0e}": dopri5(tol, "torchdiffeq") for tol in (1e-2, 1e-3, 1e-5)
    },
    "rk4, steps of 1": Solver("rk4", steps=18),
}
NONLINEAR = {
    **{
        f"exponential, {steps} steps": Solver("exponential", rtol=1e-5, steps=steps)
        for steps in (2, 4, 8, 16)
    },
    "exponential Euler, 8 steps": Solver("exponential_euler", rtol=1e-5, steps=8),
    **{f"dopri5 at {tol:.0e}": dopri5(tol) for tol in (1e-2, 1e-3, 1e-5)},
    "torchdiffeq dopri5 at 1e-03": dopri5(1e-3, "torchdiffeq"),
}
STIFF = {
    **{f"implicit, {n} steps": Solver("implicit", rtol=1e-5, steps=n) for n in (5, 20, 80)},
    **{f"explicit Euler, {n} steps": Solver("euler", steps=n) for n in (100, 400, 500)},
    "dopri5 at 1e-03": dopri5(1e-3),
    **{
        f"exponential, {n} steps": Solver("exponential", rtol=1e-5, steps=n, step_limit=10_000)
        for n in (5, 20)
    },
}


def main() -> None:
    """Run the three tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cora", help="folder with the raw files")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    graph = planetoid("cora", options.cora)
    edges = with_self_loops(graph.edges)
    features = graph.x.to_dense() if graph.x.layout is not torch.strided else graph.x
    features = features / features.sum(1, keepdim=True).clamp(min=1)
    source = rng.generator(0, "encoder")
    x = features @ (5 * rng.normal((graph.features, WIDTH), features, source))
    print(f"{graph}; {edges.count:,} edges with self loops, {WIDTH} channels")

    results: dict[str, Any] = {"edges": edges.count, "width": WIDTH, "time": TIME}
    results["linear"] = table(grand(nonlinear=False), x, edges, TIME, LINEAR, options.rounds)
    results["nonlinear"] = table(grand(nonlinear=True), x, edges, TIME, NONLINEAR, options.rounds)
    results["stiff_time"] = STIFF_TIME
    results["stiff"] = table(EdgeStopping(), x, edges, STIFF_TIME, STIFF, options.rounds)
    write_results("graph_numerics", results)


def grand(nonlinear: bool) -> GRAND:
    """Of random weights, at a rate of 1 and with a source."""
    with rng.seeded(0, "weights"):
        field = GRAND(WIDTH, nonlinear=nonlinear)
    with torch.no_grad():
        field.rates.alpha.fill_(20.0)
        field.rates.beta.fill_(0.1)
    return field


class EdgeStopping(AbstractDiffusion):
    """`w = 1 / (1 + d² / κ²)`, not normalised: as fast at a node as it has neighbours."""

    # Differences of the state are about half as large.
    scale = 30.0

    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """Arguments as in `AbstractDiffusion`."""
        return Coefficients(edges, 1 / (1 + squared_distance(x, edges) / self.scale**2))


def table(
    field: AbstractField,
    x: Tensor,
    edges: Edges,
    time: float,
    solvers: dict[str, Solver],
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Cost and error of each solver."""
    with torch.no_grad():
        exact = diffuse(field.double(), x.double(), edges, time, Solver(**OWN)).final()
    field.float()
    solved = {}
    for name, solver in solvers.items():
        with torch.no_grad():
            solved[name] = diffuse(field, x, edges, time, solver)
    there = {name: solvers[name] for name, found in solved.items() if found.states is not None}

    def forward(solver: Solver) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> Tensor:
            return diffuse(field, x, edges, time, solver).final()

        return run

    def both(solver: Solver) -> Callable[[], object]:
        start = x.clone().requires_grad_()
        inputs = [start, *(p for p in field.parameters() if p.requires_grad)]

        def run() -> object:
            end = diffuse(field, start, edges, time, solver).final()
            return torch.autograd.grad(end.square().sum(), inputs, allow_unused=True)

        return run

    seconds = race({name: forward(solver) for name, solver in there.items()}, rounds)
    with_gradient = race({name: both(solver) for name, solver in there.items()}, rounds)
    rows = {}
    for name, found in solved.items():
        row: dict[str, Any] = {"evaluations": found.evaluations, "products": found.products}
        row["status"] = found.status.name
        if found.states is not None:
            row["seconds"], row["seconds_with_gradient"] = seconds[name], with_gradient[name]
            row["error"] = float((found.final().double() - exact).norm() / exact.norm())
        rows[name] = row
        print(f"{type(field).__name__:<14}{name:<30}", end="")
        print(f"{found.evaluations:>5} evaluations{found.products:>6} products", end="")
        if found.states is None:
            print(f"   {found.status.value}")
            continue
        print(
            f"{1e3 * row['seconds']:>9.1f} ms{1e3 * row['seconds_with_gradient']:>9.1f} ms with "
            f"gradient   error {row['error']:.1e}"
        )
    return rows


if __name__ == "__main__":
    main()
