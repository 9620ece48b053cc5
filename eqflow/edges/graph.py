"""`Edges`: who talks to whom, sorted by receiver, with the transposed order at hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eqflow.edges.neighbours import nearest_pairs, pairs_within
from eqflow.errors import ShapeError
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
    """

    def __init__(
        self,
        incoming: Segments,
        clouds: Segments,
        sender: Tensor | None = None,
        order: Tensor | None = None,
    ) -> None:
        self.incoming = incoming
        self.clouds = clouds
        self.order = order
        self._sender = sender
        self._blocks: dict[int, list[Block]] = {}

    @classmethod
    @lasting
    def complete(cls, ptr: Tensor | Segments) -> Edges:
        """Every ordered pair of different nodes within each cloud.

        The pairs are implied by `ptr`; `sender` and `receiver` are only made when asked for.
        """
        clouds = Segments.of(ptr)
        degree = (clouds.expand(clouds.lengths) - 1).clamp(min=0)
        return cls(Segments.of_lengths(degree), clouds)

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
        if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
            raise ShapeError(
                f"edge_index: found {tuple(edge_index.shape)} of {edge_index.dtype}, "
                "expected (2, E) of torch.int64."
            )
        if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= n):
            raise ShapeError(
                f"edge_index: found indices from {int(edge_index.min())} to "
                f"{int(edge_index.max())}, expected 0 to {n - 1}."
            )
        clouds = _grouped(ptr, n, edge_index.device)
        if clouds.rows != n:
            raise ShapeError(f"ptr: ends at {clouds.rows}, expected n = {n}.")
        sender, receiver = edge_index
        if clouds.count > 1 and (clouds.ids[sender] != clouds.ids[receiver]).any():
            first = int((clouds.ids[sender] != clouds.ids[receiver]).nonzero()[0])
            raise ShapeError(
                f"edge_index: edge {first}, {int(sender[first])} → {int(receiver[first])}, joins "
                "two graphs of ptr, expected both ends in one. Pass no ptr if it is one graph."
            )
        order = torch.argsort(receiver, stable=True)
        return cls._from_pairs(sender[order], receiver[order], clouds, order)

    @classmethod
    def _from_pairs(
        cls, sender: Tensor, receiver: Tensor, clouds: Segments, order: Tensor | None = None
    ) -> Edges:
        degree = torch.bincount(receiver, minlength=clouds.rows)
        return cls(Segments.of_lengths(degree), clouds, sender, order)

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
    def outgoing(self) -> Segments:
        """Edges in CSC order grouped by sender, one segment a node."""
        return Segments.of_lengths(torch.bincount(self.sender, minlength=self.nodes))

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

    @lasting
    def repeat(self, copies: int) -> Edges:
        """The same graph `copies` times side by side, as one larger batch."""
        clouds = Segments.of_lengths(self.clouds.lengths.repeat(copies))
        incoming = Segments.of_lengths(self.incoming.lengths.repeat(copies))
        if self.is_complete:
            return Edges(incoming, clouds)
        shift = torch.arange(copies, device=self.sender.device) * self.nodes
        return Edges(incoming, clouds, (self.sender + shift.unsqueeze(1)).reshape(-1))

    def __getstate__(self) -> dict[str, Any]:
        return without_derived(self) | {"_blocks": {}}

    def __repr__(self) -> str:
        kind = "complete, " if self.is_complete else ""
        return f"Edges({kind}{self.count} edges, {self.nodes} nodes, {self.clouds.count} clouds)"


def _grouped(ptr: Tensor | Segments | None, nodes: int, device: torch.device) -> Segments:
    """The clouds that `ptr` names, or all nodes as one."""
    return Segments(torch.tensor([0, nodes], device=device)) if ptr is None else Segments.of(ptr)
