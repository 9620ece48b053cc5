"""`Edges`: who talks to whom, sorted by receiver, with the transposed order at hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eqflow.edges.heads import HeadEdges
from eqflow.edges.neighbours import nearest_pairs, pairs_within
from eqflow.edges.wellformed import degrees_of_all_pairs, require_graph, require_index
from eqflow.geometry.segments import Segments, lasting, without_derived


@dataclass(frozen=True)
class Block:
    """Consecutive receivers with all their incoming edges.

    Attributes:
        rows: Which edges.
        sender, receiver: Nodes of these edges.
    """

    rows: slice
    sender: Tensor
    receiver: Tensor

    def add_to_receivers(self, total: Tensor, m: Tensor) -> None:
        """Add `Σ_{e→i} m_e` to `total` (N, …), in place."""
        total.index_add_(0, self.receiver, m)


class Edges:
    """Directed edges `sender → receiver` over packed clouds, in CSR order.

    Edges of one receiver are consecutive, so a reduction over incoming edges is a segment sum; the
    order by sender (CSC) for the transposed operations is made when first asked for. Repeated edges
    and self loops are kept as given. A copy and a pickle hold the graph alone, without what was
    derived from it.

    Args:
        incoming: Edges grouped by receiver, one segment a node.
        clouds: Nodes grouped by cloud.
        sender: Node each edge comes from, shape (E,), int64; None for the complete graph, whose
            pairs are implied by `clouds`.
        order: For edges made from a list, the place in that list of each edge, shape (E,): edge
            attributes in the list's order become `attributes[edges.order]`.

    Raises:
        ShapeError: If the parts do not fit each other, an index is no node, or an edge joins two
            clouds.
    """

    def __init__(
        self,
        incoming: Segments,
        clouds: Segments,
        sender: Tensor | None = None,
        order: Tensor | None = None,
    ) -> None:
        require_graph(incoming, clouds, sender, order)
        self._set(incoming, clouds, sender, order)

    def _set(
        self, incoming: Segments, clouds: Segments, sender: Tensor | None, order: Tensor | None
    ) -> None:
        self.incoming = incoming
        self.clouds = clouds
        self.order = order
        self._sender = sender
        self._blocks: dict[int, list[Block]] = {}
        self._heads: dict[int, HeadEdges] = {}

    @classmethod
    def trusted(
        cls,
        incoming: Segments,
        clouds: Segments,
        sender: Tensor | None = None,
        order: Tensor | None = None,
    ) -> Edges:
        """As the constructor, of parts that are known to fit: looking at them takes time."""
        edges = cls.__new__(cls)
        edges._set(incoming, clouds, sender, order)
        return edges

    @classmethod
    @lasting
    def complete(cls, ptr: Tensor | Segments) -> Edges:
        """Every ordered pair of different nodes within each cloud.

        The pairs are implied by `ptr`; `sender` and `receiver` are only made when asked for.
        """
        clouds = Segments.of(ptr)
        return cls.trusted(Segments.of_lengths(degrees_of_all_pairs(clouds)), clouds)

    @classmethod
    @lasting
    def radius(cls, x: Tensor, r: float, ptr: Tensor | Segments | None = None) -> Edges:
        """Every ordered pair within a cloud at most `r` apart, self loops excluded.

        Args:
            x: Positions, shape (N, d).
            r: Cutoff in the unit of `x`, positive and finite.
            ptr: Start of each cloud, shape (B + 1,); one cloud where None.

        Raises:
            UsageError: If the cutoff is not positive and finite.
            NumericalError: If a position is not finite.
        """
        clouds = _grouped(ptr, x.shape[0], x.device)
        return cls._from_pairs(*pairs_within(x, r, clouds), clouds)

    @classmethod
    @lasting
    def knn(cls, x: Tensor, k: int, ptr: Tensor | Segments | None = None) -> Edges:
        """From each node's `k` nearest neighbours within its cloud (all, where it has fewer).

        Among neighbours at one distance the choice is arbitrary.

        Args:
            x: Positions, shape (N, d).
            k: Number of neighbours, at least 1.
            ptr: Start of each cloud, shape (B + 1,); one cloud where None.
        """
        clouds = _grouped(ptr, x.shape[0], x.device)
        return cls._from_pairs(*nearest_pairs(x, k, clouds), clouds)

    @classmethod
    @lasting
    def from_index(cls, edge_index: Tensor, n: int, ptr: Tensor | Segments | None = None) -> Edges:
        """Edges of a PyG `edge_index`, shape (2, E): row 0 senders, row 1 receivers.

        Args:
            edge_index: Any order, repeated edges and self loops allowed; int64.
            n: Number of nodes.
            ptr: Start of each graph where there are several; one graph otherwise.

        Raises:
            ShapeError: If the shape or type is wrong, an index is outside `0 … n − 1`, `ptr` does
                not end at `n`, or an edge joins two graphs.
        """
        clouds = _grouped(ptr, n, edge_index.device)
        require_index(edge_index, n, clouds)
        sender, receiver = edge_index
        order = torch.argsort(receiver, stable=True)
        return cls._from_pairs(sender[order], receiver[order], clouds, order)

    @classmethod
    def _from_pairs(
        cls, sender: Tensor, receiver: Tensor, clouds: Segments, order: Tensor | None = None
    ) -> Edges:
        degree = torch.bincount(receiver, minlength=clouds.rows)
        return cls.trusted(Segments.of_lengths(degree), clouds, sender, order)

    @cached_property
    @lasting
    def sender(self) -> Tensor:
        """Node each edge comes from, shape (E,)."""
        if self._sender is not None:
            return self._sender
        # The k-th sender of a node is node k of its cloud, or k + 1 from the node itself on.
        k = self.incoming.place
        start = self.clouds.expand(self.clouds.ptr[:-1])
        return self.incoming.expand(start) + k + (k >= self.incoming.expand(self.clouds.place))

    @property
    def is_complete(self) -> bool:
        """Whether these are all ordered pairs of each cloud, implied by its size."""
        return self._sender is None

    @property
    def receiver(self) -> Tensor:
        """Node each edge goes to, shape (E,), rising."""
        return self.incoming.ids

    @property
    def nodes(self) -> int:
        """Number of nodes, N."""
        return self.incoming.count

    @property
    def count(self) -> int:
        """Number of directed edges, E."""
        return self.incoming.rows

    @cached_property
    @lasting
    def by_sender(self) -> Tensor:
        """The edges in CSC order: place in CSR order of each edge when sorted by sender, (E,)."""
        return torch.argsort(self.sender, stable=True)

    @cached_property
    @lasting
    def from_sender_order(self) -> Tensor:
        """Place in CSC order of each edge, (E,): the inverse of `by_sender`."""
        places = torch.empty_like(self.by_sender)
        places[self.by_sender] = torch.arange(self.count, device=places.device)
        return places

    @cached_property
    @lasting
    def outgoing(self) -> Segments:
        """Edges in CSC order grouped by sender, one segment a node."""
        return Segments.of_lengths(torch.bincount(self.sender, minlength=self.nodes))

    @cached_property
    @lasting
    def without_incoming(self) -> Tensor:
        """Nodes that no edge goes to."""
        return (self.incoming.lengths == 0).nonzero().squeeze(1)

    def by_heads(self, heads: int) -> HeadEdges:
        """The same edges between heads of nodes, each edge once a head."""
        if heads not in self._heads:
            self._heads[heads] = HeadEdges(self.incoming, self.sender, heads)
        return self._heads[heads]

    def blocks(self, size: int) -> list[Block]:
        """All edges in blocks of whole receivers with at most `size` edges, or of one receiver."""
        if size not in self._blocks:
            self._blocks[size] = self._cut(size)
        return self._blocks[size]

    @lasting
    def _cut(self, size: int) -> list[Block]:
        ptr = self.incoming.ptr.cpu()
        blocks, first = [], 0
        while first < self.nodes:
            start = int(ptr[first])
            last = int(torch.searchsorted(ptr, start + size, right=True)) - 1
            first = max(last, first + 1)
            rows = slice(start, int(ptr[first]))
            if rows.stop > rows.start:
                blocks.append(Block(rows, self.sender[rows], self.receiver[rows]))
        return blocks

    def transposed(self) -> Edges:
        """The same graph with sender and receiver of every edge exchanged.

        Its edges stand in CSC order of this graph: `values[edges.transposed().order]` carries edge
        values over, and `values[edges.from_sender_order]` carries them back. Made once.

        >>> edges = Edges.from_index(torch.tensor([[0, 0, 1], [1, 2, 2]]), 3)
        >>> back = edges.transposed()
        >>> back.sender, back.receiver, back.order
        (tensor([1, 2, 2]), tensor([0, 0, 1]), tensor([0, 1, 2]))
        """
        return self._transposed

    @cached_property
    @lasting
    def _transposed(self) -> Edges:
        # All pairs of a cloud are so turned round too, and stay implied.
        sender = None if self.is_complete else self.receiver.index_select(0, self.by_sender)
        turned = Edges.trusted(self.outgoing, self.clouds, sender, self.by_sender)
        # Known already, and so that turned round twice it is in the order it was.
        vars(turned).update(by_sender=self.from_sender_order, outgoing=self.incoming)
        return turned

    @cached_property
    @lasting
    def is_symmetric(self) -> bool:
        """Whether each edge is there as often as the one the other way."""
        if self.is_complete:
            return True
        one = self.receiver * self.nodes + self.sender
        other = self.sender * self.nodes + self.receiver
        return torch.equal(one.sort().values, other.sort().values)

    @lasting
    def undirected(self) -> Edges:
        """Both directions of every edge, once each; a self loop once.

        Edges of one receiver are sorted by sender. `order` says where each was first in the list of
        this graph's edges with, after them, the same edges turned round: edge values become
        `torch.cat([values, values])[edges.undirected().order]`.

        >>> edges = Edges.from_index(torch.tensor([[0, 0, 2], [1, 1, 1]]), 3)
        >>> both = edges.undirected()
        >>> both.sender, both.receiver
        (tensor([1, 0, 2, 1]), tensor([0, 1, 1, 2]))
        """
        sender = torch.cat([self.sender, self.receiver])
        receiver = torch.cat([self.receiver, self.sender])
        keys, order = torch.sort(receiver * self.nodes + sender, stable=True)
        is_first = torch.ones_like(keys, dtype=torch.bool)
        is_first[1:] = keys[1:] != keys[:-1]
        order = order[is_first]
        return Edges._from_pairs(sender[order], receiver[order], self.clouds, order)

    @lasting
    def with_self_loops(self) -> Edges:
        """The same graph with a self loop at every node that has none.

        A loop that is added stands after the edges its node receives, which keep their order.
        `order` is the place in the list of this graph's edges with, after them, the loops added, by
        node: edge values become `torch.cat([values, of_loops])[edges.with_self_loops().order]`.

        >>> edges = Edges.from_index(torch.tensor([[0, 1], [1, 1]]), 3)
        >>> looped = edges.with_self_loops()
        >>> looped.sender, looped.receiver, looped.order
        (tensor([0, 0, 1, 2]), tensor([0, 1, 1, 2]), tensor([2, 0, 1, 3]))
        """
        has_none = torch.ones(self.nodes, dtype=torch.bool, device=self.sender.device)
        has_none[self.sender[self.sender == self.receiver]] = False
        added = has_none.nonzero().squeeze(1)
        sender, receiver = torch.cat([self.sender, added]), torch.cat([self.receiver, added])
        order = torch.argsort(receiver, stable=True)
        return Edges._from_pairs(sender[order], receiver[order], self.clouds, order)

    @lasting
    def to(self, device: torch.device | str) -> Edges:
        """The same graph on a device, itself where it is there already.

        What was derived from the graph is made anew on the other device.
        """
        ptr = self.incoming.ptr
        if ptr.to(device).device == ptr.device:
            return self
        sender = None if self._sender is None else self._sender.to(device)
        order = None if self.order is None else self.order.to(device)
        clouds = Segments(self.clouds.ptr.to(device))
        return Edges.trusted(Segments(ptr.to(device)), clouds, sender, order)

    @lasting
    def repeat(self, copies: int) -> Edges:
        """The same graph `copies` times side by side, as one larger batch."""
        clouds = Segments.of_lengths(self.clouds.lengths.repeat(copies))
        incoming = Segments.of_lengths(self.incoming.lengths.repeat(copies))
        if self.is_complete:
            return Edges.trusted(incoming, clouds)
        shift = torch.arange(copies, device=self.sender.device) * self.nodes
        sender = (self.sender + shift.unsqueeze(1)).reshape(-1)
        return Edges.trusted(incoming, clouds, sender)

    def __getstate__(self) -> dict[str, Any]:
        return without_derived(self) | {"_blocks": {}, "_heads": {}}

    def __repr__(self) -> str:
        kind = "complete, " if self.is_complete else ""
        return f"Edges({kind}{self.count} edges, {self.nodes} nodes, {self.clouds.count} clouds)"


def _grouped(ptr: Tensor | Segments | None, nodes: int, device: torch.device) -> Segments:
    """The clouds that `ptr` names, or all nodes as one."""
    return Segments(torch.tensor([0, nodes], device=device)) if ptr is None else Segments.of(ptr)
