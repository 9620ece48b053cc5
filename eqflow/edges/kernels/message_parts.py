r"""What the kernels of a message pass share: a tile's edges, their geometry, layers and weights.

Inside a kernel a tile is a matrix of `M` edges by features. Rows past the tile's last edge are read
as zeros, belong to no receiver, and so add nothing. Widths are powers of two.

`PRECISION` is that of matrix products, as in `operands`; wide weights come as operands already.
`FAST` takes the hyperbolic tangent of the hardware, 11 bits of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from eqflow.edges.kernels.operands import activation_operand, operand, product
from eqflow.edges.network import DISTANCE_EPSILON

EPSILON = tl.constexpr(DISTANCE_EPSILON)


# Activations.


@triton.jit
def sigmoid(z, FAST: tl.constexpr):
    """`1 / (1 + exp(−z))`."""
    if FAST:
        t = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * z], dtype=tl.float32, is_pure=True, pack=1
        )
        sigma = 0.5 + 0.5 * t
    else:
        sigma = tl.sigmoid(z)
    return sigma


@triton.jit
def silu_and_slope(z, FAST: tl.constexpr):
    """`z σ(z)` and its derivative."""
    sigma = sigmoid(z, FAST)
    return z * sigma, sigma * (1 + z * (1 - sigma))


@triton.jit
def tanh(c):
    """The hyperbolic tangent to the relative precision of its type, also near 0."""
    decay = tl.exp(-2 * tl.abs(c))
    result = (1 - decay) / (1 + decay)
    result = tl.where(c < 0, -result, result)
    if c.dtype == tl.float32:
        # 1 − exp(−2c) cancels where c is small.
        c2 = c * c
        series = 1 + c2 * (-1 / 3 + c2 * (2 / 15 + c2 * (-17 / 315 + c2 * (62 / 2835))))
        result = tl.where(c2 < 0.0625, c * series, result)
    return result


# Edges of a tile.


@triton.jit
def tile_edges(tile, tile_ptr, row_ptr, M: tl.constexpr):
    """The tile's edges: their numbers, which of the `M` there are, and its first and last row."""
    first, last = tl.load(tile_ptr + tile), tl.load(tile_ptr + tile + 1)
    edge = tl.load(row_ptr + first) + tl.arange(0, M)
    return edge, edge < tl.load(row_ptr + last), first, last


@triton.jit
def membership(edge, there, row_of_edge, rows):
    """Which row each edge belongs to, as a matrix of ones (R, M): sums by row are its products."""
    row = tl.load(row_of_edge + edge, mask=there, other=-1)
    return row[None, :] == rows[:, None]


@triton.jit
def sum_by_row(member, values, zeros, PRECISION: tl.constexpr):
    """Each row's sum of `values` (M, F), (R, F): NaN where one of its own is not finite.

    A product with the membership matrix alone would give NaN to every row of the tile, as 0 · NaN.
    """
    finite = values - values == 0
    ones = member.to(zeros.dtype)
    broken = tl.max((~finite).to(tl.int32), 1)
    is_broken = tl.max(member.to(tl.int32) * broken[None, :], 1) > 0
    values = operand(tl.where(finite, values, 0.0), PRECISION)
    total = product(ones.to(values.dtype), values, zeros, PRECISION)
    return tl.where(is_broken[:, None], float("nan"), total)


@triton.jit
def sum_of_numbers(member, values):
    """Each row's sum of `values` (M,), (R,)."""
    return tl.sum(tl.where(member, values[None, :], 0.0), 1)


@triton.jit
def component(x, i, j, there, axis: tl.constexpr, D: tl.constexpr):
    """`x_i − x_j` along one axis."""
    x_i = tl.load(x + i * D + axis, mask=there, other=0.0)
    return x_i - tl.load(x + j * D + axis, mask=there, other=0.0)


@triton.jit
def squared_distance(x, i, j, there, D: tl.constexpr):
    """`‖x_i − x_j‖²`."""
    delta = component(x, i, j, there, 0, D)
    d2 = delta * delta
    for axis in tl.static_range(1, D):
        delta = component(x, i, j, there, axis, D)
        d2 += delta * delta
    return d2


