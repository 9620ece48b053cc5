"""Splits that are a function of the seed: the same seed and count give the same parts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import EmptyData, ShapeError, UsageError
from eqflow.geometry.clouds import Clouds


def split(
    count: int, parts: Mapping[str, float | int], seed: int, groups: Tensor | None = None
) -> dict[str, Tensor]:
    """Disjoint random parts of `count` items.

    The items are shuffled once and dealt out in the order of `parts`. Fractions that add up to 1
    leave no item over; items beyond the counts asked for belong to no part.

    Args:
        count: Number of items.
        parts: Name to size: all fractions in (0, 1] (floats), or all counts (ints).
        seed: Seed of the shuffle, the only randomness.
        groups: Group of each item, shape (count,), int64. Items of one group, such as conformers of
            one molecule or `duplicates`, never end in different parts; the sizes of the parts then
            are met only up to the size of a group.

    Returns:
        Name to indices, int64, in random order: the first k of a part are a random sample of it.

    Raises:
        EmptyData: If a part would be empty.
        UsageError: If the sizes are no fractions or counts, or more than there is.

    >>> {name: len(part) for name, part in split(10, {"train": 0.8, "val": 0.2}, seed=0).items()}
    {'train': 8, 'val': 2}
    """
    bounds = _bounds(count, parts)
    if groups is None:
        groups = torch.arange(count)
    elif groups.shape != (count,):
        raise ShapeError(f"split: found groups {tuple(groups.shape)}, expected ({count},).")
    _, member = torch.unique(groups, return_inverse=True)
    amount = int(member.max()) + 1 if count else 0
    rank = torch.empty(amount, dtype=torch.int64)
    rank[rng.permutation(amount, rng.generator(seed, "split"))] = torch.arange(amount)
    order = torch.argsort(rank[member], stable=True)
    # The middle of its group decides for an item, so that a group is never cut.
    size = torch.bincount(rank[member], minlength=amount)
    middle = torch.cumsum(size, 0).to(torch.float64) - size / 2
    position = torch.empty(count, dtype=torch.float64)
    position[order] = middle[rank[member][order]]
    within = position[order]
    chosen = {
        name: order[(within > low) & (within <= high)] for name, (low, high) in bounds.items()
    }
    empty = [name for name, part in chosen.items() if not part.numel()]
    if empty:
        sizes = ", ".join(f"{name} {part.numel()}" for name, part in chosen.items())
        raise EmptyData(
            f"split: found {count} items in {amount} groups for the parts {sizes}; "
            f"{', '.join(empty)} would be empty. Give more data, or other sizes (in a run "
            "data.validation and data.test)."
        )
    return chosen


def duplicates(clouds: Clouds) -> Tensor:
    """Group of each cloud, the same for clouds that are bitwise equal, shape (B,), int64."""
    x = clouds.x.detach().cpu().numpy()
    numbers = None if clouds.numbers is None else clouds.numbers.cpu().numpy()
    seen: dict[tuple[bytes, bytes], int] = {}
    ptr = clouds.ptr.tolist()
    groups = [
        seen.setdefault(
            (x[a:b].tobytes(), b"" if numbers is None else numbers[a:b].tobytes()), len(seen)
        )
        for a, b in pairwise(ptr)
    ]
    return torch.tensor(groups, dtype=torch.int64)


def formulas(clouds: Clouds) -> Tensor:
    """Group of each cloud, the same for clouds of one make-up, shape (B,), int64.

    Conformers of one molecule, and isomers, are of one group; without elements a make-up is a size.
    """
    numbers = clouds.segments.ids.new_zeros(len(clouds.x))
    if clouds.numbers is not None:
        numbers = clouds.numbers.to(numbers.device)
    kinds, kind = numbers.unique(return_inverse=True)
    counts = clouds.segments.sum(torch.nn.functional.one_hot(kind, len(kinds)))
    return counts.cpu().unique(dim=0, return_inverse=True)[1]


def _bounds(count: int, parts: Mapping[str, float | int]) -> dict[str, tuple[int, int]]:
    """First and last place of each part among the shuffled items, as (low, high]."""
    sizes = list(parts.values())
    fractions = all(isinstance(size, float) and 0 < size <= 1 for size in sizes)
    counts = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    total = sum(sizes)
    if not sizes or not (fractions or counts) or min(sizes) < 0:
        raise UsageError(
            f"split: found {dict(parts)}, expected fractions in (0, 1] for all parts, or counts "
            "for all parts."
        )
    if (fractions and total > 1 + 1e-9) or (counts and total > count):
        raise UsageError(
            f"split: found parts that add up to {total}, expected at most "
            f"{1 if fractions else count}. Ask for less."
        )
    ends, reached = [0], 0.0
    for size in sizes:
        reached += size
        ends.append(round(reached * count) if fractions else int(reached))
    return dict(zip(parts, pairwise(ends), strict=True))
