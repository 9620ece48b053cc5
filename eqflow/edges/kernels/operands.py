"""Products of matrices in a named precision, and the rounding of their operands.

`PRECISION` is "ieee", "tf32x3", "tf32" or "bf16"; accumulators have the type of the inputs. Given
float32 for "tf32", a tensor core ignores the last 13 of its 23 explicit bits: it cuts, and errors
of one sign add up. Here operands are rounded to the nearest first, ties away from 0: weights once a
call, by `to_tf32`, and what a kernel computes by `operand`. That takes three instructions, as many
as `cvt.rna.tf32.f32` does, and Triton's interpreter has them too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from eqflow.edges.kernels.device import on_device

HALF_UNIT = tl.constexpr(1 << 12)
KEPT_BITS = tl.constexpr(-1 << 13)
# From here on the nearest would be infinity.
OVERFLOWS = tl.constexpr((2 - 2.0**-11) * 2.0**127)
BLOCK = 1024


@triton.jit
def nearest_tf32(values):
    """The nearest numbers of 10 explicit bits; what is not finite, or would not be, is itself."""
    bits = (values.to(tl.int32, bitcast=True) + HALF_UNIT) & KEPT_BITS
    return tl.where(tl.abs(values) < OVERFLOWS, bits.to(tl.float32, bitcast=True), values)


@triton.jit
def round_kernel(values, out, count, BLOCK: tl.constexpr):
    """`nearest_tf32` of `count` numbers."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = k < count
    tl.store(out + k, nearest_tf32(tl.load(values + k, mask=there, other=0.0)), mask=there)


def to_tf32(values: Tensor) -> Tensor:
    """Contiguous float32 `values`, of any shape, rounded to TF32."""
    out, count = torch.empty_like(values), values.numel()
    with on_device(values):
        round_kernel[(triton.cdiv(count, BLOCK),)](values, out, count, BLOCK=BLOCK)
    return out


@triton.jit
def operand(values, PRECISION: tl.constexpr):
    """The nearest numbers that a product of this precision takes; doubles stay as they are."""
    if PRECISION == "bf16":
        values = values.to(tl.bfloat16)
    elif PRECISION == "tf32" and values.dtype == tl.float32:
        values = nearest_tf32(values)
    return values


@triton.jit
def activation_operand(values, PRECISION: tl.constexpr, FAST: tl.constexpr):
    """`operand` of what is computed number by number from loads; in tf32 by one thread each.

    An operand lies in the registers of several warps. Triton would give them what was loaded, and
    let every one compute all the rest, but it moves nothing past what may have effects.
    """
    values = operand(values, PRECISION)
    if FAST and PRECISION == "tf32":
        values = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [values], dtype=tl.float32, is_pure=False, pack=1
        )
    return values


@triton.jit
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """`a b + accumulator`, for matrices that are operands."""
    if PRECISION == "bf16":
        c = tl.dot(a, b, accumulator)
    else:
        c = tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=accumulator.dtype)
    return c
