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
        values: Between −1 and 1, up to rounding, shape (M,), float64.
        owner: What the value belongs to, shape (M,), rising.
        tolerance: Largest step between neighbouring values of one class.
    """
    if values.numel() == 0:
        return owner
    order = torch.argsort(3 * owner.double() + values)
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
    key = packed([owner, *keys])
    _, key, count = torch.unique(key, return_inverse=True, return_counts=True)
    owner_of_key = torch.empty_like(count).index_put((key,), owner)
    kinds = Segments.of_lengths(torch.bincount(owner_of_key, minlength=owners))
    place = (count * len(count) + torch.arange(len(count), device=owner.device)).double()
    best = -kinds.max(-place)
    return place[key] == best[owner]


def packed(keys: list[Tensor]) -> Tensor:
    """Integers in the lexicographic order of several that are not negative, shape (M,)."""
    packed, largest = keys[0], int(keys[0].max())
    for key in keys[1:]:
        base = int(key.max()) + 1
        if (largest + 1) * base >= 2**62:
            packed = torch.unique(packed, return_inverse=True)[1]
            largest = int(packed.max())
        packed, largest = packed * base + key, (largest + 1) * base
    return packed


def ranks(types: Tensor, clouds: Segments) -> Tensor:
    """Types numbered from 0 within each cloud, so that other clouds do not count, shape (N,)."""
    if types.numel() == 0:
        return types
    _, types = torch.unique(types, return_inverse=True)
    found, key = torch.unique(packed([clouds.ids, types]), return_inverse=True)
    owner = torch.empty_like(found).index_put((key,), clouds.ids)
    return Segments.of_lengths(torch.bincount(owner, minlength=clouds.count)).place[key]
