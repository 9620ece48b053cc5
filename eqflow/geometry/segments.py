"""Consecutive rows that belong together: the nodes of a cloud, the incoming edges of a node.

Segment `b` owns rows `ptr[b]` to `ptr[b + 1]`. Sums over segments are deterministic on CPU. Where
all segments have one length a sum is a reshape and needs no scatter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from eqflow.errors import ShapeError

P = ParamSpec("P")
R = TypeVar("R")


def lasting(function: Callable[P, R]) -> Callable[P, R]:
    """Make indices that outlive inference mode: one made in it is of no use to a backward pass."""

    @wraps(function)
    def outside(*args: P.args, **options: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **options)

    return outside


def without_derived(self: object) -> dict[str, Any]:
    """What a copy and a pickle hold of an object: all but its cached properties."""
    members = (member for kind in type(self).__mro__ for member in vars(kind).items())
    derived = {name for name, member in members if isinstance(member, cached_property)}
    return {name: value for name, value in vars(self).items() if name not in derived}


class Segments:
    """Rows grouped by `ptr`, with reductions that can be differentiated any number of times.

    Args:
        ptr: Start of each segment and, last, the number of rows; shape (B + 1,), int64.

    Raises:
        ShapeError: If `ptr` is not a rising int64 vector that starts at 0.

    >>> rows = Segments(torch.tensor([0, 2, 5]))
    >>> rows.sum(torch.arange(5.0))
    tensor([1., 9.])
    """

    @lasting
    def __init__(self, ptr: Tensor) -> None:
        if ptr.dim() != 1 or ptr.numel() < 1 or ptr.dtype != torch.int64:
            raise ShapeError(
                f"ptr: found shape {tuple(ptr.shape)} of {ptr.dtype}, "
                "expected (B + 1,) of torch.int64."
            )
        lengths = ptr[1:] - ptr[:-1]
        if int(ptr[0]) != 0 or (lengths < 0).any():
            raise ShapeError(
                "ptr: expected to start at 0 and never to fall; "
                f"found {ptr[:6].tolist()}{'…' if ptr.numel() > 6 else ''}."
            )
        self.ptr = ptr
        self.lengths = lengths

    __getstate__ = without_derived

    @classmethod
    def of(cls, ptr: Tensor | Segments) -> Segments:
        """`ptr` itself where it is `Segments` already."""
        return ptr if isinstance(ptr, Segments) else cls(ptr)

    @classmethod
    @lasting
    def of_lengths(cls, lengths: Tensor) -> Segments:
        """Segments of the given lengths, shape (B,)."""
        ptr = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
        torch.cumsum(lengths, 0, out=ptr[1:])
        return cls(ptr)

    @property
    def count(self) -> int:
        """Number of segments, B."""
        return self.ptr.numel() - 1

    @cached_property
    def rows(self) -> int:
        """Number of rows, N."""
        return int(self.ptr[-1])

    @cached_property
    def longest(self) -> int:
        """Length of the longest segment, 0 where there is none."""
        return int(self.lengths.max()) if self.count else 0

    @cached_property
    def uniform(self) -> int | None:
        """The length all segments share, or None."""
        if self.count == 0 or self.longest * self.count != self.rows:
            return None
        return self.longest

    @cached_property
    @lasting
    def ids(self) -> Tensor:
        """Segment of each row, shape (N,)."""
        every = torch.arange(self.count, device=self.ptr.device)
        return every.repeat_interleave(self.lengths, output_size=self.rows)

    @cached_property
    @lasting
    def place(self) -> Tensor:
        """Place of each row within its segment, shape (N,)."""
        return torch.arange(self.rows, device=self.ptr.device) - self.expand(self.ptr[:-1])

    def sum(self, values: Tensor) -> Tensor:
        """Sum of each segment's rows, (N, …) to (B, …)."""
        self._check(values, self.rows, "rows")
        if self.uniform is not None:
            return values.reshape(self.count, self.uniform, *values.shape[1:]).sum(1)
        return values.new_zeros(self.count, *values.shape[1:]).index_add(0, self.ids, values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of each segment's rows, (N, …) to (B, …); zero where a segment is empty."""
        lengths = self.lengths.clamp(min=1).to(values.dtype)
        return self.sum(values) / lengths.reshape(-1, *[1] * (values.dim() - 1))

    def max(self, values: Tensor) -> Tensor:
        """Largest row of each segment, (N, …) to (B, …); −∞ where a segment is empty."""
        self._check(values, self.rows, "rows")
        if self.uniform:
            return values.reshape(self.count, self.uniform, *values.shape[1:]).amax(1)
        lowest = values.new_full((self.count, *values.shape[1:]), float("-inf"))
        index = self.ids.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
        return lowest.scatter_reduce(0, index, values, "amax")

    def expand(self, values: Tensor) -> Tensor:
        """Each segment's value repeated for its rows, (B, …) to (N, …)."""
        self._check(values, self.count, "segments")
        if self.uniform is not None:
            shape = (self.count, self.uniform, *values.shape[1:])
            return values.unsqueeze(1).expand(shape).reshape(self.rows, *values.shape[1:])
        return values.index_select(0, self.ids)

    def to_dense(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Rows padded to the longest segment, (N, …) to (B, L, …)."""
        self._check(values, self.rows, "rows")
        if self.uniform is not None:
            return values.reshape(self.count, self.uniform, *values.shape[1:])
        dense = values.new_full((self.count, self.longest, *values.shape[1:]), fill)
        return dense.index_put((self.ids, self.place), values)

    def from_dense(self, dense: Tensor) -> Tensor:
        """The inverse of `to_dense`, (B, L, …) to (N, …)."""
        if self.uniform is not None:
            return dense.reshape(self.rows, *dense.shape[2:])
        return dense[self.ids, self.place]

    def select(self, chosen: Tensor) -> tuple[Segments, Tensor]:
        """The segments named by `chosen` (K,), in that order, and the rows they own, (M,)."""
        picked = Segments.of_lengths(self.lengths[chosen])
        rows = picked.expand(self.ptr[:-1][chosen]) + picked.place
        return picked, rows

    def _check(self, values: Tensor, expected: int, what: str) -> None:
        if values.dim() == 0 or values.shape[0] != expected:
            raise ShapeError(
                f"segments: found values of shape {tuple(values.shape)}, "
                f"expected the first axis to be the {expected} {what}."
            )
