r"""Reductions over edges, without derivatives: two bilinear forms, gather, sum and softmax.

With `A` and `B` each one of "read at the receiver", "read at the sender" and their difference
`x_c − x_r`, every product in the set is one of

.. math:: \text{dot: } \langle (A p)_e, (B q)_e \rangle, \qquad
          \text{pull: } A^\top (w \odot B x),

and each is the derivative of the other. Node values are (N, H, C) for `H` heads of `C` channels,
edge weights (E, H). Where a tensor has fewer heads, head `h` reads `h` modulo their number.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.kernels.launch import (
    ACCUMULATOR,
    Tile,
    blocks,
    launch,
    tile_of_edges,
    tile_of_rows,
)
from eqflow.edges.kernels.primitive_kernels import (
    dot_kernel,
    gather_kernel,
    pull_kernel,
    segment_sum_kernel,
    softmax_kernel,
    softmax_sums_kernel,
)
from eqflow.edges.kernels.schedule import Schedule, ends_of, schedule_of
from eqflow.edges.primitives import End

Reading = Literal["receiver", "sender", "difference"]
Form = tuple[Reading, Reading]


def gather_rows(x: Tensor, edges: Edges, end: End) -> Tensor:
    """`x_r` or `x_c`, (N, K) to (E, K)."""
    receiver, sender = ends_of(edges)
    index = receiver if end == "receiver" else sender
    out, tile = x.new_empty(edges.count, x.shape[1]), tile_of_edges(x.shape[1])
    across = blocks(x.shape[1], tile.channels)
    launch(
        gather_kernel,
        blocks(edges.count, tile.edges) * across,
        *(out, x.contiguous(), index, edges.count, x.shape[1], across),
        EDGES=tile.edges,
        CHANNELS=tile.channels,
        num_warps=tile.warps,
    )
    return out


def sum_rows(m: Tensor, edges: Edges, end: End) -> Tensor:
    """`Σ_e m_e` over the edges at each node, (E, K) to (N, K)."""
    schedule = schedule_of(edges, end)
    out = buffer_of_sums(schedule, m, m.shape[1])
    edge = None if end == "receiver" else schedule.edge
    tile = tile_of_rows(m.shape[1], schedule.mean_length)
    _add_up(out, m.contiguous(), schedule.begin, schedule.length, schedule.slot, edge, tile)
    return combined(out, schedule).to(m.dtype)


def dot(p: Tensor, q: Tensor, form: Form, edges: Edges) -> Tensor:
    """`⟨(A p)_e, (B q)_e⟩` of heads (N, H, C), to (E, H)."""
    heads, channels = max(p.shape[1], q.shape[1]), p.shape[2]
    out, tile = p.new_empty(edges.count, heads), tile_of_edges(channels)
    launch(
        dot_kernel,
        blocks(edges.count, tile.edges) * heads,
        *(out, p.contiguous(), q.contiguous(), *ends_of(edges), edges.count),
        *(heads, p.shape[1], q.shape[1], channels),
        A=form[0],
        B=form[1],
        ACCUMULATOR=ACCUMULATOR[p.dtype][1],
        EDGES=tile.edges,
        CHANNELS=tile.channels,
        num_warps=tile.warps,
    )
    return out


def pull(w: Tensor, x: Tensor, form: Form, edges: Edges) -> Tensor:
    """`Aᵀ(w ⊙ B x)` of weights (E, H) and values (N, H, C), to (N, H, C)."""
    A, B = form
    w, x = w.contiguous(), x.contiguous()
    if A == "difference":
        out = _pull_rows(w, x, "sender", B, edges) - _pull_rows(w, x, "receiver", B, edges)
    else:
        out = _pull_rows(w, x, A, B, edges)
    return out.to(x.dtype)


def softmax(logits: Tensor, edges: Edges) -> Tensor:
    """`exp(l_e) / Σ_{e'→r} exp(l_e')` in each column, (E, H) to (E, H)."""
    schedule, heads = schedule_of(edges, "receiver"), logits.shape[1]
    logits = logits.contiguous()
    largest, total = (buffer_of_sums(schedule, logits, heads) for _ in range(2))
    tile = tile_of_rows(heads, schedule.mean_length)
    across = blocks(heads, tile.channels)
    launch(
        softmax_sums_kernel,
        blocks(schedule.chunks, tile.rows) * across,
        *(largest, total, logits, schedule.begin, schedule.length, schedule.slot),
        *(schedule.chunks, heads, across),
        ACCUMULATOR=ACCUMULATOR[logits.dtype][1],
        ROWS=tile.rows,
        EDGES=tile.edges,
        CHANNELS=tile.channels,
        num_warps=tile.warps,
    )
    combine_exponentials(largest, total, schedule)

    out, tile = torch.empty_like(logits), tile_of_edges(heads)
    across = blocks(heads, tile.channels)
    launch(
        softmax_kernel,
        blocks(edges.count, tile.edges) * across,
        *(out, logits, largest, total, ends_of(edges)[0], edges.count, heads, across),
        ACCUMULATOR=ACCUMULATOR[logits.dtype][1],
        EDGES=tile.edges,
        CHANNELS=tile.channels,
        num_warps=tile.warps,
    )
    return out


# Rows that were split.


def buffer_of_sums(schedule: Schedule, like: Tensor, *shape: int) -> Tensor:
    """Room for the sum of each row, and of each chunk of a split one, in the type of sums."""
    return like.new_empty(schedule.slots, *shape, dtype=ACCUMULATOR[like.dtype][0])


def combined(out: Tensor, schedule: Schedule) -> Tensor:
    """The sums of N rows: those of a split row's chunks are added up, in the order of its edges."""
    if schedule.split is not None:
        slots = schedule.split.slots
        start = slots.ptr[:-1] + schedule.nodes
        flat = out.flatten(1)
        tile = tile_of_rows(flat.shape[1], slots.rows / slots.count)
        _add_up(flat, flat, start, slots.lengths, schedule.split.row, None, tile)
    return out[: schedule.nodes]


