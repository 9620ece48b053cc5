r"""The message pass of an equivariant graph convolution in one kernel.

A program computes a tile of edges from the positions to both sums and keeps every message on chip.
For `M` edges and width `F` it holds one matrix (M, F): the second layer's input `h` is summed over
chunks of features of the first, :math:`h = \sum_c \mathrm{silu}(z_c) W_{m,c}^T + b`, and the
coordinate weight over chunks of the third, :math:`\varphi = \sum_c \langle w_c, \mathrm{silu}(m
W_{x,c}^T + b_c) \rangle`, so that a gate, which needs all of `m`, costs no second pass. Sums over a
receiver's edges are products with the tile's membership matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from eqflow.edges.backend import Precision
from eqflow.edges.kernels.device import on_device
from eqflow.edges.kernels.message_arguments import Arguments, Launch
from eqflow.edges.kernels.message_parts import (
    component,
    gate_logit,
    membership,
    normaliser,
    second_layer_input,
    sigmoid,
    squared_distance,
    sum_by_row,
    sum_of_numbers,
    tanh,
    tile_edges,
    unbounded_weight,
)


@triton.jit
def message_kernel(
    x,
    receiver_part,
    sender_part,
    scalars,
    envelope,
    scalar_weight,
    message_weight,
    message_bias,
    coordinate_weight,
    coordinate_bias,
    coordinate_out,
    attention_weight,
    attention_bias,
    inference_weight,
    inference_bias,
    coordinate_range,
    receiver,
    sender,
    receiver_ptr,
    row_of_edge,
    row_ptr,
    tile_ptr,
    shift,
    message,
    F: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    CHUNK: tl.constexpr,
    STABILIZED: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Coordinate shift and message sum of the rows of one tile."""
    edge, there, first, last = tile_edges(tl.program_id(0), tile_ptr, row_ptr, M)
    i = tl.load(receiver + edge, mask=there, other=0).to(tl.int64)
    j = tl.load(sender + edge, mask=there, other=0).to(tl.int64)
    d2 = squared_distance(x, i, j, there, D)

    h = second_layer_input(
        receiver_part,
        sender_part,
        scalars,
        scalar_weight,
        message_weight,
        message_bias,
        d2,
        i,
        j,
        edge,
        there,
        F,
        K,
        M,
        CHUNK,
        PRECISION,
        FAST,
        STAGES,
    )
    m = h * sigmoid(h, FAST)
    if attention_weight is not None:
        m *= sigmoid(gate_logit(m, attention_weight, attention_bias, F), FAST)[:, None]

    phi = unbounded_weight(
        m,
        coordinate_weight,
        coordinate_bias,
        coordinate_out,
        F,
        CHUNK,
        PRECISION,
        FAST,
        STAGES,
    )
    if coordinate_range is not None:
        phi = coordinate_range * tanh(phi)
    phi *= normaliser(d2, i, there, receiver_ptr, STABILIZED)

    if inference_weight is not None:
        m *= sigmoid(gate_logit(m, inference_weight, inference_bias, F), FAST)[:, None]
    if envelope is not None:
        s = tl.load(envelope + edge, mask=there, other=0.0)
        phi *= s
        m *= s[:, None]

    rows, every = first + tl.arange(0, R), tl.arange(0, F)
    owned = rows < last
    member = membership(edge, there, row_of_edge, rows)
    total = sum_by_row(member, m, tl.zeros((R, F), d2.dtype), PRECISION)
    tl.store(message + rows[:, None] * F + every[None, :], total, mask=owned[:, None])
    for axis in tl.static_range(D):
        moved = phi * component(x, i, j, there, axis, D)
        tl.store(shift + rows * D + axis, sum_of_numbers(member, moved), mask=owned)


def messages(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Coordinate shift (N, d) and message sum (N, F)."""
    tiles, x = arguments.tiles, arguments.inputs.x
    shift = x.new_empty(tiles.rows.count, x.shape[1])
    message = x.new_empty(tiles.rows.count, arguments.width)
    with on_device(x):
        message_kernel[(tiles.count,)](**arguments.named(), shift=shift, message=message)
    return tiles.combine(shift), tiles.combine(message)


def forward_launch(width: int, precision: Precision) -> Launch:
    """How the kernel is laid out, as compiled for (see `benchmarks/kernels_compiled.py`)."""
    is_wide = width >= 128
    chunk = 16 if precision == "tf32x3" and is_wide else 32
    return Launch(edges=64, chunk=chunk, warps=8 if is_wide else 4, stages=2)
