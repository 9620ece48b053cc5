r"""Triton kernels of attention diffusion: nothing of size E is ever stored.

With :math:`l_e = \langle q_r, k_c \rangle / \sqrt{C}` the weights are
:math:`a_e = e^{\lambda_e} / \sum_{e' \to r} e^{\lambda_{e'}}`, where `λ = l` for softmax and
`λ = asinh(l / 2)` for squareplus, whose weight is :math:`(l + \sqrt{l^2 + 4}) / 2`. One pass over a
row keeps its largest `λ` so far and rescales what it has when that grows. The derivatives compute
`a_e` again, from the largest `λ` and the total that the first pass left for each row.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
from triton import language as tl

from eqflow.edges.kernels.primitive_kernels import finite_or_zero


@triton.jit(do_not_specialize=["chunks", "nodes"])
def attention_kernel(
    out,
    largest,
    total,
    query,
    key,
    x,
    begin,
    length,
    row,
    slot,
    other,
    chunks,
    nodes,
    heads,
    x_heads,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    SCALE: tl.constexpr,
    SQUAREPLUS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
):
    """`Σ_e a_e (x_c − x_r)` of each row; of a chunk of a split row, not yet normalised."""
    head = tl.program_id(0) % heads
    x_head = head % x_heads
    chunk = (tl.program_id(0) // heads).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    listed = chunk < chunks
    start = tl.load(begin + chunk, mask=listed, other=0).to(tl.int64)
    count = tl.load(length + chunk, mask=listed, other=0)
    r = tl.load(row + chunk, mask=listed, other=0).to(tl.int64)[:, None]
    q = vectors(query, r, heads, head, listed[:, None], WIDTH, CHANNELS, ACCUMULATOR)
    x_r = vectors(x, r, x_heads, x_head, listed[:, None], VALUES, VALUE_CHANNELS, ACCUMULATOR)

    top = tl.full((ROWS,), float("-inf"), ACCUMULATOR)
    mass = tl.zeros((ROWS,), ACCUMULATOR)
    moved = tl.zeros((ROWS, VALUE_CHANNELS), ACCUMULATOR)
    for first in range(0, tl.max(count, 0), EDGES):
        k = first + tl.arange(0, EDGES)[None, :]
        inside = k < count[:, None]
        c = tl.load(other + start[:, None] + k, mask=inside, other=0).to(tl.int64)
        k_c = vectors(key, c, heads, head, inside, WIDTH, CHANNELS, ACCUMULATOR)
        x_c = vectors(x, c, x_heads, x_head, inside, VALUES, VALUE_CHANNELS, ACCUMULATOR)
        exponent = log_weight(tl.sum(q * k_c, 2) * SCALE, SQUAREPLUS)
        exponent = tl.where(inside, exponent, float("-inf"))
        before = top
        top = tl.maximum(before, tl.max(exponent, 1))
        base = finite_or_zero(top)
        share = tl.exp(exponent - base[:, None])
        rescaled = tl.exp(before - base)
        step = tl.where(inside[:, :, None], share[:, :, None] * (x_c - x_r), 0.0)
        moved = moved * rescaled[:, None] + tl.sum(step, 1)
        mass = mass * rescaled + tl.sum(share, 1)

    to = tl.load(slot + chunk, mask=listed, other=0).to(tl.int64)
    # A row without edges has nothing to divide, a chunk of a split row not yet.
    divisor = tl.where((to < nodes) & (count > 0), mass, 1.0)
    moved /= divisor[:, None]
    tl.store(largest + to * heads + head, top, mask=listed)
    tl.store(total + to * heads + head, mass, mask=listed)
    store_vectors(out, moved, to, heads, head, listed, VALUES, VALUE_CHANNELS)


@triton.jit(do_not_specialize=["chunks"])
def attention_query_kernel(
    out,
    query,
    key,
    x,
    g,
    largest,
    total,
    mean,
    begin,
    length,
    row,
    slot,
    other,
    chunks,
    heads,
    x_heads,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    SCALE: tl.constexpr,
    SQUAREPLUS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
):
    """Derivative by queries, `Σ_e l̄_e k_c / √C` over each receiver's edges; see `logit_slope`."""
    head = tl.program_id(0) % heads
    x_head = head % x_heads
    chunk = (tl.program_id(0) // heads).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    listed = chunk < chunks
    start = tl.load(begin + chunk, mask=listed, other=0).to(tl.int64)
    count = tl.load(length + chunk, mask=listed, other=0)
    r = tl.load(row + chunk, mask=listed, other=0).to(tl.int64)[:, None]
    q = vectors(query, r, heads, head, listed[:, None], WIDTH, CHANNELS, ACCUMULATOR)
    x_r = vectors(x, r, x_heads, x_head, listed[:, None], VALUES, VALUE_CHANNELS, ACCUMULATOR)
    g_r = vectors(g, r, heads, head, listed[:, None], VALUES, VALUE_CHANNELS, ACCUMULATOR)
    top = tl.load(largest + r * heads + head, mask=listed[:, None], other=0.0)
    mass = tl.load(total + r * heads + head, mask=listed[:, None], other=1.0)
    mean_r = tl.load(mean + r * heads + head, mask=listed[:, None], other=0.0)

    of_query = tl.zeros((ROWS, CHANNELS), ACCUMULATOR)
    for first in range(0, tl.max(count, 0), EDGES):
        k = first + tl.arange(0, EDGES)[None, :]
        inside = k < count[:, None]
        c = tl.load(other + start[:, None] + k, mask=inside, other=0).to(tl.int64)
        k_c = vectors(key, c, heads, head, inside, WIDTH, CHANNELS, ACCUMULATOR)
        x_c = vectors(x, c, x_heads, x_head, inside, VALUES, VALUE_CHANNELS, ACCUMULATOR)
        logit = tl.sum(q * k_c, 2) * SCALE
        a = weight(logit, top, mass, inside, SQUAREPLUS)
        gain = tl.where(inside, tl.sum(g_r * (x_c - x_r), 2) - mean_r, 0.0)
        slope = logit_slope(a, gain, logit, SQUAREPLUS) * SCALE
        of_query += tl.sum(slope[:, :, None] * k_c, 1)
    to = tl.load(slot + chunk, mask=listed, other=0).to(tl.int64)
    store_vectors(out, of_query, to, heads, head, listed, WIDTH, CHANNELS)


@triton.jit(do_not_specialize=["chunks"])
def attention_key_kernel(
    out,
    out_x,
    query,
    key,
    x,
    g,
    largest,
    total,
    mean,
    begin,
    length,
    row,
    slot,
    other,
    chunks,
    heads,
    x_heads,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    SCALE: tl.constexpr,
    SQUAREPLUS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
):
    """Derivatives by keys, `Σ_e l̄_e q_r / √C`, and values, `Σ_e a_e g_r`, over senders' edges."""
    head = tl.program_id(0) % heads
    x_head = head % x_heads
    chunk = (tl.program_id(0) // heads).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    listed = chunk < chunks
    start = tl.load(begin + chunk, mask=listed, other=0).to(tl.int64)
    count = tl.load(length + chunk, mask=listed, other=0)
    c = tl.load(row + chunk, mask=listed, other=0).to(tl.int64)[:, None]
    k_c = vectors(key, c, heads, head, listed[:, None], WIDTH, CHANNELS, ACCUMULATOR)
    x_c = vectors(x, c, x_heads, x_head, listed[:, None], VALUES, VALUE_CHANNELS, ACCUMULATOR)

    of_key = tl.zeros((ROWS, CHANNELS), ACCUMULATOR)
    of_x = tl.zeros((ROWS, VALUE_CHANNELS), ACCUMULATOR)
    for first in range(0, tl.max(count, 0), EDGES):
        k = first + tl.arange(0, EDGES)[None, :]
        inside = k < count[:, None]
        r = tl.load(other + start[:, None] + k, mask=inside, other=0).to(tl.int64)
        q_r = vectors(query, r, heads, head, inside, WIDTH, CHANNELS, ACCUMULATOR)
        x_r = vectors(x, r, x_heads, x_head, inside, VALUES, VALUE_CHANNELS, ACCUMULATOR)
        g_r = vectors(g, r, heads, head, inside, VALUES, VALUE_CHANNELS, ACCUMULATOR)
        top = tl.load(largest + r * heads + head, mask=inside, other=0.0)
        mass = tl.load(total + r * heads + head, mask=inside, other=1.0)
        mean_r = tl.load(mean + r * heads + head, mask=inside, other=0.0)
        logit = tl.sum(k_c * q_r, 2) * SCALE
        a = weight(logit, top, mass, inside, SQUAREPLUS)
        gain = tl.where(inside, tl.sum(g_r * (x_c - x_r), 2) - mean_r, 0.0)
        slope = logit_slope(a, gain, logit, SQUAREPLUS) * SCALE
        of_key += tl.sum(slope[:, :, None] * q_r, 1)
        of_x += tl.sum(a[:, :, None] * g_r, 1)
    to = tl.load(slot + chunk, mask=listed, other=0).to(tl.int64)
    store_vectors(out, of_key, to, heads, head, listed, WIDTH, CHANNELS)
    store_vectors(out_x, of_x, to, heads, head, listed, VALUES, VALUE_CHANNELS)


@triton.jit
def vectors(
    x,
    node,
    heads,
    head,
    mask,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """One head's `WIDTH` channels of nodes (R, K), as (R, K, CHANNELS) with zeros beyond."""
    column = tl.arange(0, CHANNELS)[None, None, :]
    at = (node * heads + head)[:, :, None] * WIDTH + column
    mask = mask[:, :, None] & (column < WIDTH)
    return tl.load(x + at, mask=mask, other=0.0).to(ACCUMULATOR)


@triton.jit
def store_vectors(
    out, values, node, heads, head, mask, WIDTH: tl.constexpr, CHANNELS: tl.constexpr
):
    """Write one head's channels (R, CHANNELS) to nodes (R,)."""
    column = tl.arange(0, CHANNELS)[None, :]
    at = (node * heads + head)[:, None] * WIDTH + column
    tl.store(out + at, values, mask=mask[:, None] & (column < WIDTH))


@triton.jit
def log_weight(logit, SQUAREPLUS: tl.constexpr):
    """`λ`, the logarithm of a weight before it is normalised."""
    if SQUAREPLUS:
        half = tl.abs(logit) * 0.5
        size = tl.log(half + hypotenuse(half))
        logit = tl.where(logit < 0, -size, size)
    return logit


@triton.jit
def weight(logit, top, mass, inside, SQUAREPLUS: tl.constexpr):
    """`a_e`, from the largest exponent and the total of its row; zero where there is no edge."""
    exponent = tl.where(inside, log_weight(logit, SQUAREPLUS) - top, float("-inf"))
    return tl.exp(exponent) / tl.where(inside, mass, 1.0)


@triton.jit
def logit_slope(a, gain, logit, SQUAREPLUS: tl.constexpr):
    """`l̄_e = a_e (⟨ḡ_r, x_c − x_r⟩ − ⟨ḡ_r, out_r⟩) λ'(l_e)`, the derivative by a logit."""
    slope = a * gain
    if SQUAREPLUS:
        slope *= 0.5 / hypotenuse(tl.abs(logit) * 0.5)
    return slope


@triton.jit
def hypotenuse(size):
    """`√(1 + s²)` for `s ≥ 0`, without overflow: beyond 1e9 it is `s`."""
    small = tl.minimum(size, 1e9)
    return tl.maximum(size, tl.sqrt(small * small + 1.0))
