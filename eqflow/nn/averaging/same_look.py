"""Poses in which a cloud looks the same: which point takes the place of which."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.geometry import Segments

# Power of the dtype's eps, in units of a cloud's radius, that positions may differ by: 2e-12 in
# float64, 6e-6 in float32.
ROUNDING = 0.75


def matching_points(
    posed: Tensor,
    first: Tensor,
    rows: Segments,
    clouds: Segments,
    owner: Tensor,
    types: Tensor | None,
) -> Tensor | None:
    """For every point of every pose the point of the cloud's first pose that is where it is.

    Args:
        posed: Positions in all poses, shape (M, d).
        first: Positions in the first pose of each cloud, shape (N, d).
        rows: The points of each pose.
        clouds: The points of each cloud.
        owner: The cloud of each pose, shape (K,).
        types: Shape (N,), or None; a point takes the place of one of its type.

    Returns:
        Indices into `first`, shape (M,), or None where a point is off by more than rounding: the
        tolerance of a frame may be wider, and poses that look nearly alike then differ.
    """
    size = clouds.longest
    if size == 0:
        return rows.ids
    picked = clouds.to_dense(first, fill=torch.inf)[owner]
    distance = torch.cdist(rows.to_dense(posed), picked)
    if types is not None:
        kinds = clouds.to_dense(types, fill=-1)[owner]
        own = rows.to_dense(types[clouds.select(owner)[1]], fill=-1)
        distance = distance.masked_fill(own.unsqueeze(2) != kinds.unsqueeze(1), torch.inf)
    nearest = distance.nan_to_num(torch.inf).reshape(len(owner), size, size).argmin(-1)
    match = rows.from_dense(nearest) + clouds.ptr[:-1][owner][rows.ids]
    radius = clouds.max(first.norm(dim=-1))[owner][rows.ids]
    off = (posed - first[match]).norm(dim=-1)
    return match if bool((off <= torch.finfo(first.dtype).eps ** ROUNDING * radius).all()) else None


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether features of points that take each other's places differ by rounding at most."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    if not a.numel():
        return True
    return bool((a - b).abs().max() <= torch.finfo(a.dtype).eps ** ROUNDING * a.abs().max())
