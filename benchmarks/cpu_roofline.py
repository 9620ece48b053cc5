"""What one CPU thread can do at most, measured, and what an EGNN field on complete graphs needs.

Products and traffic are counted as in `gpu_roofline`: what the function needs at least, whoever
computes it. A thread does one thing after the other, so there is a second floor as well: the time
of the products plus that of the activations, which weigh as much as products in narrow networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from gpu_roofline import Work, field_work, message_work
from gpu_roofline import roofline as products_or_copy
from gpu_scale import Molecules
from torch import Tensor

# Rows and columns of products, numbers in a buffer no cache holds, numbers that stay in a cache.
PRODUCTS = (256, 512, 1024)
COPIED = 2**26
CACHED = (2048, 64)
# What counts of each kind of work: a kind of `gpu_roofline`, and for each feature of an edge the
# activations and their slopes. The exact trace has a count of its own.
KINDS = {
    "forward": ("forward", 3, 0),
    "forward + backward": ("forward + backward", 3, 3),
    "value + one probe": ("value + trace", 3, 3),
}
EXACT = "exact trace"


class Shape(NamedTuple):
    """A network on complete graphs of one size.

    Attributes:
        clouds, points, dimension: Of the batch.
        width, layers: Of the network.
    """

    clouds: int
    points: int
    width: int
    layers: int
    dimension: int = 3

    @property
    def nodes(self) -> int:
        """Points of all clouds."""
        return self.clouds * self.points

    @property
    def edges(self) -> int:
        """Ordered pairs of different points."""
        return self.nodes * (self.points - 1)


def work_of(shape: Shape, kind: str) -> Work:
    """Operations and bytes of one of `KINDS`, or of the exact trace."""
    if kind == EXACT:
        return exact_trace_work(shape)
    molecules = Molecules(
        shape.clouds, shape.points, 0.0, shape.width, shape.layers, shape.dimension
    )
    return field_work(shape.nodes, shape.edges, molecules, KINDS[kind][0], "ieee")


def exact_trace_work(shape: Shape) -> Work:
    """Value and trace as `eqflow.nn.exact_trace` factors them; other ways need more.

    At an edge two products for the value and three for its slopes; `∂m` by the squared distance in
    the first layer, by two of them in those between; two products in the last. Each layer between
    multiplies one matrix of `(n F)²` a cloud by `n d` directions, and has five products at a node.
    """
    _, n, F, L, d = shape
    directions = n * d
    at_edges = 5 * L + (1 if L == 1 else 2 * L - 1)
    operations = at_edges * 2 * F**2 * shape.edges
    between = max(L - 2, 0) * directions
    operations += between * (2 * shape.clouds * (n * F) ** 2 + 10 * F**2 * shape.nodes)
    one = message_work(shape.nodes, shape.edges, F, d, "forward", "ieee")
    return Work(operations, L * one.bytes, "ieee")


def activations_of(shape: Shape, kind: str) -> tuple[int, int]:
    """How many numbers go through an activation, and through its slope."""
    _, values, slopes = KINDS.get(kind, (kind, 3, 3))
    numbers = shape.edges * shape.width * shape.layers
    return values * numbers, slopes * numbers


def roofline(
    shape: Shape, kind: str, seconds: float, ceilings: Mapping[str, float]
) -> dict[str, float | str]:
    """Floors of a measured case in seconds, and the fraction of each that was reached."""
    work = work_of(shape, kind)
    found = products_or_copy({"work": work._asdict(), "ms": 1e3 * seconds}, ceilings)
    activations, slopes = activations_of(shape, kind)
    both = found["floor_ms"] / 1e3 + activations / ceilings["silu"] + slopes / ceilings["slope"]
    return {
        "operations_a_second": work.operations / seconds,
        "floor_seconds": found["floor_ms"] / 1e3,
        "bound": found["bound"],
        "fraction": found["fraction"],
        "floor_with_activations_seconds": both,
        "fraction_with_activations": both / seconds,
    }


def measure_ceilings() -> dict[str, float]:
    """Rates of this thread, each the best of several tries.

    Operations a second of float32 products by torch ("torch") and, where torch has it, by oneDNN
    ("onednn"), of which "fp32" is the larger; bytes a second of a large copy, read and written;
    numbers a second through an activation and its slope, in cache.
    """
    products = {"torch": max(_product_rate(n, torch.mm) for n in PRODUCTS)}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products["onednn"] = max(_product_rate(n, _by_onednn) for n in PRODUCTS)
    source = torch.ones(COPIED)
    target = torch.empty_like(source)
    z = torch.randn(CACHED)
    out = torch.empty_like(z)
    silu, slope = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input
    return products | {
        "fp32": max(products.values()),
        "copy": 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), 1),
        "silu": z.numel() / _best_seconds(lambda: silu(z, out=out), 100),
        "slope": z.numel() / _best_seconds(lambda: slope(z, z, grad_input=out), 100),
    }


def _product_rate(n: int, multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
    a, b = torch.randn(n, n), torch.randn(n, n)
    repeats = max(PRODUCTS[-1] ** 3 // n**3, 1)
    return 2 * n**3 / _best_seconds(lambda: multiply(a, b), repeats)


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def _best_seconds(case: Callable[[], object], repeats: int, tries: int = 5) -> float:
    """CPU seconds of one call."""
    case()
    taken = []
    for _ in range(tries):
        started = time.process_time()
        for _ in range(repeats):
            case()
        taken.append(time.process_time() - started)
    return min(taken) / repeats
