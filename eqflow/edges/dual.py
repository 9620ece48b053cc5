r"""The activation of edge and node networks with tangents carried beside it.

With :math:`\sigma = \mathrm{sigmoid}(z)` and `f = silu`: `f' = σ (1 + z (1 − σ))` and
`f'' = σ (1 − σ) (2 + z (1 − 2σ))`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from eqflow.edges.watched import is_watched


class Dual(NamedTuple):
    """A value and its tangents.

    Attributes:
        value: Shape (R, F).
        tangent: Derivatives along S directions, shape (R, S, F); None where they are zero.
    """

    value: Tensor
    tangent: Tensor | None = None


def dual_linear(m: Dual, weight: Tensor, bias: Tensor | None = None) -> Dual:
    """`W m + b` and its tangents."""
    moved = None if m.tangent is None else linear(m.tangent, weight)
    return Dual(linear(m.value, weight, bias), moved)


def dual_silu(z: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    """`silu(z)` and its derivative along S directions, `silu'(z) dz`.

    One operation with a backward of its own: torch's derivative of silu is not differentiable, and
    the chain of operations it falls back on keeps many tensors of the size of `z`.

    Args:
        z: Shape (R, F).
        dz: Shape (R, S, F).

    Returns:
        Shapes (R, F) and (R, S, F).
    """
    if is_watched(z):
        sigma = torch.sigmoid(z)
        slope = sigma * (1 + z * (1 - sigma))
        return z * sigma, slope.unsqueeze(1) * dz
    value, moved = _DualSilu.apply(z, dz)
    return value, moved


class _DualSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, dz)
        return silu(z), _times_slope(dz, z)

    @staticmethod
    def backward(ctx: Any, g: Tensor, dg: Tensor) -> tuple[Tensor, Tensor]:
        z, dz = ctx.saved_tensors
        sigma = torch.sigmoid(z)
        tail = sigma - sigma.square()
        curvature = tail * torch.addcmul(z, sigma, z, value=-2).add(2)
        slope = torch.addcmul(sigma, tail, z)
        across = (dg[:, 0] * dz[:, 0]) if dz.shape[1] == 1 else (dg * dz).sum(1)
        return g * slope + curvature * across, dg * slope.unsqueeze(1)


def _times_slope(dz: Tensor, z: Tensor) -> Tensor:
    slope = torch.ops.aten.silu_backward
    if dz.shape[1] == 1:
        return slope(dz.squeeze(1), z).unsqueeze(1)
    return slope(torch.ones_like(z), z).unsqueeze(1) * dz
