"""Triton kernels of the edge primitives.

A program adds up whole chunks of rows (`Schedule`), so nothing is written twice and the order of
every sum is fixed. `receiver`, `sender`, `other`, `edge` are indices as `Schedule` has them;
`across` is how many blocks of channels there are. Arguments in capitals are compiled in.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
from triton import language as tl


@triton.jit(do_not_specialize=["count"])
def gather_kernel(out, x, index, count, width, across, EDGES: tl.constexpr, CHANNELS: tl.constexpr):
    """`out[e] = x[index[e]]`."""
    program = tl.program_id(0)
    column = (program % across) * CHANNELS + tl.arange(0, CHANNELS)
    e = (program // across).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    node = tl.load(index + e, mask=e < count, other=0).to(tl.int64)
    mask = (e < count)[:, None] & (column < width)[None, :]
    value = tl.load(x + node[:, None] * width + column[None, :], mask=mask)
    tl.store(out + e[:, None] * width + column[None, :], value, mask=mask)


@triton.jit(do_not_specialize=["chunks"])
def segment_sum_kernel(
    out,
    m,
    begin,
    length,
    slot,
    edge,
    chunks,
    width,
    across,
    IN_ORDER: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`out[slot] = Σ_k m[edge[k]]` over each chunk, or of `m[k]` where edges are `IN_ORDER`."""
    program = tl.program_id(0)
    column = (program % across) * CHANNELS + tl.arange(0, CHANNELS)
    chunk = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.load(begin + chunk, mask=chunk < chunks, other=0).to(tl.int64)
    count = tl.load(length + chunk, mask=chunk < chunks, other=0)
    total = tl.zeros((ROWS, EDGES, CHANNELS), ACCUMULATOR)
    for first in range(0, tl.max(count, 0), EDGES):
        k = first + tl.arange(0, EDGES)[None, :]
        e = start[:, None] + k
        if not IN_ORDER:
            e = tl.load(edge + e, mask=k < count[:, None], other=0).to(tl.int64)
        mask = (k < count[:, None])[:, :, None] & (column < width)[None, None, :]
        at = e[:, :, None] * width + column[None, None, :]
        total += tl.load(m + at, mask=mask, other=0.0).to(ACCUMULATOR)
    row = tl.load(slot + chunk, mask=chunk < chunks, other=0).to(tl.int64)
    at = row[:, None] * width + column[None, :]
    mask = (chunk < chunks)[:, None] & (column < width)[None, :]
    tl.store(out + at, tl.sum(total, 1), mask=mask)


