"""Positions of the points of a cloud along the axes of its poses."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.geometry.frames.poses import Poses
from eqflow.geometry.segments import Segments


def in_all_poses(x: Tensor, clouds: Segments, poses: Poses) -> Tensor:
    """Positions of each cloud in all of its poses, pose after pose, shape (M, d).

    Where clouds have equally many poses, all of a cloud's are one product.

    Args:
        x: Positions, shape (N, d).
        clouds: The points of each cloud.
        poses: Poses of the clouds.
    """
    each, d = poses.owners.uniform, x.shape[1]
    if not each or bool((poses.rank < d).any()):
        rows, points = clouds.select(poses.owners.ids)
        return in_pose(x[points], rows, poses.rotation, poses.is_free)
    axes = poses.rotation.reshape(-1, each, d, d).transpose(1, 2).flatten(2)
    placed = (clouds.to_dense(x) @ axes).unflatten(2, (each, d)).transpose(1, 2)
    if clouds.uniform:
        return placed.reshape(-1, d)
    rows = Segments.of_lengths(clouds.lengths.repeat_interleave(each))
    return placed.reshape(-1, d).index_select(0, rows.ids * clouds.longest + rows.place)


def in_pose(x: Tensor, rows: Segments, rotation: Tensor, is_free: Tensor) -> Tensor:
    """Positions along the axes of their pose, 0 along free ones.

    Args:
        x: Positions of the points of every pose, shape (M, d).
        rows: The points of each of K poses.
        rotation: Shape (K, d, d).
        is_free: Axes that nothing determines, shape (K, d).

    Returns:
        Shape (M, d).
    """
    if rows.uniform:
        placed = (x.reshape(rows.count, rows.uniform, -1) @ rotation).flatten(0, 1)
    else:
        placed = torch.einsum("nd,nde->ne", x, rotation[rows.ids])
    if bool(is_free.any()):
        placed = placed.masked_fill(is_free[rows.ids], 0.0)
    return placed
