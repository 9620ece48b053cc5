"""Rotations and reflections in any dimension: random ones, and the best fit of two clouds."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow import rng
from eqflow.geometry.segments import Segments


def random_orthogonal(
    count: int, dimension: int, like: Tensor, source: torch.Generator, proper: bool = False
) -> Tensor:
    """Haar-distributed matrices of O(d), or of SO(d) where `proper`, shape (count, d, d).

    The QR decomposition of a Gaussian matrix, with the signs of R's diagonal moved into Q: without
    them the distribution is not the Haar measure (Mezzadri, 2007, arXiv:math-ph/0609050).
    """
    gaussian = rng.normal((count, dimension, dimension), like, source)
    q, r = torch.linalg.qr(gaussian)
    q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
    if proper and dimension > 0:
        flip = torch.ones_like(q[:, :1, :])
        flip[:, 0, 0] = torch.linalg.det(q)
        q = q * flip
    return q


def rotate(x: Tensor, rotation: Tensor, ptr: Tensor | Segments) -> Tensor:
    """Apply each cloud's matrix to its positions: `x_i ← R x_i`.

    Args:
        x: Positions, shape (N, d).
        rotation: One matrix a cloud, shape (B, d, d).
        ptr: Start of each cloud, shape (B + 1,).
    """
    return torch.einsum("nij,nj->ni", Segments.of(ptr).expand(rotation), x)


def kabsch(x: Tensor, y: Tensor, ptr: Tensor | Segments, proper: bool = False) -> Tensor:
    r"""The matrix of O(d), or SO(d) where `proper`, that brings `y` closest to `x`, (B, d, d).

    Minimises :math:`\sum_i \lVert x_i - R y_i \rVert^2` for each cloud, both centred: with the
    singular value decomposition of :math:`\sum_i x_i y_i^\top = U S V^\top`, `R = U V^T`
    (Kabsch, 1976, doi:10.1107/S0567739476001873).

    Args:
        x, y: Centred positions, shape (N, d).
        ptr: Start of each cloud, shape (B + 1,).
    """
    clouds = Segments.of(ptr)
    covariance = clouds.sum(x.unsqueeze(-1) * y.unsqueeze(-2))
    u, _, vh = torch.linalg.svd(covariance)
    if proper:
        u = u.clone()
        u[..., -1] *= torch.linalg.det(u @ vh).unsqueeze(-1)
    return u @ vh
