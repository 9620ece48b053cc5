"""How to integrate, and how an integration ended: plain values, without any algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any, Literal

from torch import Tensor

from eqflow.errors import SolverFailed, UsageError

ADAPTIVE = ("dopri5", "adaptive_heun")
# Adaptive too, but implicit: it solves for its steps and gives no gradient.
STIFF = ("radau",)
FIXED = ("rk4", "heun", "midpoint", "euler")
# Of `diffuse` alone: they need to know the coefficients of a diffusion.
DIFFUSION = ("exponential", "exponential_euler", "implicit")
IMPLEMENTATIONS = ("eqflow", "torchdiffeq")
GRADIENTS = ("direct", "checkpoint", "adjoint")

State = tuple[Tensor, ...]
RightHandSide = Callable[[Tensor, State], State]


class Status(Enum):
    """How an integration ended, or why there was none; the value is its message."""

    SUCCESS = "reached the last time"
    NON_FINITE = "the state or its derivative is not finite"
    STEP_LIMIT = "more evaluations than solver.step_limit"
    UNDERFLOW = "the step size fell below the resolution of time: the problem is stiff or singular"
    NOT_CONVERGED = "the linear equations of an implicit step did not converge"
    IMPOSSIBLE_SIZE = "a structure of this size has probability 0: nothing was integrated"

    @property
    def failed(self) -> bool:
        """Whether there is no answer; probability 0 is one."""
        return self not in (Status.SUCCESS, Status.IMPOSSIBLE_SIZE)


@dataclass(frozen=True)
class Solver:
    """How to integrate.

    Attributes:
        method: "dopri5" or "adaptive_heun" (adaptive); "radau" (adaptive and implicit, for stiff
            equations, without gradients); "rk4" (the 3/8 rule), "heun", "midpoint" or "euler"
            (fixed steps). For diffusions on graphs also, see `diffuse`: "exponential"
            (exact where the equation is linear, else fixed steps of order 2), "exponential_euler"
            (order 1) and "implicit" (linearly implicit Euler, order 1).
        rtol, atol: Relative and absolute tolerance of an adaptive method, on the root mean square
            of each cloud's rows and on each per-cloud quantity, the worst cloud deciding; positive
            and finite. To "exponential" methods rtol is what the series of the whole solve may
            leave out, to "implicit" the residual of each step's equations.
        steps: Number of steps of a fixed-step method over the whole interval; more where times
            asked for in between are not on that grid. Of "radau", the fewest there are.
        step_limit: Most evaluations of the right-hand side in one integration, those of the
            adjoint equation included, those that "checkpoint" repeats not; of "exponential" and
            "implicit" methods, most products of the operator with a state.
        gradient: "direct" differentiates the steps themselves; "checkpoint" does too, but keeps
            only the state of each evaluation and repeats the evaluation in the backward pass: the
            same gradient in about the memory of the adjoint; "adjoint" integrates the adjoint
            equation backwards, in memory that does not grow with the number of steps.
            The last two differentiate by the initial state and the parameters passed, no more.
        implementation: Who takes the steps: "eqflow", or "torchdiffeq" for comparison.
            "adaptive_heun" and the adjoint are torchdiffeq's in either case, "radau" is SciPy's.
        capture: Without gradients and on tensors on a CUDA device, record one fixed step as a CUDA
            graph and replay it; the field must not choose its work by values, as one with a cutoff
            does. On other tensors the same steps are taken unrecorded; where gradients are on,
            ordinary ones.

    Raises:
        UsageError: If a value is of a wrong type or out of range; all problems are named at once.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 20
    step_limit: int = 2000
    gradient: Literal["direct", "checkpoint", "adjoint"] = "direct"
    implementation: Literal["eqflow", "torchdiffeq"] = "eqflow"
    capture: bool = False

    def __post_init__(self) -> None:
        problems = []
        choices = {
            "method": ADAPTIVE + STIFF + FIXED + DIFFUSION,
            "gradient": GRADIENTS,
            "implementation": IMPLEMENTATIONS,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if not (isinstance(value, str) and value in known):
                problems.append(
                    f"solver.{name}: found {value!r}, expected one of {', '.join(known)}"
                )
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not (_is_a(Real, value) and 0 < value < math.inf):
                problems.append(f"solver.{name}: found {value!r}, expected a finite number above 0")
        for name in ("steps", "step_limit"):
            value = getattr(self, name)
            if not (_is_a(Integral, value) and value >= 1):
                problems.append(
                    f"solver.{name}: found {value!r}, expected a whole number, at least 1"
                )
        if not isinstance(self.capture, bool):
            problems.append(f"solver.capture: found {self.capture!r}, expected true or false")
        elif self.capture and (self.method not in FIXED or self.implementation != "eqflow"):
            problems.append(
                f"solver.capture: found true with {self.method} by {self.implementation}, "
                f"expected a fixed-step method ({', '.join(FIXED)}) by eqflow"
            )
        if self.method in STIFF and self.gradient != "direct":
            problems.append(
                f"solver.gradient: found {self.gradient} with {self.method}, which gives none, "
                "expected direct"
            )
        if self.method in DIFFUSION:
            if self.gradient == "adjoint":
                problems.append(
                    f"solver.gradient: found adjoint with {self.method}, expected direct or "
                    "checkpoint"
                )
            if self.implementation == "torchdiffeq":
                problems.append(
                    f"solver.implementation: found torchdiffeq, which has no {self.method}, "
                    "expected eqflow"
                )
        if problems:
            raise UsageError("; ".join(problems) + ".")

    @property
    def is_adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE + STIFF


@dataclass(frozen=True)
class Solution:
    """What an integration gave.

    Attributes:
        states: The state at each time asked for, stacked on a new first axis; where the status is
            not SUCCESS, None.
        status: How it ended.
        time: Last time at which the right-hand side was evaluated.
        evaluations: How often the right-hand side was evaluated.
        at_fault: Clouds whose state or derivative was not finite, shape (K,), int64; empty where
            the failure belongs to no cloud in particular.
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


def _is_a(kind: type, value: Any) -> bool:
    """Whether a value is a number of a kind, which a truth value is not meant to be."""
    return isinstance(value, kind) and not isinstance(value, bool)
