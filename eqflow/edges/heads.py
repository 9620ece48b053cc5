"""The graph in which each head of a node is a node of its own, for sums over rows of one head."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from eqflow.geometry.segments import Segments, lasting


class HeadEdges:
    """Edges of `H` heads: head `h` of node `i` is node `i H + h`, each edge is there once a head.

    They are sorted by receiver, and so by its node, its head and its edges: values (E, H) are
    brought to that order by `split` and back by `join`.

    Args:
        incoming: Edges grouped by receiver, one segment a node.
        sender: Node each edge comes from, shape (E,).
        heads: `H`, at least 1.
    """

    @lasting
    def __init__(self, incoming: Segments, sender: Tensor, heads: int) -> None:
        self.heads = heads
        rows = Segments.of_lengths(incoming.lengths.repeat_interleave(heads))
        head = rows.ids % heads
        edge = rows.place + rows.expand(incoming.ptr[:-1].repeat_interleave(heads))
        # There are so many of them that reading them takes time: of four bytes where that will do.
        index = torch.int32 if max(rows.count, rows.rows) < 2**31 else torch.int64
        self.ptr = rows.ptr.to(index)
        self.node = sender.index_select(0, edge).to(index)
        self.order = (edge * heads + head).to(index)

    @cached_property
    @lasting
    def sender(self) -> Tensor:
        """Head of a node that each edge comes from, shape (E H,)."""
        return self.node * self.heads + self.order % self.heads

    @cached_property
    @lasting
    def places(self) -> Tensor:
        """Inverse of `order`."""
        places = torch.empty_like(self.order)
        places[self.order.long()] = torch.arange(len(self.order)).to(places)
        return places

    def split(self, values: Tensor) -> Tensor:
        """(E, H) to (E H,) in the order of these edges."""
        return values.reshape(-1).index_select(0, self.order)

    def join(self, values: Tensor) -> Tensor:
        """The inverse of `split`."""
        return values.index_select(0, self.places).view(-1, self.heads)
