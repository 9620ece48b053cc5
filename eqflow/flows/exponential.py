r"""Exponential integrators: diffusion with its coefficients frozen over a step, solved exactly.

In :math:`\dot x = L(t, x) x + s` the coefficients of a diffusion change far more slowly than what
it diffuses, so that a step may be as long as they stay nearly what they are, however stiff the
diffusion. Over a step of length `h` from `x_n`, with :math:`\Phi_h(L, s)` the exact flow of the
linear equation:

.. math::
    \text{Euler:}\quad & x_{n+1} = \Phi_h(L(t_n, x_n))\, x_n \\
    \text{midpoint:}\quad & \hat x_n = \Phi_{h/2}(L_{n-1})\, x_n, \quad
    L_n = L(t_n + h/2, \hat x_n), \quad x_{n+1} = \Phi_h(L_n)\, x_n

of order 1 and 2, and exact where the coefficients are constant. The middle is predicted by the
coefficients of the step before, which are wrong by `O(h)` over half a step: enough for order 2.
So either evaluates attention once a step, the second once more at the start; the rest is sparse
products.

References: Exponential integrators (Hochbruck, Ostermann, 2010), section 2; On the exponential
solution of differential equations for a linear operator (Magnus, 1954), for the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from eqflow.flows.effort import Effort
from eqflow.flows.uniformization import propagate
from eqflow.nn.diffusion.operator import Coefficients

CoefficientsAt = Callable[[float, Tensor], Coefficients]


class Evaluated(NamedTuple):
    """Where coefficients were evaluated.

    Attributes:
        time: The time.
        state: The state, shape (N, C).
    """

    time: float
    state: Tensor


def exponential_euler_step(
    coefficients_at: CoefficientsAt,
    start: float,
    end: float,
    x: Tensor,
    tolerance: float,
    effort: Effort,
) -> Tensor:
    """The state at `end` from that at `start`, by coefficients of the start; of order 1.

    Args:
        coefficients_at: Takes a time and a state (N, C).
        start, end: Times.
        x: State at `start`, shape (N, C).
        tolerance: Of the series of this step, relative; see `propagate`.
        effort: Where products are counted.

    Raises:
        Stopped: If there were too many products, or a value is not finite.
    """
    coefficients = coefficients_at(start, x)
    return propagate(coefficients, x, [start, end], tolerance=tolerance, effort=effort).states[-1]


def exponential_midpoint_step(
    coefficients_at: CoefficientsAt,
    start: float,
    end: float,
    x: Tensor,
    tolerance: float,
    effort: Effort,
    before: Evaluated | None = None,
) -> tuple[Tensor, Evaluated]:
    """The state at `end`, by coefficients of the middle; of order 2.

    Args:
        coefficients_at: Takes a time and a state (N, C); asked again for what it was asked last, it
            had better remember.
        start, end, x, tolerance, effort: As in `exponential_euler_step`.
        before: Where the step before evaluated its coefficients; None for the first step, which
            takes those of its start.

    Returns:
        The state, and what the next step is to be given as `before`.

    Raises:
        Stopped: If there were too many products, or a value is not finite.
    """
    before = Evaluated(start, x) if before is None else before
    middle = start + (end - start) / 2

    def flow(coefficients: Coefficients, until: float) -> Tensor:
        times = [start, until]
        return propagate(coefficients, x, times, tolerance=tolerance, effort=effort).states[-1]

    now = Evaluated(middle, flow(coefficients_at(*before), middle))
    return flow(coefficients_at(*now), end), now
