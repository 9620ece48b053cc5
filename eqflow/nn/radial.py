"""Functions of the distance that messages are given beside its square."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from eqflow.edges import DISTANCE_EPSILON

# Where the furthest function of `radial_basis` is, in the unit of the positions.
REACH = 4.0


class OfDistance(NamedTuple):
    """Functions of squared distances and their derivatives by these, shape (..., K)."""

    value: Tensor
    slope: Tensor


def radial_basis(d2: Tensor, count: int) -> OfDistance:
    r"""Gaussians :math:`\exp(-(d - c_k)^2 / 2 w^2)` of the distance, 0 to 4 units apart.

    Their centres are evenly spaced and `w` is the spacing, so that a distance is told from one
    that is a fraction of `w` longer.

    Args:
        d2: Squared distances in the unit of standardised positions, shape (...).
        count: Number K of functions, at least 2.

    Reference: SchNet (Schütt et al., 2017), arXiv:1706.08566, eq. 5, in another spacing.
    """
    spacing = REACH / (count - 1)
    centres = spacing * torch.arange(count, dtype=d2.dtype, device=d2.device)
    d = (d2 + DISTANCE_EPSILON).sqrt().unsqueeze(-1)
    off = (d - centres) / spacing
    value = torch.exp(-0.5 * off.square())
    return OfDistance(value, -value * off / (2 * spacing * d))
