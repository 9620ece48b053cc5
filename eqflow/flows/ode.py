"""The ODE door: the only caller of torchdiffeq.

It counts evaluations and limits them, checks inside the field that state and derivative are finite,
controls the error of each cloud and not only the batch's mean, and returns a `Solution` whose
status says how it ended. Only the outermost layer turns a status into an exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from eqflow.errors import SolverFailed, UsageError
from eqflow.geometry import Segments

ADAPTIVE = ("dopri5", "adaptive_heun")
FIXED = ("rk4", "midpoint", "euler")

State = tuple[Tensor, ...]
RightHandSide = Callable[[Tensor, State], State]


class Status(Enum):
    """How an integration ended; the value is its message."""

    SUCCESS = "reached the last time"
    NON_FINITE = "the state or its derivative is not finite"
    STEP_LIMIT = "more evaluations than solver.step_limit"
    UNDERFLOW = "the step size fell below the resolution of time: the problem is stiff or singular"


@dataclass(frozen=True)
class Solver:
    """How to integrate.

    Attributes:
        method: "dopri5" or "adaptive_heun" (adaptive); "rk4", "midpoint" or "euler" (fixed steps).
        rtol, atol: Relative and absolute tolerance of an adaptive method, on the root mean square
            of each cloud's rows and on each per-cloud quantity, the worst cloud deciding.
        steps: Number of steps of a fixed-step method over the whole interval; more where times
            asked for in between are not on that grid.
        step_limit: Most evaluations of the right-hand side in one integration, those of the
            adjoint equation included.
        gradient: "direct" differentiates the steps themselves; "adjoint" integrates the adjoint
            equation backwards, in memory that does not grow with the number of steps.

    Raises:
        UsageError: If a value is out of range; all problems are named at once.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 20
    step_limit: int = 2000
    gradient: Literal["direct", "adjoint"] = "direct"

    def __post_init__(self) -> None:
        problems = []
        if self.method not in ADAPTIVE + FIXED:
            problems.append(
                f"solver.method: found {self.method!r}, "
                f"expected one of {', '.join(ADAPTIVE + FIXED)}"
            )
        for name in ("rtol", "atol"):
            if not getattr(self, name) > 0:
                problems.append(f"solver.{name}: found {getattr(self, name)}, expected above 0")
        for name in ("steps", "step_limit"):
            if getattr(self, name) < 1:
                problems.append(f"solver.{name}: found {getattr(self, name)}, expected at least 1")
        if self.gradient not in ("direct", "adjoint"):
            problems.append(
                f"solver.gradient: found {self.gradient!r}, expected 'direct' or 'adjoint'"
            )
        if problems:
            raise UsageError("; ".join(problems) + ".")

    @property
    def is_adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE


@dataclass(frozen=True)
class Solution:
    """What an integration gave.

    Attributes:
        states: The state at each time asked for, stacked on a new first axis; where the status is
            not SUCCESS, None.
        status: How it ended.
        time: Last time at which the right-hand side was evaluated.
        evaluations: How often the right-hand side was evaluated.
        at_fault: Clouds whose derivative was not finite, shape (K,), int64; empty where the
            failure belongs to no cloud in particular.
    """

    states: State | None
    status: Status
    time: float
    evaluations: int
    at_fault: Tensor

    def final(self) -> State:
        """The state at the last time.

        Raises:
            SolverFailed: If the last time was not reached.
        """
        return tuple(part[-1] for part in self.require())

    def require(self) -> State:
        """The state at each time, as `states`.

        Raises:
            SolverFailed: If the last time was not reached.
        """
        if self.states is None:
            clouds = f"; clouds at fault: {self.at_fault.tolist()}" if len(self.at_fault) else ""
            raise SolverFailed(
                f"integration stopped at t = {self.time:.4g} after {self.evaluations} evaluations: "
                f"{self.status.value}{clouds}. Try a smaller tolerance, a larger solver.step_limit "
                "or a fixed-step method."
            )
        return self.states


def integrate(
    right_hand_side: RightHandSide,
    initial: State,
    times: Tensor,
    solver: Solver,
    clouds: Segments | None = None,
    parameters: Iterable[nn.Parameter] = (),
) -> Solution:
    """Integrate `d state / dt = right_hand_side(t, state)` through `times`.

    Args:
        right_hand_side: Takes a scalar time and a state; returns a derivative of the same shapes.
        initial: State at `times[0]`: first a tensor of node rows (N, …), then any number of tensors
            with one row a cloud (B, …).
        times: Rising or falling, shape (T,), at least two.
        solver: How.
        clouds: Which node rows belong to which cloud; one cloud where None.
        parameters: What the adjoint differentiates by besides the initial state.

    Returns:
        A `Solution`; a failure is a status, not an exception. Only where the adjoint equation
        fails, during `backward`, is `SolverFailed` raised.

    Raises:
        UsageError: If the times neither rise nor fall throughout.
    """
    steps = times.detach().diff()
    if times.dim() != 1 or len(steps) < 1 or not ((steps > 0).all() or (steps < 0).all()):
        raise UsageError(
            f"integrate: found times {times.tolist()}, expected two or more, "
            "all rising or all falling."
        )
    if clouds is None:
        rows = initial[0].shape[0]
        clouds = Segments(torch.tensor([0, rows], device=initial[0].device))
    guarded = _Guarded(right_hand_side, clouds, solver.step_limit)
    try:
        states: State | None = _solve(guarded, initial, times, solver, clouds, tuple(parameters))
        # The last state is one at which the derivative was perhaps never taken.
        guarded.require_finite(*(part.movedim(0, -1) for part in states or ()))
        status = Status.SUCCESS
    except _Stopped as stop:
        states, status = None, stop.status
    return Solution(states, status, guarded.time, guarded.evaluations, guarded.at_fault)


