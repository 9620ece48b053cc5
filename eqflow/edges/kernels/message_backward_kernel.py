r"""The first derivative of the message pass in one kernel, by recomputation.

Nothing was kept by the forward pass but its inputs. A program computes the messages of a tile anew
and goes back through them. It owns its tile's receivers, so gradients at receivers are sums within
it. At senders they are left an edge each and summed in a second pass in CSC order. Gradients of the
weights are added up over the tiles of one program in a place of its own, and those places in the
end: no atomics, one order of summation. Where layers are wide, the operands of their gradients are
stored instead, for some tiles at a time, and multiplied after.
"""

from __future__ import annotations

import triton
import triton.language as tl

from eqflow.edges.kernels.message_parts import (
    EPSILON,
    component,
    coordinate_layer,
    first_layer,
    gate_logit,
    membership,
    normaliser,
    second_layer_input,
    sigmoid,
    silu_and_slope,
    squared_distance,
    sum_by_row,
    sum_of_numbers,
    tanh,
    tile_edges,
    unbounded_weight,
)
from eqflow.edges.kernels.operands import activation_operand, operand, product

# Rows of the sums over edges of gradients that are vectors; columns of `W_a` come last.
MESSAGE_BIAS = tl.constexpr(0)
COORDINATE_BIAS = tl.constexpr(1)
COORDINATE_OUT = tl.constexpr(2)
ATTENTION = tl.constexpr(3)
INFERENCE = tl.constexpr(4)
SCALARS = tl.constexpr(5)

# Operands of the gradients of `W_m`, `dhᵀ silu(z)`, and of `W_x`, `dcᵀ m`.
HIDDEN = tl.constexpr(0)
MESSAGE_GRADIENT = tl.constexpr(1)
MESSAGE = tl.constexpr(2)
COORDINATE_GRADIENT = tl.constexpr(3)


@triton.jit
def _add(pointer, value):
    """Add to a place that is this program's alone."""
    tl.store(pointer, tl.load(pointer) + value)


