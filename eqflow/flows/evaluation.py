"""The right-hand side as steppers see it: counted, limited, and checked to be finite.

A derivative that is not finite makes the next state so: every Runge-Kutta method here uses each
stage in the state of the next stage or of the next step. So what is checked is the state that goes
in, and what comes out of the last step. On a CPU that is done at once; on a GPU reading the answer
would stop the queue of kernels, so doubts are added up and looked at once a step or at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eqflow.errors import NumericalError, SolverFailed
from eqflow.flows.solver import Status

VectorField = Callable[[Tensor, Tensor], Tensor]


class Stopped(SolverFailed):
    """Ends a solve: caught at the door, or seen by who calls `backward` through the adjoint.

    Attributes:
        status: Why.
        time: Last time of an evaluation.
        broken: A packed state whose entries at fault are not finite, or None.
    """

    def __init__(self, status: Status, time: float, broken: Tensor | None = None) -> None:
        super().__init__(
            f"integration stopped at t = {time:.4g}: {status.value}. Try a smaller tolerance, "
            "a larger solver.step_limit or solver.gradient=direct."
        )
        self.status = status
        self.time = time
        self.broken = broken


class NonFinite(Stopped):
    """A state or derivative that is not finite: an adaptive method may try a smaller step."""

    def __init__(self, time: float, broken: Tensor) -> None:
        super().__init__(Status.NON_FINITE, time, broken)


class Evaluator:
    """`(t, y) ↦ dy/dt` on packed states.

    Args:
        field: The right-hand side on packed states.
        limit: Most evaluations there may be.
        deferred: Look for values that are not finite only when `settle` is called.

    Attributes:
        evaluations: How many there were.
        time: Last time of an evaluation.
    """

    def __init__(self, field: VectorField, limit: int, deferred: bool = False) -> None:
        self._field = field
        self._limit = limit
        self._deferred = deferred
        self._seen: Tensor | None = None
        self.evaluations = 0
        self.time = float("nan")

    def at(self, time: float, y: Tensor) -> Tensor:
        """The derivative of `y`, shape (M,), at a time.

        Raises:
            Stopped: If the limit is reached.
            NonFinite: If `y` is not finite, now or in `settle`.
        """
        self.count(time)
        # Filling takes the number along with the launch; a copy from the host would wait.
        return self.uncounted(torch.full((), time, dtype=y.dtype, device=y.device), y)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """As `at`, as torchdiffeq calls it; the derivative is checked as well."""
        self.count(float(t.detach()))
        derivative = self.uncounted(t, y)
        self._require_finite(derivative)
        return derivative

    def count(self, time: float, evaluations: int = 1) -> None:
        """Count evaluations about to be made, the last of them at `time`.

        Raises:
            Stopped: If they are more than the limit.
        """
        if self.evaluations + evaluations > self._limit:
            raise Stopped(Status.STEP_LIMIT, self.time)
        self.evaluations += evaluations
        self.time = time

    def uncounted(self, t: Tensor, y: Tensor) -> Tensor:
        """As `at`, at a scalar tensor, and without a look at the limit."""
        if not self._deferred:
            self._require_finite(y)
            return self._field(t, y).to(y.dtype)
        if self._seen is None:
            self._seen = torch.zeros_like(y, requires_grad=False)
        # Nothing times zero is zero, but for what is not finite.
        self._seen.add_(y.detach(), alpha=0.0)
        try:
            return self._field(t, y).to(y.dtype)
        except NumericalError:
            # What the field could not bear may be a state whose check was put off.
            self.settle(y)
            raise

    def callback_step(self, t: Tensor, y: Tensor, step: Tensor) -> None:
        """End the solve where a step no longer moves the time; torchdiffeq calls this before each.

        Left to itself it asserts the same, and does not end under `python -O`.
        """
        if t + step == t or t - step == t:
            raise Stopped(Status.UNDERFLOW, float(t))

    callback_step_adjoint = callback_step

    def doubt(self) -> Tensor | float:
        """Zero, or NaN where something seen since the last `settle` was not finite."""
        return 0.0 if self._seen is None else self._seen.sum()

    def settle(self, y: Tensor) -> None:
        """Make sure that all that was seen, and `y`, is finite.

        Raises:
            NonFinite: If something is not.
        """
        if self._seen is not None:
            y = torch.add(self._seen, y.detach(), alpha=0.0)
            self._seen.zero_()
        self._require_finite(y)

    def _require_finite(self, y: Tensor) -> None:
        if not is_finite(y):
            raise NonFinite(self.time, y)


def is_finite(y: Tensor) -> bool:
    """Whether every entry is; several times as fast on a CPU as to ask each with `isfinite`."""
    y = y.detach()
    # A sum that is not finite may be that of finite numbers; their differences from themselves
    # are zero.
    return math.isfinite(y.sum()) or bool((y - y).sum() == 0)
