r"""Orthonormal axes from vectors, differentiable any number of times.

:math:`e_k \propto v_k - \sum_{l<k} (v_k \cdot e_l) e_l` (Gram-Schmidt) for `d − 1` vectors, and the
last axis by the generalised cross product, whose component `a` is the determinant of the others
with the unit vector of `a`: so that `det [e_1 … e_d] = 1`, times a sign.
"""

from __future__ import annotations

import torch
from torch import Tensor


def residual(vectors: Tensor, axes: Tensor) -> Tensor:
    """What is left of vectors (M, d) perpendicular to orthonormal axes (M, k, d), shape (M, d).

    Twice over: what is left of the first pass may be small, and its rounding then is not.
    """
    for _ in range(2 if axes.shape[1] else 0):
        along = torch.einsum("mkd,md->mk", axes, vectors)
        vectors = vectors - torch.einsum("mk,mkd->md", along, axes)
    return vectors


def pose(vectors: Tensor, sign: Tensor) -> Tensor:
    """Matrices of O(d) whose columns are the axes made of vectors, with a sign for the last.

    Args:
        vectors: Linearly independent vectors, shape (K, d − 1, d).
        sign: Determinants, ±1, shape (K,).

    Returns:
        Shape (K, d, d).
    """
    count, _, d = vectors.shape
    axes = vectors.new_zeros(count, 0, d)
    for level in range(d - 1):
        rest = residual(vectors[:, level], axes)
        axes = torch.cat([axes, (rest / rest.norm(dim=-1, keepdim=True)).unsqueeze(1)], 1)
    last = perpendicular(axes) * sign.unsqueeze(-1)
    return torch.cat([axes, last.unsqueeze(1)], 1).mT


def perpendicular(axes: Tensor) -> Tensor:
    """The unit vector that completes orthonormal axes (K, d − 1, d) to determinant 1, (K, d)."""
    count, _, d = axes.shape
    if d == 1:
        return axes.new_ones(count, 1)
    if d == 2:
        x, y = axes[:, 0].unbind(-1)
        return torch.stack([-y, x], -1)
    if d == 3:
        return torch.linalg.cross(axes[:, 0], axes[:, 1])
    unit = torch.eye(d, dtype=axes.dtype, device=axes.device)
    bordered = torch.cat(
        [axes.unsqueeze(1).expand(count, d, d - 1, d), unit.expand(count, d, d).unsqueeze(2)], 2
    )
    return torch.linalg.det(bordered)


def completion(axes: Tensor) -> Tensor:
    """A unit vector perpendicular to orthonormal axes (K, k, d), one choice of many, (K, d).

    From the coordinate axis that is furthest from their span.
    """
    distance = 1 - axes.square().sum(1)
    unit = torch.eye(axes.shape[-1], dtype=axes.dtype, device=axes.device)
    rest = residual(unit[distance.argmax(-1)], axes)
    return rest / rest.norm(dim=-1, keepdim=True)
