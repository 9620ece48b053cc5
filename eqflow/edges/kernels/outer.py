"""`Aᵀ B` for tall matrices, a row an edge: the gradient of a wide layer's weight.

The rows are dealt out to many programs, each with a sum of its own; those are added in the end, so
that the result is the same every time, and of the precision that the pass has elsewhere.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from eqflow.edges.kernels.device import INTERPRETED, on_device, programs_at_once
from eqflow.edges.kernels.operands import product

ROWS = 32
WIDEST = 128
WARPS, STAGES = 8, 3


@triton.jit(do_not_specialize=["rows"])
def outer_sum_kernel(
    a,
    b,
    out,
    rows,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One block of `Σ_r a_r b_rᵀ` over this program's share of the rows, (F, F)."""
    program = tl.program_id(0).to(tl.int64)
    f_a = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    f_b = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH, WIDTH), out.dtype.element_ty)
    for first in tl.range(program * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        there = (row < rows)[:, None]
        a_r = tl.load(a + row[:, None] * F + f_a[None, :], mask=there, other=0.0)
        b_r = tl.load(b + row[:, None] * F + f_b[None, :], mask=there, other=0.0)
        total = product(tl.trans(a_r), b_r, total, PRECISION)
    tl.store(out + program * (F * F) + f_a[:, None] * F + f_b[None, :], total)


def outer_sum(a: Tensor, b: Tensor, precision: str, dtype: Any) -> Tensor:
    """`Aᵀ B`, for A and B (L, F) with F a power of two from 32 on, to (F, F) of `dtype`."""
    rows, F = a.shape
    width = min(F, WIDEST)
    blocks = F // width
    programs = max(1, min(triton.cdiv(rows, ROWS), programs_at_once(a) // blocks**2))
    out = a.new_empty(programs, F, F, dtype=dtype)
    with on_device(a):
        outer_sum_kernel[programs, blocks, blocks](
            *(a, b, out, rows),
            F=F,
            WIDTH=width,
            ROWS=ROWS,
            PRECISION="ieee" if INTERPRETED else precision,
            STAGES=STAGES,
            num_warps=WARPS,
        )
    return out.sum(0)
