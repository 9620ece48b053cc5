"""What rounding to each named precision costs in accuracy, emulated on a CPU.

**An emulation of rounding, not a GPU run.** The operands of the products that the fused kernels of
`egcl_messages` take in a named precision (both F × F layers, their derivatives, the sums over the
edges of a receiver) are rounded as a GPU rounds them, and multiplied in float32. Of a field with
grown weights it gives the errors against float64 of the velocity, of its derivative along a probe
and of the gradient by all weights, ‖found − expected‖ / ‖expected‖.

The roundings are those of the code that Triton 3.6 and 3.9 compile to for sm_80 and sm_90:

- "ieee": none.
- "tf32": 10 explicit bits, nearest, ties away from 0: kernels round operands before the product.
- "tf32, cut": what `tl.dot` alone would give: a tensor core ignores the last 13 bits of float32.
- "tf32x3": `a = a₁ + a₂` with `a₁` of 10 bits, nearest, ties away, and `a₂` the rest, cut to 10
  bits; of the four products `a₂ b₂` is left out.
- "bf16": 7 explicit bits, nearest, ties to even.

Not emulated: the narrower sums inside a tensor core, and the hyperbolic tangent of the hardware (11
bits), which kernels take in "tf32" and "bf16". Products at nodes stay in float32.

python benchmarks/precision.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from edge_layers import drawn_sizes, pair_of_fields
from harness import write_results
from torch import Tensor
from torch.nn.functional import linear

from eqflow import rng
from eqflow.edges import Dual, Edges
from eqflow.edges.primitives import segment_sum
from eqflow.edges.reference import by_hand, edge_mlp
from eqflow.geometry import Segments
from eqflow.nn import EGNNField

WIDTHS = (32, 64, 128, 256)
MOLECULES, LAYERS = 16, 3
TIME = torch.tensor(0.3)
DROPPED = 13  # of the 23 explicit bits of float32, to leave the 10 of TF32

Parts = Callable[[Tensor], tuple[Tensor, ...]]


def main() -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    print("Rounding emulated on a CPU; not a GPU run. Errors relative to float64.")
    table = {f"F = {width}": errors_of(width) for width in WIDTHS}
    write_results("precision", {"emulated": True, "layers": LAYERS, "errors": table})


def errors_of(width: int, molecules: int = MOLECULES) -> dict[str, dict[str, float]]:
    """Of each precision and result, for a field of this width on drawn molecules."""
    field, _, x, clouds = pair_of_fields(drawn_sizes(molecules, 18, 3, 9, 29), width, LAYERS, 3)
    probe = rng.rademacher(tuple(x.shape), x, rng.generator(0, "probe"))
    exact = results(copy.deepcopy(field).double(), x.double(), probe.double(), clouds)
    table = {}
    for name, parts in PRECISIONS.items():
        with operands(parts):
            found = results(field, x, probe, clouds)
        table[name] = {
            what: float((value.double() - exact[what]).norm() / exact[what].norm())
            for what, value in found.items()
        }
        row = "".join(f"  {what} {error:.1e}" for what, error in table[name].items())
        print(f"F = {width:<5}{name:<15}{row}", flush=True)
    return table


def results(field: EGNNField, x: Tensor, probe: Tensor, clouds: Segments) -> dict[str, Tensor]:
    """Velocity, its derivative along the probe, and the gradient of ‖v‖² by all weights."""
    t, edges = TIME.to(x.dtype), field.connect(x, clouds)
    with torch.no_grad():
        _, tangent = field.pushforward(t, Dual(x, probe.unsqueeze(1)), edges)
    value = field(t, x, edges)
    gradients = torch.autograd.grad(value.square().sum(), list(field.parameters()))
    gradient = torch.cat([part.reshape(-1) for part in gradients])
    return {"velocity": value.detach(), "derivative": tangent, "weight gradient": gradient}


# Rounding.


def cut(x: Tensor) -> Tensor:
    """The first 10 explicit bits of float32, towards 0."""
    return (x.view(torch.int32) & -(1 << DROPPED)).view(torch.float32)


def nearest(x: Tensor) -> Tensor:
    """To 10 explicit bits, ties away from 0."""
    half = 1 << (DROPPED - 1)
    return cut((x.view(torch.int32) + half).view(torch.float32))


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts of 10 explicit bits each whose sum is nearly `x`."""
    first = nearest(x)
    return first, cut(x - first)


PRECISIONS: dict[str, Parts] = {
    "ieee": lambda x: (x,),
    "tf32x3": split,
    "tf32": lambda x: (nearest(x),),
    "tf32, cut": lambda x: (cut(x),),
    "bf16": lambda x: (x.bfloat16().float(),),
}


# Formulas on rounded operands.


def product(a: Tensor, b: Tensor, parts: Parts) -> Tensor:
    """`a b` of rounded operands; of operands in two parts without the product of both rests."""
    (first_a, *rest_a), (first_b, *rest_b) = parts(a), parts(b)
    total = first_a @ first_b
    for small_a, small_b in zip(rest_a, rest_b, strict=True):
        total = (small_a @ first_b + first_a @ small_b) + total
    return total


@contextmanager
def operands(parts: Parts) -> Iterator[None]:
    """Inside, message passes are those of `eqflow.edges.reference.edge_mlp` on rounded operands."""

    def rounded_linear(m: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape[0] != weight.shape[1]:
            return linear(m, weight, bias)
        y = _Layer.apply(m, weight, parts)
        return y if bias is None else y + bias

    def rounded_sum(m: Tensor, edges: Edges) -> Tensor:
        return segment_sum(_Rounded.apply(m, parts), edges)

    with (
        patch.multiple(edge_mlp, linear=rounded_linear, segment_sum=rounded_sum),
        patch.multiple(by_hand, edge_mlp=edge_mlp.composed, dual_edge_mlp=edge_mlp.composed_dual),
    ):
        yield


class _Layer(torch.autograd.Function):
    """`m Wᵀ`, and its derivatives, on rounded operands."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, weight: Tensor, parts: Parts) -> Tensor:
        ctx.save_for_backward(m, weight)
        ctx.parts = parts
        return product(m, weight.t(), parts)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        m, weight = ctx.saved_tensors
        return product(g, weight, ctx.parts), product(g.t(), m, ctx.parts), None


class _Rounded(torch.autograd.Function):
    """What is summed, rounded; its derivative is not a product and passes as it is."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, parts: Parts) -> Tensor:
        return torch.stack(parts(m)).sum(0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


if __name__ == "__main__":
    main()
