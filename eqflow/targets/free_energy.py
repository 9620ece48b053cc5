r"""Bennett's acceptance ratio along a ladder, with errors from independent copies of the ladder.

Between neighbours with energies `u_k`, `u_{k+1}`, the free-energy difference `C` solves

.. math:: \sum_{x \sim k} f(\Delta u(x) - C) = \sum_{x \sim k+1} f(C - \Delta u(x)),
            \quad f(w) = 1/(1 + e^w),

and `log Z_K = log Z_0 − Σ C`. The error takes no samples for independent but the copies of the
ladder: to first order a copy `l` moves `C` by its share of the residual over the slope, and all
rungs of a copy are summed before the variance is taken, which keeps their correlations.

Reference: Efficient estimation of free energy differences from Monte Carlo data (Bennett, 1976),
doi:10.1016/0021-9991(76)90078-4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Bisection halves the bracket this often: from 1e3 kT to below the rounding of float64.
HALVINGS = 70


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


def bennett(forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """Free-energy differences, and how much each copy of the ladder contributed to their error.

    Args:
        forward: `u_{k+1} − u_k` on samples of rung k, shape (K, L, S): rungs, copies, samples.
        backward: The same difference on samples of rung k + 1, shape (K, L, S).

    Returns:
        `C`, shape (K,), and the first-order shift of `C` by each copy, shape (K, L), zero in sum.
    """
    first, second = forward.flatten(1), backward.flatten(1)
    # At `low` the left side is below the right one, at `high` above it.
    low = torch.minimum(first.amin(1), second.amin(1)) - 60
    high = torch.maximum(first.quantile(0.1, dim=1), second.amax(1)) + 60
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        excess = torch.sigmoid(middle[:, None] - first).sum(1) - torch.sigmoid(
            second - middle[:, None]
        ).sum(1)
        low, high = (
            torch.where(excess < 0, middle, low),
            torch.where(excess < 0, high, middle),
        )
    difference = 0.5 * (low + high)
    left = torch.sigmoid(difference[:, None, None] - forward)
    right = torch.sigmoid(backward - difference[:, None, None])
    slope = (left * (1 - left)).sum((1, 2)) + (right * (1 - right)).sum((1, 2))
    return difference, -(left - right).sum(2) / slope[:, None]


def standard_error(shifts: Tensor) -> float:
    """Standard error of a sum of independent shifts, one a copy, shape (L,)."""
    count = shifts.numel()
    if count < 2:
        return float("inf")
    return math.sqrt(float((shifts - shifts.mean()).square().sum()) * count / (count - 1))
