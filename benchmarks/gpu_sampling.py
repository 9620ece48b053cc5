"""Samples of small systems by fixed steps, which wait for launches more than for arithmetic.

The steps are taken as they come, or one of them is recorded as a CUDA graph and replayed. Recording
takes some three steps; what a step costs beyond the start is the difference of two numbers of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from gpu_bench import Bench, Result
from gpu_checks import worst_error
from gpu_problems import by_torch, by_triton
from gpu_ways import PORT, Problem
from torch import Tensor

from eqflow.flows import ContinuousFlow, Solver, integrate
from eqflow.flows.continuous import DATA, LATENT
from eqflow.nn import AbstractField


def time_sampling(bench: Bench) -> None:
    """Each system, by kernels and by torch, plain and recorded, and by the port."""
    for name, shape in bench.scale.particles.items():
        problem = Problem.made(shape, bench.device)
        for steps in bench.scale.steps:
            _time_steps(bench, f"{name}, {steps} steps", problem, steps)


def _time_steps(bench: Bench, name: str, problem: Problem, steps: int) -> None:
    plain, captured = (Solver("rk4", steps=steps, capture=capture) for capture in (False, True))
    by_torchdiffeq = Solver("rk4", steps=steps, implementation="torchdiffeq")
    times = problem.x.new_tensor([LATENT, DATA])
    expected: list[Tensor] = []

    def drawn(solver: Solver, field: AbstractField, x: Tensor) -> Tensor:
        flow = ContinuousFlow(field)
        return flow.transport(x, problem.clouds, start=LATENT, end=DATA, solver=solver).x

    def published() -> Tensor:
        solution = integrate(
            lambda t, state: (problem.published(t, state[0]),), (problem.x,), times, by_torchdiffeq
        )
        return solution.final()[0]

    def measure(run: Callable[[], Tensor], setting: Callable[[], AbstractContextManager]) -> Result:
        if not expected:
            with torch.no_grad(), by_torch():
                expected.append(drawn(plain, problem.at_exactly.field, problem.x.double()))
        with torch.no_grad(), setting():
            error = worst_error([run()], expected)
            return bench.time(run) | {"errors": {"samples": error}}

    mine = partial(drawn, plain, problem.field, problem.x)
    recorded = partial(drawn, captured, problem.field, problem.x)
    ways: list[tuple[str, Callable[[], Tensor], Callable[[], AbstractContextManager]]] = [
        ("Triton, tf32x3", mine, partial(by_triton, "tf32x3")),
        ("Triton, tf32x3, recorded", recorded, partial(by_triton, "tf32x3")),
        ("Triton, tf32, recorded", recorded, partial(by_triton, "tf32")),
        ("torch, fp32", mine, by_torch),
        ("torch, fp32, recorded", recorded, by_torch),
        (PORT, published, by_torch),
    ]
    for way, run, setting in ways:
        bench.case(f"{way}: {name}", partial(measure, run, setting))
