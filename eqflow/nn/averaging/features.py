"""What is averaged, and the features that tell its points apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eqflow.geometry import Segments
from eqflow.geometry.frames.ties import classes, packed, ranks

# Power of the eps of features that equal ones may differ by, as a part of the largest in a cloud.
SAME = 0.5

# `backbone(x, ptr, h)`: positions (N, d), starts of clouds (B + 1,), features (N, F) or None; a row
# a point, (N, k), or a row a cloud, (B, k).
Backbone = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@torch.no_grad()
def types_of(h: Tensor | None, clouds: Segments) -> Tensor | None:
    """Numbers that tell points of one cloud apart by their features, (N, F) to (N,).

    They rise with the rows of `h`, the first column counting most, and depend on no other cloud.
    Features that differ by rounding count as equal: those that a network computed of a symmetric
    cloud do.
    """
    if h is None or h.numel() == 0:
        return None
    columns = h.detach().reshape(len(h), -1).double()
    columns = columns[:, (columns != columns[0]).any(0)]
    if not columns.shape[1]:
        return clouds.ids.new_zeros(clouds.rows)
    eps = torch.finfo(h.dtype if h.is_floating_point() else torch.float64).eps
    size = clouds.max(columns.abs()).clamp(min=torch.finfo(torch.float64).tiny)
    scaled = columns / clouds.expand(size)
    keys = [classes(column, clouds.ids, eps**SAME) for column in scaled.unbind(1)]
    return ranks(packed(keys), clouds)