def _solve(
    guarded: _Guarded,
    initial: State,
    times: Tensor,
    solver: Solver,
    clouds: Segments,
    parameters: tuple[nn.Parameter, ...],
) -> State:
    options: dict[str, Any]
    backward: dict[str, Any]
    if solver.is_adaptive:

        def norm(state: State) -> Tensor:
            return _worst_cloud(state, clouds)

        # Without step_t an adaptive solver steps past the last time, where the field may not exist.
        options = {"norm": norm, "step_t": times[-1:]}
        backward = {"norm": "seminorm", "step_t": times[:1]}
    else:
        size = float((times[-1] - times[0]).abs()) / solver.steps

        def grid(_field: object, _state: object, through: Tensor) -> Tensor:
            return _equal_steps(through, size)

        options = {"grid_constructor": grid}
        backward = dict(options)
    tolerance = {"rtol": solver.rtol, "atol": solver.atol, "method": solver.method}
    if solver.gradient == "adjoint":
        return odeint_adjoint(
            guarded,
            initial,
            times,
            **tolerance,
            options=options,
            adjoint_options=backward,
            adjoint_params=tuple(p for p in parameters if p.requires_grad),
        )
    return odeint(guarded, initial, times, **tolerance, options=options)


def _equal_steps(times: Tensor, size: float) -> Tensor:
    """A grid through all of `times`, each interval in equal steps of at most `size`."""
    grid = [times[:1]]
    for start, end in pairwise(times):
        # A thousandth of a step more is rounding, not another step.
        steps = max(math.ceil(float((end - start).abs()) / size - 1e-3), 1)
        places = torch.arange(1, steps, dtype=times.dtype, device=times.device) / steps
        grid += [start + (end - start) * places, end.reshape(1)]
    return torch.cat(grid)


@torch.no_grad()
def _worst_cloud(state: State, clouds: Segments) -> Tensor:
    """Largest root mean square over clouds and parts of the state: the error that steps obey.

    Step sizes are constants to the derivative, or its direct form would differ from the adjoint's.
    """
    nodes, *others = state
    squares = nodes.square().flatten(1).mean(1) if nodes.dim() > 1 else nodes.square()
    worst = [clouds.mean(squares).max()] if clouds.rows else [squares.new_zeros(())]
    worst += [part.square().max() for part in others if part.numel()]
    return torch.stack(worst).max().sqrt()


class _Stopped(SolverFailed):
    """Ends a solve: caught by `integrate`, or seen by who calls `backward` through the adjoint."""

    def __init__(self, status: Status, time: float) -> None:
        super().__init__(
            f"integration stopped at t = {time:.4g}: {status.value}. Try a smaller tolerance, "
            "a larger solver.step_limit or solver.gradient=direct."
        )
        self.status = status


class _Guarded(nn.Module):
    """The right-hand side, counted, limited and checked at every evaluation."""

    def __init__(self, right_hand_side: RightHandSide, clouds: Segments, limit: int) -> None:
        super().__init__()
        self._right_hand_side = right_hand_side
        self._clouds = clouds
        self._limit = limit
        self.evaluations = 0
        self.time = float("nan")
        self.at_fault = torch.zeros(0, dtype=torch.int64, device=clouds.ptr.device)

    def forward(self, t: Tensor, state: State) -> State:
        if self.evaluations >= self._limit:
            raise _Stopped(Status.STEP_LIMIT, self.time)
        self.evaluations += 1
        self.time = float(t.detach())
        self.require_finite(*state)
        derivative = self._right_hand_side(t, state)
        self.require_finite(*derivative)
        return derivative

    def require_finite(self, *state: Tensor) -> None:
        """End the solve where a part of `state` is not finite, and remember whose it is."""
        if state and not torch.stack([torch.isfinite(part).all() for part in state]).all():
            self.at_fault = self._broken_clouds(state)
            raise _Stopped(Status.NON_FINITE, self.time)

    def callback_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """End the solve where a step no longer moves the time; torchdiffeq calls this before each.

        Left to itself it asserts the same, and does not end under `python -O`.
        """
        if t + step == t or t - step == t:
            raise _Stopped(Status.UNDERFLOW, float(t))

    callback_step_adjoint = callback_step

    def _broken_clouds(self, state: State) -> Tensor:
        rows, *others = (~torch.isfinite(part.detach()) for part in state)
        broken = self._clouds.sum(_any_in_row(rows).to(torch.int64)) > 0
        for part in others:
            broken |= _any_in_row(part)
        return broken.nonzero().squeeze(1)


def _any_in_row(flags: Tensor) -> Tensor:
    return flags.reshape(len(flags), math.prod(flags.shape[1:])).any(1)
