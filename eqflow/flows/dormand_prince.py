r"""The adaptive method of Dormand and Prince, order 5 with an embedded order 4.

A step is accepted where its error estimate :math:`\epsilon`, over `atol + rtol max(|y|, |y'|)` and
in the norm of the worst cloud, is at most 1; the next is :math:`0.9\, \epsilon^{-1/5}` times as
long, within bounds, and no longer than one that was only accepted after it had been shortened.

The last stage is the first of the next step. The steps end on the last time, to which one that
would end a little short of it is lengthened; states in between come from the quartic through both
ends and the middle.

A step on which a value is not finite is tried again shorter: too long a step may leave the region
where the field exists though the solution stays in it. Only where even a step at the resolution of
time fails is the solution itself taken to leave it.

References: A family of embedded Runge-Kutta formulae (Dormand, Prince, 1980); Some practical
Runge-Kutta formulas (Shampine, 1986) for the middle; Solving Ordinary Differential Equations I
(Hairer, Nørsett, Wanner, 1993), section II.4, for the control and the first step, whose error is
here a third of the tolerance and not a hundredth, or solves in few steps take one more; The MATLAB
ODE Suite (Shampine, Reichelt, 1997) for the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow.flows.evaluation import Evaluator, NonFinite, Stopped
from eqflow.flows.solver import Status
from eqflow.flows.steppers import Weights, advance

NODES: Weights = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
ROWS: tuple[Weights, ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
WEIGHTS: Weights = (*ROWS[-1], 0.0)
# The weights less those of an embedded method of order 4.
ERROR: Weights = (
    35 / 384 - 1951 / 21600,
    0.0,
    500 / 1113 - 22642 / 50085,
    125 / 192 - 451 / 720,
    -2187 / 6784 + 12231 / 42400,
    11 / 84 - 649 / 6300,
    -1 / 60,
)
# Weights of the state in the middle of a step.
MIDDLE: Weights = (
    6025192743 / 30085553152 / 2,
    0.0,
    51252292925 / 65400821598 / 2,
    -2691868925 / 45128329728 / 2,
    187940372067 / 1594534317056 / 2,
    -1776094331 / 19743644256 / 2,
    11237099 / 235043384 / 2,
)

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
ORDER = 5


class Control(NamedTuple):
    """How long steps are made.

    Attributes:
        first: Error of an explicit Euler step as long as the first, over the tolerance.
        stretch: By how much a step may be lengthened to end on the last time.
        caution: How much longer than a step that was tried again the next one may be.
    """

    first: float
    stretch: float
    caution: float


CONTROL = Control(first=0.3, stretch=1.1, caution=1.0)
# As torchdiffeq has it, to compare the two step by step.
PLAIN = Control(first=0.01, stretch=1.0, caution=GROW)

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DormandPrince:
    """One way to take and judge steps.

    Attributes:
        evaluate: The right-hand side.
        norm: Of a packed state, shape (M,), a scalar.
        rtol, atol: Tolerances.
        control: How long steps are made.
    """

    evaluate: Evaluator
    norm: Norm
    rtol: float
    atol: float
    control: Control = CONTROL

    def integrate(self, y: Tensor, times: Sequence[float]) -> list[Tensor]:
        """The state at each of `times`, which rise or fall, from `y` (M,) at the first.

        Raises:
            Stopped: If there were too many evaluations, the steps vanish, or the state is not
                finite.
        """
        t, end = times[0], times[-1]
        slope = self.evaluate.at(t, y)
        self.evaluate.settle(slope)
        h = self._first_step(t, y, slope, end)
        reach = max(abs(t), abs(end))
        # The field is given times in the precision of the state: closer ones are one to it.
        resolution, field_resolution = (
            torch.finfo(dtype).eps * reach for dtype in (torch.float64, y.dtype)
        )
        failure: NonFinite | None = None
        growth = GROW
        states = [y]
        while t != end:
            if not abs(h) > resolution:
                raise failure or Stopped(Status.UNDERFLOW, t)
            there = end if self.control.stretch * abs(h) >= abs(end - t) else t + h
            h = there - t
            try:
                stages, arrived, ratio = self._try_step(t, there, y, slope)
            except NonFinite as found:
                failure, growth = found, 1.0
                h *= SHRINK
                if abs(h) <= field_resolution:
                    raise
                continue
            if ratio <= 1:
                while len(states) < len(times) and _reached(times[len(states)], there, h):
                    theta = (times[len(states)] - t) / h
                    states.append(arrived if theta == 1 else advance(y, h, _between(theta), stages))
                t, y, slope = there, arrived, stages[-1]
                if failure and _reached(failure.time, there, h):
                    failure = None
            h *= min(_factor(ratio), growth)
            growth = GROW if ratio <= 1 else self.control.caution
        return states

    def _try_step(
        self, start: float, end: float, y: Tensor, slope: Tensor
    ) -> tuple[list[Tensor], Tensor, float]:
        """Stages, the state at `end`, and the error over the tolerance."""
        h = end - start
        stages = [slope]
        arrived = y
        for node, row in zip(NODES[1:], ROWS[1:], strict=True):
            arrived = advance(y, h, row, stages)
            stages.append(self.evaluate.at(end if node == 1 else start + node * h, arrived))
        with torch.no_grad():
            error = advance(torch.zeros_like(y), h, ERROR, stages)
            ratio = self.norm(error / self._tolerance(y, arrived)) + self.evaluate.doubt()
        value = float(ratio)
        if not math.isfinite(value):
            self.evaluate.settle(error)
        return stages, arrived, value

    def _first_step(self, t: float, y: Tensor, slope: Tensor, end: float) -> float:
        """A step whose explicit Euler error is about a third of the tolerance."""
        with torch.no_grad():
            tolerance = self._tolerance(y, y)
            size = float(self.norm(y / tolerance))
            speed = float(self.norm(slope / tolerance))
            guess = 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed
            guess = min(guess, abs(end - t))
            h = math.copysign(guess, end - t)
            try:
                change = self.evaluate.at(t + h, advance(y, h, (1.0,), [slope])) - slope
                self.evaluate.settle(change)
            except NonFinite:
                return h / 1000
            bend = float(self.norm(change / tolerance)) / guess if guess else math.inf
        if max(speed, bend) <= 1e-15:
            other = max(1e-6, guess / 1000)
        else:
            other = (self.control.first / max(speed, bend)) ** (1 / ORDER)
        return math.copysign(min(100 * guess, other), end - t)

    def _tolerance(self, y: Tensor, arrived: Tensor) -> Tensor:
        largest = torch.maximum(y.abs(), arrived.abs())
        return largest.mul_(self.rtol).add_(self.atol)


def _factor(ratio: float) -> float:
    """By how much to lengthen the step; what was accepted is not shortened."""
    if ratio == 0:
        return GROW
    least = 1.0 if ratio <= 1 else SHRINK
    return min(GROW, max(SAFETY * ratio ** (-1 / ORDER), least))


def _reached(time: float, there: float, h: float) -> bool:
    return time <= there if h > 0 else time >= there


def _between(theta: float) -> Weights:
    """Weights of the state at a fraction `theta` of a step: a quartic with the slopes at its ends.

    It passes through the start, the middle and the end.
    """
    weights = []
    for i, (weight, middle) in enumerate(zip(WEIGHTS, MIDDLE, strict=True)):
        first, last = float(i == 0), float(i == len(WEIGHTS) - 1)
        weights.append(
            theta * first
            + theta**2 * (last - 4 * first - 5 * weight + 16 * middle)
            + theta**3 * (5 * first - 3 * last + 14 * weight - 32 * middle)
            + theta**4 * (2 * last - 2 * first - 8 * weight + 16 * middle)
        )
    return tuple(weights)
