"""Fixed steps of the methods that know the coefficients of a diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.flows.effort import Effort
from eqflow.flows.exponential import (
    CoefficientsAt,
    Evaluated,
    exponential_euler_step,
    exponential_midpoint_step,
)
from eqflow.flows.implicit import implicit_euler_step
from eqflow.flows.recompute import recomputed
from eqflow.flows.solver import Solver
from eqflow.flows.steppers import equal_steps
from eqflow.nn.diffusion.operator import AbstractDiffusion, Coefficients
from eqflow.nn.field import AbstractField


def coefficients_at(
    field: AbstractDiffusion, edges: Edges, context: Tensor | None, effort: Effort
) -> CoefficientsAt:
    """The coefficients by time and state; evaluated once where they depend on neither."""

    def at(t: float, x: Tensor) -> Coefficients:
        effort.evaluate(t)
        now = torch.full((), t, dtype=x.dtype, device=x.device)
        return field.coefficients(now, x, edges, context)

    last: tuple[float, Tensor, Coefficients] | None = None

    def remembered(t: float, x: Tensor) -> Coefficients:
        nonlocal last
        is_known = last is not None and (field.is_linear or (last[0] == t and last[1] is x))
        if last is None or not is_known:
            last = t, x, at(t, x)
        return last[2]

    return remembered


def by_steps(
    field: AbstractDiffusion,
    x: Tensor,
    coefficients_at: CoefficientsAt,
    times: list[float],
    solver: Solver,
    context: Tensor | None,
    effort: Effort,
) -> Tensor:
    """The states at `times`, by `solver.steps` steps over the whole of them.

    Args:
        field: What the coefficients come from.
        x: State at the first time, shape (N, C).
        coefficients_at: Its coefficients by time and state.
        times: Rising from 0.
        solver: Method, number of steps, tolerance, and whether a step is repeated on the way back.
        context: What the coefficients depend on besides.
        effort: Where products are counted.

    Returns:
        Shape (T, N, C).

    Raises:
        Stopped: If there were too many products, a value is not finite, or the equations of a step
            were not solved.
    """
    size = times[-1] / solver.steps
    grid = [list(pairwise(equal_steps(start, end, size))) for start, end in pairwise(times)]
    tolerance = solver.rtol
    if solver.method != "implicit":
        tolerance /= sum(map(len, grid))
    # What a linear field is made of is evaluated once, and stays.
    repeats = solver.gradient == "checkpoint" and torch.is_grad_enabled() and not field.is_linear
    before: Evaluated | None = None
    states = [x]
    for interval in grid:
        for start, end in interval:
            step = _Step(solver.method, coefficients_at, start, end, tolerance, effort)
            if repeats:
                x, before = step.repeated(x, before, inputs_of(field, context))
            else:
                x, before = step(x, before)
        states.append(x)
    return torch.stack(states)


@dataclass
class _Step:
    """One step of a method that knows the coefficients."""

    method: str
    coefficients_at: CoefficientsAt
    start: float
    end: float
    tolerance: float
    effort: Effort

    def __call__(self, x: Tensor, before: Evaluated | None) -> tuple[Tensor, Evaluated | None]:
        """The state, and where coefficients were evaluated for the next step to know."""
        given = self.coefficients_at, self.start, self.end, x, self.tolerance, self.effort
        # What is repeated on the way back is neither counted nor limited.
        self.effort = Effort(time=self.start)
        if self.method == "exponential":
            return exponential_midpoint_step(*given, before)
        if self.method == "exponential_euler":
            return exponential_euler_step(*given), None
        return implicit_euler_step(*given), None

    def repeated(
        self, x: Tensor, before: Evaluated | None, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, Evaluated | None]:
        """The same, with nothing kept for the way back but the states."""
        rows = len(x)
        after: list[float] = []

        def step(t: Tensor, y: Tensor) -> Tensor:
            known = before and Evaluated(before.time, y[rows:])
            arrived, now = self(y[:rows], known)
            after[:] = [now.time] if now else []
            return arrived if now is None else torch.cat([arrived, now.state])

        y = x if before is None else torch.cat([x, before.state])
        found = recomputed(step, inputs)(x.new_tensor(self.start), y)
        return found[:rows], Evaluated(after[0], found[rows:]) if after else None


def inputs_of(field: AbstractField, context: Tensor | None) -> tuple[Tensor, ...]:
    """What a velocity depends on besides time and state."""
    return (*field.parameters(), *(() if context is None else (context,)))