@triton.jit(do_not_specialize=["chunks"])
def pull_kernel(
    out,
    w,
    x,
    begin,
    length,
    row,
    slot,
    edge,
    other,
    chunks,
    heads,
    x_heads,
    width,
    across,
    ROW: tl.constexpr,
    B: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`out[slot] = Σ_e w_e (B x)_e` over each chunk of the edges at the end `ROW`."""
    program = tl.program_id(0)
    column = (program % across) * CHANNELS + tl.arange(0, CHANNELS)
    head = program // across % heads
    chunk = (program // across // heads).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.load(begin + chunk, mask=chunk < chunks, other=0).to(tl.int64)
    count = tl.load(length + chunk, mask=chunk < chunks, other=0)
    near = tl.load(row + chunk, mask=chunk < chunks, other=0).to(tl.int64)
    within = (head % x_heads) * width + column
    mask = (chunk < chunks)[:, None] & (column < width)[None, :]
    at = near[:, None] * x_heads * width + within[None, :]
    here = tl.load(x + at, mask=mask, other=0.0).to(ACCUMULATOR)[:, None, :]

    total = tl.zeros((ROWS, EDGES, CHANNELS), ACCUMULATOR)
    for first in range(0, tl.max(count, 0), EDGES):
        k = first + tl.arange(0, EDGES)[None, :]
        inside = k < count[:, None]
        e = start[:, None] + k
        far = tl.load(other + e, mask=inside, other=0).to(tl.int64)
        if ROW == "sender":
            e = tl.load(edge + e, mask=inside, other=0).to(tl.int64)
        weight = tl.load(w + e * heads + head, mask=inside, other=0.0).to(ACCUMULATOR)
        if B == ROW:
            value = here
        else:
            there = far[:, :, None] * x_heads * width + within[None, None, :]
            wanted = inside[:, :, None] & (column < width)[None, None, :]
            value = tl.load(x + there, mask=wanted, other=0.0).to(ACCUMULATOR)
            if B == "difference":
                value = value - here if ROW == "receiver" else here - value
        # Not by a weight of zero: past the end of a row, `here` may be infinite.
        total += tl.where(inside[:, :, None], weight[:, :, None] * value, 0.0)
    to = tl.load(slot + chunk, mask=chunk < chunks, other=0).to(tl.int64)
    at = (to * heads + head)[:, None] * width + column[None, :]
    tl.store(out + at, tl.sum(total, 1), mask=mask)


@triton.jit(do_not_specialize=["count"])
def dot_kernel(
    out,
    p,
    q,
    receiver,
    sender,
    count,
    heads,
    p_heads,
    q_heads,
    width,
    A: tl.constexpr,
    B: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`out[e] = ⟨(A p)_e, (B q)_e⟩`."""
    program = tl.program_id(0)
    head = program % heads
    e = (program // heads).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    r = tl.load(receiver + e, mask=e < count, other=0).to(tl.int64)[:, None]
    c = tl.load(sender + e, mask=e < count, other=0).to(tl.int64)[:, None]
    p += (head % p_heads) * width
    q += (head % q_heads) * width
    total = tl.zeros((EDGES, CHANNELS), ACCUMULATOR)
    for first in range(0, width, CHANNELS):
        column = first + tl.arange(0, CHANNELS)[None, :]
        mask = (e < count)[:, None] & (column < width)
        one = read(p + column, r, c, p_heads * width, mask, A, ACCUMULATOR)
        total += one * read(q + column, r, c, q_heads * width, mask, B, ACCUMULATOR)
    tl.store(out + e * heads + head, tl.sum(total, 1), mask=e < count)


@triton.jit
def read(x, r, c, stride, mask, END: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Node values at an end of edges: at receivers `r`, at senders `c`, or their difference."""
    if END == "receiver":
        value = tl.load(x + r * stride, mask=mask, other=0.0).to(ACCUMULATOR)
    else:
        value = tl.load(x + c * stride, mask=mask, other=0.0).to(ACCUMULATOR)
    if END == "difference":
        value -= tl.load(x + r * stride, mask=mask, other=0.0).to(ACCUMULATOR)
    return value


@triton.jit(do_not_specialize=["chunks"])
def softmax_sums_kernel(
    largest,
    total,
    logits,
    begin,
    length,
    slot,
    chunks,
    heads,
    across,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Largest logit `L` of each chunk, and `Σ_e exp(l_e − L)`."""
    program = tl.program_id(0)
    head = (program % across) * CHANNELS + tl.arange(0, CHANNELS)
    chunk = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.load(begin + chunk, mask=chunk < chunks, other=0).to(tl.int64)
    count = tl.load(length + chunk, mask=chunk < chunks, other=0)
    top = tl.full((ROWS, CHANNELS), float("-inf"), ACCUMULATOR)
    mass = tl.zeros((ROWS, CHANNELS), ACCUMULATOR)
    for first in range(0, tl.max(count, 0), EDGES):
        k = first + tl.arange(0, EDGES)[None, :]
        mask = (k < count[:, None])[:, :, None] & (head < heads)[None, None, :]
        at = (start[:, None] + k)[:, :, None] * heads + head[None, None, :]
        logit = tl.load(logits + at, mask=mask, other=float("-inf")).to(ACCUMULATOR)
        before = top
        top = tl.maximum(before, tl.max(logit, 1))
        base = finite_or_zero(top)
        mass = mass * tl.exp(before - base) + tl.sum(tl.exp(logit - base[:, None, :]), 1)
    row = tl.load(slot + chunk, mask=chunk < chunks, other=0).to(tl.int64)
    at = row[:, None] * heads + head[None, :]
    mask = (chunk < chunks)[:, None] & (head < heads)[None, :]
    tl.store(largest + at, top, mask=mask)
    tl.store(total + at, mass, mask=mask)


@triton.jit(do_not_specialize=["count"])
def softmax_kernel(
    out,
    logits,
    largest,
    total,
    receiver,
    count,
    heads,
    across,
    ACCUMULATOR: tl.constexpr,
    EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`exp(l_e − L_r) / total_r`."""
    program = tl.program_id(0)
    head = (program % across) * CHANNELS + tl.arange(0, CHANNELS)
    e = (program // across).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    r = tl.load(receiver + e, mask=e < count, other=0).to(tl.int64)
    mask = (e < count)[:, None] & (head < heads)[None, :]
    of_row = r[:, None] * heads + head[None, :]
    of_edge = e[:, None] * heads + head[None, :]
    logit = tl.load(logits + of_edge, mask=mask, other=0.0).to(ACCUMULATOR)
    top = tl.load(largest + of_row, mask=mask, other=0.0)
    mass = tl.load(total + of_row, mask=mask, other=1.0)
    tl.store(out + of_edge, tl.exp(logit - top) / mass, mask=mask)


@triton.jit
def finite_or_zero(top):
    """What to subtract from logits: zero where there are none yet, as −∞ less −∞ is no number."""
    return tl.where(top == float("-inf"), 0.0, top)
