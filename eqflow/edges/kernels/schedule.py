"""Who works on which edges: rows of a graph cut into chunks of bounded length.

A sum over the edges at a node is done by one program, without atomics. A node with very many edges
would hold up everyone else, so its row is cut: each chunk leaves a partial sum in a slot of its
own behind the N nodes', and a second, short pass adds those up in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.primitives import End
from eqflow.geometry.segments import Segments

# No program is to have more than a few times the work of another, nor much more to write than to
# read: a chunk's partial sum is at most 1/64 of what was added up.
LONGEST_OVER_MEAN = 8
SHORTEST_LIMIT = 64
LONGEST_LIMIT = 1024


@dataclass(frozen=True)
class Split:
    """Rows of more than one chunk, S of them.

    Attributes:
        row: Node of each, shape (S,).
        slots: The K slots of their chunks, grouped by row; slot `k` is row `N + k` of a buffer.
    """

    row: Tensor
    slots: Segments


@dataclass(frozen=True)
class Schedule:
    """The edges at one end, chunk by chunk, long ones first.

    Attributes:
        end: Which end the rows are: "receiver" is CSR order, "sender" CSC.
        nodes: Number of rows, N.
        mean_length: Mean number of edges a chunk.
        begin: Place of each chunk's first edge in this order, shape (P,).
        length: Number of its edges, shape (P,).
        row: Node it belongs to, shape (P,).
        slot: Where its sum goes: the node, or a slot from N on where the row is split; shape (P,).
        edge: Place in CSR order of each edge in this order, shape (E,); that place itself for CSR.
        other: Node at the other end, in this order, shape (E,).
        split: The rows of more than one chunk, or None.
    """

    end: End
    nodes: int
    mean_length: float
    begin: Tensor
    length: Tensor
    row: Tensor
    slot: Tensor
    edge: Tensor
    other: Tensor
    split: Split | None

    @property
    def chunks(self) -> int:
        """Number of chunks, P."""
        return self.row.numel()

    @property
    def slots(self) -> int:
        """Rows of a buffer of sums: N, and one for each chunk of a split row."""
        return self.nodes + (self.split.slots.rows if self.split else 0)


_schedules: WeakKeyDictionary[Edges, dict[End, Schedule]] = WeakKeyDictionary()
_ends: WeakKeyDictionary[Edges, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def schedule_of(edges: Edges, end: End) -> Schedule:
    """The schedule of the edges at one end, made once for each graph."""
    made = _schedules.setdefault(edges, {})
    if end not in made:
        made[end] = _cut(edges, end)
    return made[end]


def ends_of(edges: Edges) -> tuple[Tensor, Tensor]:
    """Receiver and sender of each edge, shape (E,) both, as narrow as indices can be."""
    if edges not in _ends:
        _ends[edges] = _narrow(edges.receiver, edges), _narrow(edges.sender, edges)
    return _ends[edges]


def _cut(edges: Edges, end: End) -> Schedule:
    rows = edges.incoming if end == "receiver" else edges.outgoing
    receiver, sender = ends_of(edges)
    if end == "receiver":
        edge, other = torch.arange(edges.count, device=receiver.device), sender
    else:
        edge = edges.by_sender
        other = receiver[edge]

    limit = _longest_chunk(rows)
    chunks = Segments.of_lengths(((rows.lengths + limit - 1) // limit).clamp(min=1))
    row, place = chunks.ids, chunks.place
    length = (rows.lengths[row] - place * limit).clamp(max=limit)
    is_split = chunks.lengths[row] > 1
    slot = torch.where(is_split, rows.count - 1 + is_split.cumsum(0), row)
    # Neighbours in the list share a program, so they had better be of like length.
    order = torch.argsort(length, descending=True, stable=True)

    split = None
    if rows.longest > limit:
        long = (chunks.lengths > 1).nonzero().squeeze(1)
        split = Split(_narrow(long, edges), Segments.of_lengths(chunks.lengths[long]))
    begin = rows.ptr[row] + place * limit
    return Schedule(
        end=end,
        nodes=rows.count,
        mean_length=edges.count / max(chunks.rows, 1),
        begin=_narrow(begin[order], edges),
        length=_narrow(length[order], edges),
        row=_narrow(row[order], edges),
        slot=_narrow(slot[order], edges),
        edge=_narrow(edge, edges),
        other=other,
        split=split,
    )


def _longest_chunk(rows: Segments) -> int:
    occupied = int((rows.lengths > 0).sum())
    longest = LONGEST_OVER_MEAN * rows.rows // max(occupied, 1)
    return min(max(longest, SHORTEST_LIMIT), LONGEST_LIMIT)


def _narrow(index: Tensor, edges: Edges) -> Tensor:
    """Half the traffic of int64, wherever the graph lets it."""
    largest = torch.iinfo(torch.int32).max
    # Slots are fewer than edges and nodes together.
    return index if edges.count + edges.nodes > largest else index.to(torch.int32)
