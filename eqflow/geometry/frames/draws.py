"""Rows drawn by their weights, some from each segment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eqflow.geometry.segments import Segments

# Uniform numbers in [0, 1) of a shape, one after the other.
Uniform = Callable[[tuple[int, ...]], Tensor]


@torch.no_grad()
def drawn(weight: Tensor, segments: Segments, u: Tensor) -> Tensor:
    """Rows of each segment by inversion of its cumulative weights, with replacement.

    Args:
        weight: Shape (M,), none negative, some positive in each segment.
        segments: The rows that are drawn from together.
        u: Uniform numbers in [0, 1), shape (S, k) for k draws from each of S segments.

    Returns:
        Shape (S k,), segment by segment, rising within each.
    """
    weight = weight.detach().double()
    total = torch.cumsum(weight, 0)
    before = torch.cat([total.new_zeros(1), total])[segments.ptr[:-1]].unsqueeze(1)
    end = torch.cat([total.new_zeros(1), total])[segments.ptr[1:]].unsqueeze(1)
    sought = before + u.double().sort(1)[0] * (end - before)
    # Rounding up to the end would find a row behind it, or the last one, whatever its weight.
    sought = torch.minimum(sought, torch.nextafter(end, before))
    found = torch.searchsorted(total, sought, right=True)
    first, last = segments.ptr[:-1].unsqueeze(1), segments.ptr[1:].unsqueeze(1) - 1
    return torch.minimum(torch.maximum(found, first), last).reshape(-1)
