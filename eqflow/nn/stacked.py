"""What is done with tensors of clouds of one size, stacked: receivers `r` before senders `s`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers in what one sender sends: several of these have to fit a core's cache, and to fill a GPU.
CPU_CACHE = 2**16
GPU_CACHE = 2**25


def differences(x: Tensor) -> Tensor:
    """`x_s − x_r`, (B, n, d) to (B, r, s, d)."""
    return x.unsqueeze(1) - x.unsqueeze(2)


def squared(difference: Tensor) -> Tensor:
    """Squared length over the last axis."""
    return difference.square().sum(-1)


def own_of(tangents: Tensor, points: slice, axis: int = 3) -> Tensor:
    """Those of P points along their own directions, a view.

    Args:
        tangents: Shape (B, n, …, P, …).
        points: Which of the n the P are.
        axis: That of the P.

    Returns:
        Shape (B, P, …), the other axes in their order.
    """
    return torch.diagonal(tangents[:, points], dim1=1, dim2=axis).movedim(-1, 1)


def joined(by_receivers: Tensor, by_senders: Tensor) -> Tensor:
    """What is read at receivers and at senders, (B, n, k n, S) each, of edges (B, n, k, n, S).

    The first of them is overwritten.
    """
    B, n, _, S = by_receivers.shape
    read = by_receivers.view(B, n, -1, n, S)
    read += by_senders.view(B, n, -1, n, S).transpose(1, 3)
    return read


def chunks(count: int, rows: int, one: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Of clouds with so many rows, some at a time, and room for two tensors like `one` of each.

    The room is used again and again: allocating costs more than a pass over it.

    Yields:
        Which of B clouds and R rows; two tensors (B, R, …), whatever is in them.
    """
    budget = (GPU_CACHE if one.is_cuda else CPU_CACHE) // max(one.numel(), 1)
    most = min(max(budget // rows, 1), count) * min(max(budget, 1), rows)
    room = one.new_empty(2, most, *one.shape)
    for clouds in slices(count, budget // rows):
        for chosen in slices(rows, budget):
            shape = clouds.stop - clouds.start, chosen.stop - chosen.start
            sent, moved = (part[: shape[0] * shape[1]].unflatten(0, shape) for part in room)
            yield clouds, chosen, sent, moved


def slices(count: int, most: int) -> Iterator[slice]:
    """Of `count` rows, at most so many together, and one at least."""
    size = max(most, 1)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