@triton.jit
def normaliser(d2, i, there, receiver_ptr, STABILIZED: tl.constexpr):
    """`1 / (d + 1)`, or one over the receiver's number of neighbours."""
    if STABILIZED:
        q = 1 / (tl.sqrt(d2 + EPSILON) + 1)
    else:
        stop = tl.load(receiver_ptr + i + 1, mask=there, other=1)
        start = tl.load(receiver_ptr + i, mask=there, other=0)
        q = 1 / (stop - start).to(d2.dtype)
    return q


# Layers.


@triton.jit
def first_layer(
    receiver_part,
    sender_part,
    scalars,
    scalar_weight,
    d2,
    i,
    j,
    edge,
    there,
    f,
    F: tl.constexpr,
    K: tl.constexpr,
):
    """`z = p_i + q_j + W_a [d², a]` for the features `f`; parts that are None are zero."""
    z = d2[:, None] * tl.load(scalar_weight + f * (K + 1))[None, :]
    if receiver_part is not None:
        at = receiver_part + i[:, None] * F + f[None, :]
        z += tl.load(at, mask=there[:, None], other=0.0)
    if sender_part is not None:
        at = sender_part + j[:, None] * F + f[None, :]
        z += tl.load(at, mask=there[:, None], other=0.0)
    if scalars is not None:
        for k in tl.static_range(K):
            a = tl.load(scalars + edge * K + k, mask=there, other=0.0)
            z += a[:, None] * tl.load(scalar_weight + f * (K + 1) + 1 + k)[None, :]
    return z


@triton.jit
def second_layer_input(
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
    F: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`h = W_m silu(z) + b_m`, (M, F), without ever holding all of `z`."""
    every = tl.arange(0, F)
    h = tl.zeros((M, F), d2.dtype) + tl.load(message_bias + every)[None, :]
    for start in tl.range(0, F, CHUNK, num_stages=STAGES):
        f = start + tl.arange(0, CHUNK)
        z = first_layer(
            receiver_part, sender_part, scalars, scalar_weight, d2, i, j, edge, there, f, F, K
        )
        weight = tl.load(message_weight + every[:, None] * F + f[None, :])
        value = activation_operand(z * sigmoid(z, FAST), PRECISION, FAST)
        h = product(value, tl.trans(weight), h, PRECISION)
    return h


@triton.jit
def coordinate_layer(m, weight, bias, f, F: tl.constexpr, PRECISION: tl.constexpr):
    """`c = W_x m + b_x` for the features `f` and an operand `m`, and the rows of `W_x` it took."""
    weight_f = tl.load(weight + f[:, None] * F + tl.arange(0, F)[None, :])
    bias_f = tl.zeros((m.shape[0], f.shape[0]), bias.dtype.element_ty) + tl.load(bias + f)[None, :]
    return product(m, tl.trans(weight_f), bias_f, PRECISION), weight_f


@triton.jit
def unbounded_weight(
    m,
    coordinate_weight,
    coordinate_bias,
    coordinate_out,
    F: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`φ_x(m) = ⟨w, silu(W_x m + b_x)⟩`, (M,)."""
    phi = tl.zeros((m.shape[0],), m.dtype)
    m = operand(m, PRECISION)
    for start in tl.range(0, F, CHUNK, num_stages=STAGES):
        f = start + tl.arange(0, CHUNK)
        c, _ = coordinate_layer(m, coordinate_weight, coordinate_bias, f, F, PRECISION)
        phi += tl.sum(c * sigmoid(c, FAST) * tl.load(coordinate_out + f)[None, :], 1)
    return phi


@triton.jit
def gate_logit(m, weight, bias, F: tl.constexpr):
    """`w · m + b` of a gate on messages."""
    w = tl.load(weight + tl.arange(0, F))
    return tl.sum(m * w[None, :], 1) + tl.load(bias)
