"""Sums of consecutive rows: what is left to add after a pass over tiles.

`out_i = Σ_k v_k` over `k` from `ptr_i` to `ptr_{i+1}`: the pieces of a receiver that was split. One
program an output row: no atomics, and one order of summation.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from eqflow.edges.kernels.device import on_device

ROWS_AT_ONCE = 16
WIDEST = 128


@triton.jit
def _sum_pieces(values, ptr, out, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < C
    start, stop = tl.load(ptr + row), tl.load(ptr + row + 1)
    total = tl.zeros((COLUMNS,), out.dtype.element_ty)
    for first in range(start, stop, ROWS):
        k = first + tl.arange(0, ROWS)
        there = k < stop
        v = tl.load(
            values + k[:, None] * C + column[None, :], mask=there[:, None] & inside, other=0.0
        )
        total += tl.sum(v.to(out.dtype.element_ty), 0)
    tl.store(out + row * C + column, total, mask=inside)


def sum_pieces(values: Tensor, ptr: Tensor) -> Tensor:
    """`Σ_k v_k` over each segment of `ptr`.

    Args:
        values: Shape (K, …).
        ptr: Start of each segment, shape (N + 1,).

    Returns:
        Shape (N, …).
    """
    count = ptr.numel() - 1
    out = values.new_empty(count, *values.shape[1:])
    columns = out[0].numel() if count else 0
    if columns == 0:
        return out
    block = min(triton.next_power_of_2(columns), WIDEST)
    with on_device(values):
        _sum_pieces[count, triton.cdiv(columns, block)](
            values, ptr, out, columns, ROWS=ROWS_AT_ONCE, COLUMNS=block
        )
    return out
