"""Tiles: consecutive receivers packed until their edges fill one program of a fused kernel.

A program works on at most `M` edges of at most `R` rows at once. A row is a receiver; one with
more than `M` incoming edges becomes several rows, whose partial sums `Tiles.combine` adds up in
order. Whole rows to a tile means that no two programs write to one place: no atomics, and the same
result every time. A table of tiles is made once per graph and serves all layers and evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import triton
from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.kernels.rows import sum_pieces
from eqflow.edges.kernels.schedule import ends_of
from eqflow.geometry.segments import Segments

# Products on tensor cores are at least this many rows high.
FEWEST_ROWS = 16
MOST_ROWS = 64


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which edges and rows each program of a fused kernel owns.

    Attributes:
        rows: Edges grouped by row, P segments.
        row_of_edge: Shape (E,).
        tile_ptr: First row of each tile and, last, the number of rows, shape (T + 1,).
        pieces: Rows grouped by receiver, N segments, where some receiver has several; else None.
        edges_per_tile: M.
        rows_per_tile: R.
    """

    rows: Segments
    row_of_edge: Tensor
    tile_ptr: Tensor
    pieces: Segments | None
    edges_per_tile: int
    rows_per_tile: int

    @property
    def count(self) -> int:
        """Number of tiles, T."""
        return self.tile_ptr.numel() - 1

    def combine(self, partial: Tensor) -> Tensor:
        """Sums by row to sums by receiver, (P, …) to (N, …)."""
        return partial if self.pieces is None else sum_pieces(partial, self.pieces.ptr)


_tables: WeakKeyDictionary[Edges, dict[int, Tiles]] = WeakKeyDictionary()


def tiles_of(edges: Edges, edges_per_tile: int) -> Tiles:
    """The tiles of a graph, made when first asked for.

    Args:
        edges: The graph.
        edges_per_tile: M, a power of two.
    """
    tables = _tables.setdefault(edges, {})
    if edges_per_tile not in tables:
        tables[edges_per_tile] = _pack(edges, edges_per_tile)
    return tables[edges_per_tile]


def _pack(edges: Edges, M: int) -> Tiles:
    pieces, rows, (row_of_edge, _) = None, edges.incoming, ends_of(edges)
    if edges.incoming.longest > M:
        pieces, rows = _split(edges.incoming, M)
        row_of_edge = rows.ids.to(row_of_edge.dtype)
    R = _rows_per_tile(rows, M)
    return Tiles(rows, row_of_edge, _greedy(rows.ptr, M, R), pieces, M, R)


def _split(incoming: Segments, M: int) -> tuple[Segments, Segments]:
    """Each receiver's edges cut into rows of at most `M`: (rows by receiver, edges by row)."""
    pieces = Segments.of_lengths(((incoming.lengths + M - 1) // M).clamp(min=1))
    start = pieces.expand(incoming.ptr[:-1]) + pieces.place * M
    return pieces, Segments(torch.cat([start, incoming.ptr[-1:]]))


def _rows_per_tile(rows: Segments, M: int) -> int:
    """Enough rows that `M` edges of the mean degree fit, within what a kernel is compiled for."""
    mean = max(rows.rows / max(rows.count, 1), 1.0)
    return min(max(triton.next_power_of_2(round(M / mean)), FEWEST_ROWS), MOST_ROWS)


def _greedy(ptr: Tensor, M: int, R: int) -> Tensor:
    """First row of each tile when every tile takes as many rows as fit, shape (T + 1,).

    Where the tile that starts at row `r` ends is known for every `r` at once; which rows do start
    one follows from row 0 by doubling the stride of that map, without a loop over tiles.
    """
    count = ptr.numel() - 1
    row = torch.arange(count + 1, device=ptr.device)
    fitting = torch.searchsorted(ptr, ptr + M, right=True) - 1
    ends = torch.minimum(fitting, row + R).clamp(max=count)
    starts = row == 0
    for _ in range(max(count, 1).bit_length()):
        starts = starts.index_fill(0, ends[starts], True)
        ends = ends[ends]
    return starts.nonzero().squeeze(1)
