"""Numbers that are equal up to rounding, told apart from those that are not.

A point group makes distances equal that rounding makes unequal, so nothing here compares numbers
exactly, nor on a grid, whose lines would part some of them: values are sorted, and a new class
begins where the step to the next one is larger than a tolerance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.geometry.segments import Segments


def classes(values: Tensor, owner: Tensor, tolerance: float) -> Tensor:
    """The class of each value among those of its owner, counted from the smallest, shape (M,).

    Args:
        values: Shape (M,).
        owner: What the value belongs to, shape (M,), rising.
        tolerance: Largest step between neighbouring values of one class.
    """
    if values.numel() == 0:
        return owner
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    value, own = values[order], owner[order]
    first = torch.ones_like(own, dtype=torch.bool)
    first[1:] = own[1:] != own[:-1]
    steps = torch.zeros_like(own)
    steps[1:] = (value[1:] - value[:-1] > tolerance).to(own.dtype)
    steps[first] = 0
    level = torch.cumsum(steps, 0)
    starts = level[first]
    level = level - starts[torch.cumsum(first.to(own.dtype), 0) - 1]
    return torch.empty_like(level).index_put((order,), level)


def rarest(keys: list[Tensor], owner: Tensor, owners: int) -> Tensor:
    """Which rows have the rarest key among those of their owner, the least where several are.

    Args:
        keys: Integers that a key consists of, the most significant first, each of shape (M,).
        owner: What each row belongs to, shape (M,), rising, below `owners`.

    Returns:
        Shape (M,), bool.
    """
    if owner.numel() == 0:
        return torch.zeros_like(owner, dtype=torch.bool)
    found, key, count = torch.unique(
        torch.stack([owner, *keys], 1), dim=0, return_inverse=True, return_counts=True
    )
    kinds = Segments.of_lengths(torch.bincount(found[:, 0], minlength=owners))
    place = count * len(found) + torch.arange(len(found), device=owner.device)
    best = -kinds.max(-place.double())
    return place.double()[key] == best[owner]


def ranks(types: Tensor, clouds: Segments) -> Tensor:
    """Types numbered from 0 within each cloud, so that other clouds do not count, shape (N,)."""
    if types.numel() == 0:
        return types
    found, key = torch.unique(torch.stack([clouds.ids, types], 1), dim=0, return_inverse=True)
    kinds = Segments.of_lengths(torch.bincount(found[:, 0], minlength=clouds.count))
    return kinds.place[key]
