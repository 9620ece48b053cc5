"""Bringing one cloud onto another by the symmetries of both: exchange of like points, rotations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from eqflow.geometry.rotations import kabsch, rotate
from eqflow.geometry.segments import Segments

# Up to this size all permutations are tried at once; beyond it each cloud is an assignment problem.
ENUMERATED = 4


def align(
    x: Tensor,
    z: Tensor,
    ptr: Tensor | Segments,
    types: Tensor | None = None,
    iterations: int = 2,
) -> Tensor:
    r"""Each cloud of `z` permuted and rotated towards its counterpart in `x`.

    Alternates the best permutation of points of one type (assignment) with the best element of O(d)
    (Kabsch); each step lowers :math:`\sum_i \lVert x_i - R z_{\pi(i)} \rVert^2`, to a local optimum
    over both.

    Args:
        x, z: Centred positions, shape (N, d).
        ptr: Start of each cloud, shape (B + 1,).
        types: Points are only exchanged with points of the same type, shape (N,), int64; all are
            alike where None.
        iterations: Number of assignment–rotation rounds.

    Returns:
        Shape (N, d).

    Reference: Equivariant flow matching (Klein, Krämer, Noé, 2023), arXiv:2306.15030, section 4.
    """
    clouds = Segments.of(ptr)
    for _ in range(iterations):
        z = z[best_permutation(x, z, clouds, types)]
        z = rotate(z, kabsch(x, z, clouds), clouds)
    return z


def best_permutation(x: Tensor, z: Tensor, clouds: Segments, types: Tensor | None = None) -> Tensor:
    """The row of `z` that each point of `x` is matched with, at the least squared distance, (N,).

    Arguments as in `align`; the types are those of the rows of both.
    """
    left, right = clouds.to_dense(x), clouds.to_dense(z)
    gain = left @ right.transpose(1, 2)  # minimising |x − z|² is maximising ⟨x, z⟩
    if types is not None:
        kind = clouds.to_dense(types)
        worst = 2 * gain.abs().sum((1, 2), keepdim=True) + 1
        gain = torch.where(kind.unsqueeze(2) == kind.unsqueeze(1), gain, -worst)
    if clouds.uniform is not None and clouds.uniform <= ENUMERATED:
        matched = _enumerated(gain)
    else:
        matched = _assigned(gain, clouds)
    start = clouds.expand(clouds.ptr[:-1])
    return clouds.from_dense(matched) + start


def _enumerated(gain: Tensor) -> Tensor:
    size = gain.shape[1]
    orders = list(permutations(range(size)))
    every = torch.tensor(orders, dtype=torch.int64, device=gain.device)
    total = gain[:, torch.arange(size, device=gain.device), every].sum(-1)
    return every[total.argmax(1)]


def _assigned(gain: Tensor, clouds: Segments) -> Tensor:
    value = gain.detach().cpu().numpy()
    matched = np.zeros(value.shape[:2], dtype=np.int64)
    for cloud, size in enumerate(clouds.lengths.tolist()):
        part = value[cloud, :size, :size]
        matched[cloud, :size] = linear_sum_assignment(part, maximize=True)[1]
    return torch.from_numpy(matched).to(gain.device)
