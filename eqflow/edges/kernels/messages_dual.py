r"""The message pass and its derivative along a direction in one kernel: forward mode by hand.

As `messages_forward`, with the tangent of every line beside it: for `M` edges and width `F` two
matrices (M, F) are held, `h` and `dh`, and each weight is read once for both. One program takes one
tile and one of the S directions; the values come from those of the first. The lines are those of
`eqflow.edges.reference.messages.egcl_messages_dual`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from eqflow.edges.backend import Precision
from eqflow.edges.kernels.device import on_device
from eqflow.edges.kernels.message_arguments import Arguments, Launch
from eqflow.edges.kernels.message_parts import (
    EPSILON,
    component,
    first_layer,
    gate_logit,
    membership,
    normaliser,
    sigmoid,
    silu_and_slope,
    squared_distance,
    sum_by_row,
    sum_of_numbers,
    tanh,
    tile_edges,
)
from eqflow.edges.kernels.operands import activation_operand, operand, product
from eqflow.edges.network import MessageDual, MessageTangents


@triton.jit
def _gated(m, dm, weight, bias, F: tl.constexpr, FAST: tl.constexpr):
    """`g m` and its tangent, for the gate `g = σ(w · m + b)`."""
    g = sigmoid(gate_logit(m, weight, bias, F), FAST)
    w = tl.load(weight + tl.arange(0, F))
    dg = g * (1 - g) * tl.sum(dm * w[None, :], 1)
    return m * g[:, None], dm * g[:, None] + m * dg[:, None]


@triton.jit
def message_dual_kernel(
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
    x_tangent,
    receiver_tangent,
    sender_tangent,
    scalars_tangent,
    envelope_tangent,
    shift,
    message,
    shift_tangent,
    message_tangent,
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
    """Both sums of the rows of one tile and their derivatives along one direction."""
    direction, directions = tl.program_id(1), tl.num_programs(1)
    edge, there, first, last = tile_edges(tl.program_id(0), tile_ptr, row_ptr, M)
    i = tl.load(receiver + edge, mask=there, other=0).to(tl.int64)
    j = tl.load(sender + edge, mask=there, other=0).to(tl.int64)
    # Rows of tensors with directions on their second axis.
    i_along, j_along = i * directions + direction, j * directions + direction
    edge_along = edge * directions + direction
    every = tl.arange(0, F)

    d2 = squared_distance(x, i, j, there, D)
    dd2 = tl.zeros_like(d2)
    for axis in tl.static_range(D):
        moved = component(x_tangent, i_along, j_along, there, axis, D)
        dd2 += 2 * component(x, i, j, there, axis, D) * moved

    h = tl.zeros((M, F), d2.dtype) + tl.load(message_bias + every)[None, :]
    dh = tl.zeros((M, F), d2.dtype)
    for start in tl.range(0, F, CHUNK, num_stages=STAGES):
        f = start + tl.arange(0, CHUNK)
        z = first_layer(
            receiver_part, sender_part, scalars, scalar_weight, d2, i, j, edge, there, f, F, K
        )
        dz = first_layer(
            receiver_tangent,
            sender_tangent,
            scalars_tangent,
            scalar_weight,
            dd2,
            i_along,
            j_along,
            edge_along,
            there,
            f,
            F,
            K,
        )
        value, slope = silu_and_slope(z, FAST)
        weight = tl.trans(tl.load(message_weight + every[:, None] * F + f[None, :]))
        value = activation_operand(value, PRECISION, FAST)
        dvalue = activation_operand(slope * dz, PRECISION, FAST)
        h = product(value, weight, h, PRECISION)
        dh = product(dvalue, weight, dh, PRECISION)
    m, dm = silu_and_slope(h, FAST)
    dm *= dh
    if attention_weight is not None:
        m, dm = _gated(m, dm, attention_weight, attention_bias, F, FAST)

    phi, dphi = tl.zeros((M,), d2.dtype), tl.zeros((M,), d2.dtype)
    m_operand, dm_operand = operand(m, PRECISION), operand(dm, PRECISION)
    for start in tl.range(0, F, CHUNK, num_stages=STAGES):
        f = start + tl.arange(0, CHUNK)
        weight = tl.trans(tl.load(coordinate_weight + f[:, None] * F + every[None, :]))
        bias = tl.zeros((M, CHUNK), d2.dtype) + tl.load(coordinate_bias + f)[None, :]
        c = product(m_operand, weight, bias, PRECISION)
        dc = product(dm_operand, weight, tl.zeros((M, CHUNK), d2.dtype), PRECISION)
        value, slope = silu_and_slope(c, FAST)
        out = tl.load(coordinate_out + f)[None, :]
        phi += tl.sum(value * out, 1)
        dphi += tl.sum(slope * dc * out, 1)
    if coordinate_range is not None:
        phi = coordinate_range * tanh(phi)
        dphi *= coordinate_range - phi * phi / coordinate_range
    q = normaliser(d2, i, there, receiver_ptr, STABILIZED)
    phi, dphi = phi * q, dphi * q
    if STABILIZED:
        dphi -= phi * q * dd2 / (2 * tl.sqrt(d2 + EPSILON))

    if inference_weight is not None:
        m, dm = _gated(m, dm, inference_weight, inference_bias, F, FAST)
    if envelope is not None:
        s = tl.load(envelope + edge, mask=there, other=0.0)
        dphi, dm = dphi * s, dm * s[:, None]
        if envelope_tangent is not None:
            ds = tl.load(envelope_tangent + edge_along, mask=there, other=0.0)
            dphi += phi * ds
            dm += m * ds[:, None]
        phi, m = phi * s, m * s[:, None]

    rows = first + tl.arange(0, R)
    rows_along = rows * directions + direction
    owned = rows < last
    is_first = rows < tl.where(direction == 0, last, first)
    member = membership(edge, there, row_of_edge, rows)
    total = sum_by_row(member, m, tl.zeros((R, F), d2.dtype), PRECISION)
    tl.store(message + rows[:, None] * F + every[None, :], total, mask=is_first[:, None])
    total = sum_by_row(member, dm, tl.zeros((R, F), d2.dtype), PRECISION)
    at = message_tangent + rows_along[:, None] * F + every[None, :]
    tl.store(at, total, mask=owned[:, None])
    for axis in tl.static_range(D):
        delta = component(x, i, j, there, axis, D)
        moved = dphi * delta + phi * component(x_tangent, i_along, j_along, there, axis, D)
        total = sum_of_numbers(member, phi * delta)
        tl.store(shift + rows * D + axis, total, mask=is_first)
        total = sum_of_numbers(member, moved)
        tl.store(shift_tangent + rows_along * D + axis, total, mask=owned)


def messages_dual(arguments: Arguments, tangent: MessageTangents) -> MessageDual:
    """Both sums and their derivatives along the S directions of `tangent`, contiguous."""
    tiles, (_, directions, dimension) = arguments.tiles, tangent.x.shape
    rows, width, like = tiles.rows.count, arguments.width, arguments.inputs.x
    out = MessageDual(
        like.new_empty(rows, dimension),
        like.new_empty(rows, width),
        like.new_empty(rows, directions, dimension),
        like.new_empty(rows, directions, width),
    )
    with on_device(like):
        message_dual_kernel[tiles.count, directions](
            **arguments.named(),
            x_tangent=tangent.x,
            receiver_tangent=tangent.receiver,
            sender_tangent=tangent.sender,
            scalars_tangent=tangent.scalars,
            envelope_tangent=tangent.envelope,
            **out._asdict(),
        )
    return MessageDual(*map(tiles.combine, out))


def dual_launch(width: int, precision: Precision) -> Launch:
    """How the kernel is laid out, as compiled for (see `benchmarks/kernels_compiled.py`)."""
    if width == 256:
        # Two matrices (M, F) and their sums: fewer edges fit into the registers.
        edges = 16 if precision in ("ieee", "tf32x3") else 32
        return Launch(edges=edges, chunk=32, warps=8, stages=2)
    chunk = 16 if precision == "tf32x3" and width == 128 else 32
    return Launch(edges=64, chunk=chunk, warps=4 if width == 32 else 8, stages=2)
