"""The passes of attention diffusion on tensors: the value, and its derivatives by recomputation.

Query and key are (N, H, C), the values (N, H, D), or (N, H', D) where head `h` reads `h` modulo H'.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.kernels.attention_kernels import (
    attention_kernel,
    attention_key_kernel,
    attention_query_kernel,
)
from eqflow.edges.kernels.launch import (
    ACCUMULATOR,
    Tile,
    blocks,
    launch,
    power_of_2,
    tile_of_rows,
)
from eqflow.edges.kernels.reductions import buffer_of_sums, combine_exponentials, combined
from eqflow.edges.kernels.schedule import Schedule, schedule_of

# A program holds all channels of a head.
MOST_CHANNELS = 256

# Elements of a tile: the derivative by keys holds three at once, the other passes two.
QUERY_ELEMENTS = 2048
KEY_ELEMENTS = 1024


class Attended(NamedTuple):
    """The value, and what its derivatives need to compute a weight again; in the type of sums.

    Attributes:
        out: `Σ_e a_e (x_c − x_r)`, shape (N, H, D).
        largest: Largest `λ_e` of each receiver's edges, −∞ where there are none, shape (N, H).
        total: `Σ_e exp(λ_e − largest)`, shape (N, H).
    """

    out: Tensor
    largest: Tensor
    total: Tensor


def attend(query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: str) -> Attended:
    """Attention diffusion in one pass over the edges."""
    schedule = schedule_of(edges, "receiver")
    heads, values = query.shape[1], x.shape[2]
    out = buffer_of_sums(schedule, x, heads, values)
    largest, total = (buffer_of_sums(schedule, x, heads) for _ in range(2))
    _launch(
        *(attention_kernel, schedule, query, x, normaliser, QUERY_ELEMENTS),
        *(out, largest, total, query.contiguous(), key.contiguous(), x.contiguous()),
        *(schedule.begin, schedule.length, schedule.row, schedule.slot, schedule.other),
        *(schedule.chunks, schedule.nodes, heads, x.shape[1]),
    )
    share = combine_exponentials(largest, total, schedule)
    if schedule.split is not None and share is not None:
        row = schedule.split.row.long()
        out[schedule.nodes :] *= share.unsqueeze(2)
        combined(out, schedule)
        out[row] /= total[row].unsqueeze(2)
    n = schedule.nodes
    return Attended(out[:n], largest[:n], total[:n])


def attend_backward(
    query: Tensor,
    key: Tensor,
    x: Tensor,
    g: Tensor,
    attended: Attended,
    edges: Edges,
    normaliser: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by query, key and, for every head by itself, values, pulled back from `g`."""
    g = g.contiguous()
    mean = (g * attended.out).sum(2)
    inputs = (query.contiguous(), key.contiguous(), x.contiguous(), g)
    rows = (attended.largest.contiguous(), attended.total.contiguous(), mean)
    heads = query.shape[1]

    incoming = schedule_of(edges, "receiver")
    of_query = buffer_of_sums(incoming, x, heads, query.shape[2])
    _launch(
        *(attention_query_kernel, incoming, query, x, normaliser, QUERY_ELEMENTS),
        *(of_query, *inputs, *rows, incoming.begin, incoming.length, incoming.row),
        *(incoming.slot, incoming.other, incoming.chunks, heads, x.shape[1]),
    )
    outgoing = schedule_of(edges, "sender")
    of_key = buffer_of_sums(outgoing, x, heads, key.shape[2])
    of_x = buffer_of_sums(outgoing, x, heads, x.shape[2])
    _launch(
        *(attention_key_kernel, outgoing, query, x, normaliser, KEY_ELEMENTS),
        *(of_key, of_x, *inputs, *rows, outgoing.begin, outgoing.length, outgoing.row),
        *(outgoing.slot, outgoing.other, outgoing.chunks, heads, x.shape[1]),
    )
    # A receiver's weights sum to 1, so that `−x_r` takes the whole of `g_r`, if it has neighbours.
    has_neighbours = (edges.incoming.lengths > 0).reshape(-1, 1, 1)
    of_x = combined(of_x, outgoing) - g * has_neighbours
    dtype = x.dtype
    return (
        combined(of_query, incoming).to(dtype),
        combined(of_key, outgoing).to(dtype),
        of_x.to(dtype),
    )


def tile_of_heads(channels: int, values: int, mean_length: float, elements: int) -> Tile:
    """A tile with all channels of a head's queries, and room for those of its values."""
    tile = tile_of_rows(max(channels, values), mean_length, MOST_CHANNELS, elements)
    return replace(tile, channels=power_of_2(channels))


def _launch(
    kernel: Any,
    schedule: Schedule,
    query: Tensor,
    x: Tensor,
    normaliser: str,
    elements: int,
    out: Tensor,
    *arguments: Any,
) -> None:
    channels, values = query.shape[2], x.shape[2]
    tile = tile_of_heads(channels, values, schedule.mean_length, elements)
    launch(
        *(kernel, blocks(schedule.chunks, tile.rows) * query.shape[1], out, *arguments),
        WIDTH=channels,
        VALUES=values,
        SCALE=1 / math.sqrt(channels),
        SQUAREPLUS=normaliser == "squareplus",
        ACCUMULATOR=ACCUMULATOR[x.dtype][1],
        ROWS=tile.rows,
        EDGES=tile.edges,
        CHANNELS=tile.channels,
        VALUE_CHANNELS=power_of_2(values),
        num_warps=tile.warps,
    )