@triton.jit(do_not_specialize=["tiles", "slots", "first_tile"])
def message_backward_kernel(
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
    tiles,
    shift_gradient,
    message_gradient,
    x_gradient,
    receiver_gradient,
    difference_gradient,
    z_gradient,
    envelope_gradient,
    matrices,
    vectors,
    gate_biases,
    operands,
    slots,
    first_tile,
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
    """Gradients of the edges of some tiles, and one program's share of those of the weights.

    In: `shift_gradient` (N, D) and `message_gradient` (N, F). Out, by row: `x_gradient` (P, D) and
    `receiver_gradient` (P, F). Out, by edge: `difference_gradient` of `x_i − x_j`, (E, D),
    `z_gradient` (E, F) and `envelope_gradient` (E,). Added to, by program, unless None: `matrices`
    (2, F, F) of `W_m` and `W_x`, `vectors` (5 + 1 + K, F) and `gate_biases` (2,). Out, unless None:
    `operands` (4, slots, F) of the two matrices' gradients, the tiles from `first_tile` on.
    """
    program = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, F)
    if vectors is not None:
        vectors += program * ((SCALARS + 1 + K) * F)
        gate_biases += program * 2
    if matrices is not None:
        message_weight_sum = matrices + program * (2 * F * F)
        coordinate_weight_sum = message_weight_sum + F * F

    for tile in tl.range(first_tile + program, tiles, tl.num_programs(0), num_stages=1):
        edge, there, first, last = tile_edges(tile, tile_ptr, row_ptr, M)
        i = tl.load(receiver + edge, mask=there, other=0).to(tl.int64)
        j = tl.load(sender + edge, mask=there, other=0).to(tl.int64)
        rows = first + tl.arange(0, R)
        owned = rows < last
        member = membership(edge, there, row_of_edge, rows)

        if operands is not None:
            slot = (tile - first_tile) * M + tl.arange(0, M).to(tl.int64)[:, None]
            place = operands + slot * F

        # Forward, to the coordinate weight.
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
            attention = sigmoid(gate_logit(m, attention_weight, attention_bias, F), FAST)
            m *= attention[:, None]
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
        q = normaliser(d2, i, there, receiver_ptr, STABILIZED)

        # The coordinate sum, `s q φ (x_i − x_j)`.
        along = tl.zeros_like(d2)
        for axis in tl.static_range(D):
            g = tl.load(shift_gradient + i * D + axis, mask=there, other=0.0)
            along += g * component(x, i, j, there, axis, D)
        dphi = along * q
        if coordinate_range is not None:
            phi = coordinate_range * tanh(phi)
            dphi *= coordinate_range - phi * phi / coordinate_range

        # The message sum, `s e m`.
        at_receiver = message_gradient + i[:, None] * F + every[None, :]
        dm = tl.load(at_receiver, mask=there[:, None], other=0.0)
        dmessage = tl.sum(dm * m, 1)
        if inference_weight is not None:
            inference = sigmoid(gate_logit(m, inference_weight, inference_bias, F), FAST)
            dlogit = dmessage * inference * (1 - inference)
            dmessage *= inference
            w = tl.load(inference_weight + every)
            dm = dm * inference[:, None] + dlogit[:, None] * w[None, :]
        if envelope is not None:
            s = tl.load(envelope + edge, mask=there, other=0.0)
            tl.store(envelope_gradient + edge, along * q * phi + dmessage, mask=there)
            along *= s
            dphi *= s
            dm *= s[:, None]
            if inference_weight is not None:
                dlogit *= s
        if inference_weight is not None and vectors is not None:
            _add(vectors + INFERENCE * F + every, tl.sum(dlogit[:, None] * m, 0))
            _add(gate_biases + 1, tl.sum(dlogit, 0))

        # φ_x.
        m = operand(m, PRECISION)
        if operands is not None:
            tl.store(place + MESSAGE * slots * F + every[None, :], m)
        for start in tl.range(0, F, CHUNK, num_stages=STAGES):
            f = start + tl.arange(0, CHUNK)
            c, weight = coordinate_layer(m, coordinate_weight, coordinate_bias, f, F, PRECISION)
            value, slope = silu_and_slope(c, FAST)
            dc = dphi[:, None] * tl.load(coordinate_out + f)[None, :] * slope
            dc_operand = operand(dc, PRECISION)
            dm = product(dc_operand, weight, dm, PRECISION)
            if vectors is not None:
                _add(vectors + COORDINATE_OUT * F + f, tl.sum(dphi[:, None] * value, 0))
                _add(vectors + COORDINATE_BIAS * F + f, tl.sum(dc, 0))
            if matrices is not None:
                dweight = product(
                    tl.trans(dc_operand), m, tl.zeros((CHUNK, F), d2.dtype), PRECISION
                )
                _add(coordinate_weight_sum + f[:, None] * F + every[None, :], dweight)
            if operands is not None:
                tl.store(place + COORDINATE_GRADIENT * slots * F + f[None, :], dc_operand)

        # Second layer of φ_e and its gate.
        m, slope_h = silu_and_slope(h, FAST)
        if attention_weight is not None:
            dlogit = tl.sum(dm * m, 1) * attention * (1 - attention)
            w = tl.load(attention_weight + every)
            dm = dm * attention[:, None] + dlogit[:, None] * w[None, :]
            if vectors is not None:
                _add(vectors + ATTENTION * F + every, tl.sum(dlogit[:, None] * m, 0))
                _add(gate_biases, tl.sum(dlogit, 0))
        dh = dm * slope_h
        if vectors is not None:
            _add(vectors + MESSAGE_BIAS * F + every, tl.sum(dh, 0))
        dh = operand(dh, PRECISION)
        if operands is not None:
            tl.store(place + MESSAGE_GRADIENT * slots * F + every[None, :], dh)

        # First layer of φ_e.
        dd2 = tl.zeros_like(d2)
        if STABILIZED:
            dd2 -= along * phi * q * q / (2 * tl.sqrt(d2 + EPSILON))
        for start in tl.range(0, F, CHUNK, num_stages=STAGES):
            f = start + tl.arange(0, CHUNK)
            z = first_layer(
                receiver_part, sender_part, scalars, scalar_weight, d2, i, j, edge, there, f, F, K
            )
            value, slope = silu_and_slope(z, FAST)
            weight = tl.load(message_weight + every[:, None] * F + f[None, :])
            dz = product(dh, weight, tl.zeros((M, CHUNK), d2.dtype), PRECISION) * slope
            if vectors is not None:
                value = activation_operand(value, PRECISION, FAST)
            if matrices is not None:
                dweight = product(tl.trans(dh), value, tl.zeros((F, CHUNK), d2.dtype), PRECISION)
                _add(message_weight_sum + every[:, None] * F + f[None, :], dweight)
            if operands is not None:
                tl.store(place + HIDDEN * slots * F + f[None, :], value)

            tl.store(z_gradient + edge[:, None] * F + f[None, :], dz, mask=there[:, None])
            at_row = sum_by_row(member, dz, tl.zeros((R, CHUNK), d2.dtype), PRECISION)
            at = receiver_gradient + rows[:, None] * F + f[None, :]
            tl.store(at, at_row, mask=owned[:, None])
            dd2 += tl.sum(dz * tl.load(scalar_weight + f * (K + 1))[None, :], 1)
            if vectors is not None:
                _add(vectors + SCALARS * F + f, tl.sum(dz * d2[:, None], 0))
                for k in tl.static_range(K):
                    a = tl.load(scalars + edge * K + k, mask=there, other=0.0)
                    _add(vectors + (SCALARS + 1 + k) * F + f, tl.sum(dz * a[:, None], 0))

        # Geometry.
        weight_of_edge = q * phi
        if envelope is not None:
            weight_of_edge *= tl.load(envelope + edge, mask=there, other=0.0)
        for axis in tl.static_range(D):
            g = tl.load(shift_gradient + i * D + axis, mask=there, other=0.0)
            dx = weight_of_edge * g + 2 * dd2 * component(x, i, j, there, axis, D)
            tl.store(difference_gradient + edge * D + axis, dx, mask=there)
            at_row = sum_of_numbers(member, dx)
            tl.store(x_gradient + rows * D + axis, at_row, mask=owned)
        # The next tile adds to the same sums.
        tl.debug_barrier()
