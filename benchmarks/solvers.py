"""What the steps of a solver cost around the evaluations of the field, and what a gradient costs.

First, CPU time of each evaluation, by eqflow's steps and torchdiffeq's: a field that costs next to
nothing, on a small and a large state, and an EGNN. Second, one maximum-likelihood loss and gradient
by each `solver.gradient`: CPU seconds, peak memory in a process of its own, and how far it is from
that of "direct".

    python benchmarks/solvers.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from harness import race, write_results
from torch import Tensor

from eqflow import rng
from eqflow.flows import Batch, ContinuousFlow, Hutchinson, MaximumLikelihood, Solver, integrate
from eqflow.flows.solver import GRADIENTS, IMPLEMENTATIONS, State
from eqflow.geometry import Segments, centred
from eqflow.nn import EGNNField

# Name: number of clouds, points in each, columns.
TRIVIAL = {"312 numbers": (8, 13, 3), "216,640 numbers": (1, 2708, 80)}
FIELDS = {"EGNN, 64 × 4 points in 2-D": (64, 4, 2), "EGNN, 32 × 13 points in 3-D": (32, 13, 3)}
SOLVERS = {
    "rk4, 20 steps": {"method": "rk4", "steps": 20},
    "dopri5 at 1e-5": {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5},
}
TRAINED_BY = {
    "rk4, 8 steps": {"method": "rk4", "steps": 8},
    "dopri5 at 1e-5": {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5},
}
TRAINED_ON = {"128 × 4 points in 2-D": (128, 4, 2), "16 × 13 points in 3-D": (16, 13, 3)}


def main() -> None:
    """Run both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=3, metavar=("SHAPE", "SOLVER", "GRADIENT"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(json.dumps(peak_mebibytes(one_step(*options.peak))))
        return
    steps = cost_of_steps(options.rounds)
    gradients = cost_of_gradients(options.rounds)
    write_results("solvers", {"steps": steps, "gradients": gradients})


def cost_of_steps(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Table 1: microseconds an evaluation."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, (count, points, columns) in (TRIVIAL | FIELDS).items():
        clouds = Segments(torch.arange(count + 1) * points)
        source = rng.generator(0, "state")
        x = centred(rng.normal((clouds.rows, columns), torch.zeros(()), source), clouds)
        field = decay if name in TRIVIAL else moving_field(clouds)
        table[name] = {}
        for solver, settings in SOLVERS.items():
            evaluations: dict[str, int] = {}

            def solve(
                implementation: str,
                settings: dict = settings,
                counts: dict = evaluations,
                problem: tuple = (field, x, clouds),
            ) -> None:
                right_hand_side, start, segments = problem
                chosen = Solver(**settings, implementation=implementation)
                times = torch.tensor([0.0, 1.0])
                solution = integrate(right_hand_side, (start,), times, chosen, segments)
                counts[implementation] = solution.evaluations

            with torch.no_grad():
                seconds = race({i: lambda i=i: solve(i) for i in IMPLEMENTATIONS}, rounds)
            row = {f"{i}_us": 1e6 * taken / evaluations[i] for i, taken in seconds.items()}
            row |= {f"{i}_evaluations": evaluations[i] for i in IMPLEMENTATIONS}
            row["ratio"] = seconds["torchdiffeq"] / seconds["eqflow"]
            table[name][solver] = row
            print(
                f"{name:<30}{solver:<16}"
                f"{row['eqflow_us']:9.1f} µs{row['torchdiffeq_us']:9.1f} µs an evaluation, "
                f"{evaluations['eqflow']} and {evaluations['torchdiffeq']}, "
                f"in all {row['ratio']:.2f} times as fast"
            )
    return table


def decay(t: Tensor, state: State) -> State:
    """A field of one operation."""
    return (-state[0],)


def moving_field(clouds: Segments) -> Callable[[Tensor, State], State]:
    """The velocity of `egnn` as a right-hand side."""
    at = ContinuousFlow(egnn()).dynamics(clouds)
    return lambda t, state: (at(t, state[0])(state[0]),)


def egnn() -> EGNNField:
    """An untrained EGNN that moves points by about their distances."""
    with rng.seeded(0, "weights"):
        field = EGNNField(width=32, layers=3)
    with torch.no_grad():
        for layer in field.egnn.layers:
            layer.coordinate_out.weight.mul_(100)
    return field


def one_step(shape: str, solver: str, gradient: str) -> Callable[[], Tensor]:
    """Loss and gradient of one maximum-likelihood step; returns the gradient."""
    count, points, dimension = TRAINED_ON[shape]
    clouds = Segments(torch.arange(count + 1) * points)
    field = egnn()
    source = rng.generator(0, "state")
    x = centred(rng.normal((clouds.rows, dimension), torch.zeros(()), source), clouds)
    chosen = Solver(**TRAINED_BY[solver], gradient=gradient)  # type: ignore[arg-type]
    objective = MaximumLikelihood(chosen, Hutchinson(1))
    parameters = list(field.parameters())

    def step() -> Tensor:
        loss = objective(ContinuousFlow(field), Batch(x, clouds), rng.generator(0)).value
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([g.reshape(-1) for g in gradients if g is not None])

    return step


def cost_of_gradients(rounds: int) -> list[dict[str, float | str]]:
    """Table 2: seconds, peak memory and error of each gradient."""
    table: list[dict[str, float | str]] = []
    for shape, solver in product(TRAINED_ON, TRAINED_BY):
        steps = {gradient: one_step(shape, solver, gradient) for gradient in GRADIENTS}
        seconds = race(steps, rounds)
        direct = steps["direct"]()
        for gradient, step in steps.items():
            difference = float((step() - direct).norm() / direct.norm())
            peak = peak_of_process(shape, solver, gradient)
            table.append(
                {
                    "shape": shape,
                    "solver": solver,
                    "gradient": gradient,
                    "seconds": seconds[gradient],
                    "peak_mebibytes": peak,
                    "difference_from_direct": difference,
                }
            )
            print(
                f"{shape:<24}{solver:<16}{gradient:<12}{seconds[gradient]:8.3f} s{peak:9.1f} MiB"
                f"   off by {difference:.1e}"
            )
    return table


def peak_of_process(*case: str) -> float:
    """`peak_mebibytes` of a step in a fresh process that returns memory as soon as it is free."""
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(Path(__file__)), "--peak", *case]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(output.stdout))


def peak_mebibytes(step: Callable[[], object]) -> float:
    """Growth of resident memory at its peak while `step` runs, the second time (Linux only)."""
    step()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    step()
    return (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    """A line of this process's status, in KiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


if __name__ == "__main__":
    main()