def combine_exponentials(largest: Tensor, total: Tensor, schedule: Schedule) -> Tensor | None:
    """Bring the sums of a split row's chunks to one largest exponent and add them up, in place.

    Args:
        largest: Largest logit of each row or chunk, (N + K, H).
        total: Sum of `exp(l − largest)`, the same shape.
        schedule: Which chunks belong together.

    Returns:
        Share in its row of each chunk's sum, (K, H), or None where no row is split.
    """
    if schedule.split is None:
        return None
    slots, row = schedule.split.slots, schedule.split.row.long()
    largest[row] = slots.max(largest[schedule.nodes :])
    of_row = slots.expand(largest[row])
    share = torch.where(of_row == float("-inf"), 1.0, (largest[schedule.nodes :] - of_row).exp())
    total[schedule.nodes :] *= share
    combined(total, schedule)
    return share


def _pull_rows(w: Tensor, x: Tensor, end: End, reading: Reading, edges: Edges) -> Tensor:
    schedule = schedule_of(edges, end)
    heads, channels = w.shape[1], x.shape[2]
    out = buffer_of_sums(schedule, x, heads, channels)
    tile = tile_of_rows(channels, schedule.mean_length)
    across = blocks(channels, tile.channels)
    launch(
        pull_kernel,
        blocks(schedule.chunks, tile.rows) * heads * across,
        *(out, w, x, schedule.begin, schedule.length, schedule.row, schedule.slot),
        *(schedule.edge, schedule.other, schedule.chunks, heads, x.shape[1], channels, across),
        ROW=end,
        B=reading,
        ACCUMULATOR=ACCUMULATOR[x.dtype][1],
        ROWS=tile.rows,
        EDGES=tile.edges,
        CHANNELS=tile.channels,
        num_warps=tile.warps,
    )
    return combined(out, schedule)


def _add_up(
    out: Tensor,
    m: Tensor,
    begin: Tensor,
    length: Tensor,
    slot: Tensor,
    edge: Tensor | None,
    tile: Tile,
) -> None:
    """Row `slot` of `out` is the sum of `length` rows of `m`, (…, K), from `begin` on."""
    across = blocks(m.shape[1], tile.channels)
    launch(
        segment_sum_kernel,
        blocks(slot.numel(), tile.rows) * across,
        *(out, m, begin, length, slot, slot if edge is None else edge),
        *(slot.numel(), m.shape[1], across),
        IN_ORDER=edge is None,
        ACCUMULATOR=ACCUMULATOR[m.dtype][1],
        ROWS=tile.rows,
        EDGES=tile.edges,
        CHANNELS=tile.channels,
        num_warps=tile.warps,
    )
