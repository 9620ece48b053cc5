"""Every kernel against the torch backend in float64 on the same device, one case a kernel.

Errors are ‖found − expected‖ / ‖expected‖, the worst of all results: of the values, of the
gradients by all inputs, of the gradients of those. The inputs are rounded before both, so that what
is seen is the error of the computation. The same call twice is to give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from gpu_bench import Bench, Result
from gpu_problems import by_torch, by_triton, complete, hub, poisoned
from gpu_scale import Scale
from torch import Tensor

from eqflow import rng
from eqflow.edges import (
    Edges,
    attention_diffusion,
    difference_dot,
    edge_dot,
    edge_linear,
    gather,
    segment_softmax,
    segment_sum,
    squared_distance,
    weighted_difference,
    weighted_sum,
)

# What passes: rounding of the results, and of what is summed up to them.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
# So many times the error of the torch backend in the same type passes too, but in bf16.
LIKE_TORCH = 4

# Shapes in letters: N nodes, E edges, F channels, H heads, K scalars.
HEADS, SCALARS = 2, 2
PRIMITIVES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "gather, sender": (lambda x, edges: gather(x, edges, "sender"), ("NF",)),
    "gather, receiver": (lambda x, edges: gather(x, edges, "receiver"), ("NF",)),
    "segment_sum, sender": (lambda m, edges: segment_sum(m, edges, "sender"), ("EF",)),
    "segment_sum, receiver": (lambda m, edges: segment_sum(m, edges, "receiver"), ("EF",)),
    "edge_dot": (edge_dot, ("NF", "NF")),
    "edge_dot, heads": (edge_dot, ("NHF", "NHF")),
    "weighted_sum": (weighted_sum, ("E", "NF")),
    "weighted_sum, heads": (weighted_sum, ("EH", "NHF")),
    "weighted_difference": (weighted_difference, ("E", "NF")),
    "weighted_difference, heads share x": (weighted_difference, ("EH", "NF")),
    "difference_dot": (difference_dot, ("NF", "NF")),
    "squared_distance": (squared_distance, ("NF",)),
    "segment_softmax": (segment_softmax, ("E",)),
    "segment_softmax, heads": (segment_softmax, ("EH",)),
    "edge_linear": (edge_linear, ("NF", "NF", "EK", "FK")),
}
NORMALISERS = ("softmax", "squareplus")
ATTENTION = {"one head": ("NF", "NF", "NF"), "heads": ("NHF", "NHF", "NHF")}


def jobs(scale: Scale) -> dict[str, Callable[[Bench], None]]:
    """Checks of primitives and attention, by graph and width."""
    found: dict[str, Callable[[Bench], None]] = {}
    for graph in ("hub", "clouds"):
        found[f"attention, {graph}"] = partial(check_attention, graph=graph)
        for width in scale.channels:
            name = f"primitives, {graph}, F = {width}"
            found[name] = partial(check_primitives, graph=graph, width=width)
    return found


def check_primitives(bench: Bench, graph: str, width: int) -> None:
    """In float32; at the typical width in other types; second derivatives but at wider ones."""
    edges, typical = graph_of(bench, graph), typical_of(bench.scale.channels)
    types = bench.scale.types if width == typical else (torch.float32,)
    for (name, (run, shapes)), dtype in product(PRIMITIVES.items(), types):
        orders = 1 if width > typical or dtype is torch.bfloat16 else 2
        inputs = partial(drawn, shapes, edges, width, dtype)
        case = partial(_checked, partial(run, edges=edges), inputs, orders)
        bench.case(f"{name}, {_word(dtype)}", case)


def check_attention(bench: Bench, graph: str) -> None:
    """In float32 at every width; at the typical one in other types, and with heads."""
    edges, typical = graph_of(bench, graph), typical_of(bench.scale.widths)
    tried = [(width, "one head", torch.float32) for width in bench.scale.widths]
    tried += [(typical, heads, dtype) for heads, dtype in product(ATTENTION, bench.scale.types)]
    for normaliser, (width, heads, dtype) in product(NORMALISERS, dict.fromkeys(tried)):
        run = partial(attention_diffusion, edges=edges, normaliser=normaliser)
        inputs = partial(drawn, ATTENTION[heads], edges, width, dtype)
        case = partial(_checked, run, inputs)
        bench.case(f"{normaliser}, {heads}, F = {width}, {_word(dtype)}", case)


def typical_of(widths: Sequence[int]) -> int:
    """The width at which everything is tried: the second."""
    return widths[:2][-1]


def graph_of(bench: Bench, name: str) -> Edges:
    """Complete graphs of all sizes, or one node with very many neighbours."""
    if name == "hub":
        return hub(bench.scale.neighbours, bench.device)
    return complete(bench.scale.clouds, bench.device)


def drawn(shapes: Iterable[str], edges: Edges, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Normal inputs of shapes in letters."""
    device = edges.incoming.ptr.device
    source = rng.generator(0, "inputs", device=device)
    like = torch.zeros((), dtype=torch.float64, device=device)
    axes = {"N": edges.nodes, "E": edges.count, "F": width, "H": HEADS, "K": SCALARS}
    return [
        rng.normal(tuple(axes[letter] for letter in shape), like, source).to(dtype)
        for shape in shapes
    ]


def compared(
    run: Callable[..., Any],
    inputs: Sequence[Tensor],
    tolerance: float,
    orders: int = 1,
    precision: str = "ieee",
) -> Result:
    """Errors of the kernels' values and derivatives, and whether they are the same again.

    Args:
        run: A tensor or several, of the inputs.
        inputs: In the type that the kernels are to take.
        tolerance: Largest error that passes.
        orders: 1 for gradients, 2 for those of the gradients too.
        precision: Of matrix products.
    """
    with by_torch():
        expected = derivatives(run, [value.double() for value in inputs], orders)
        theirs = _errors(derivatives(run, inputs, orders), expected)
    with by_triton(precision):
        with poisoned():
            errors = _errors(derivatives(run, inputs, orders), expected)
        first, second = (derivatives(run, inputs, orders) for _ in range(2))
    repeats = all(
        torch.equal(one, other)
        for name, values in first.items()
        for one, other in zip(values, second[name], strict=True)
    )
    # Where terms cancel, no one has the digits: then as many as torch has are enough. In bf16 torch
    # rounds sums on the way, which is no measure.
    times = 0 if inputs[0].dtype is torch.bfloat16 else LIKE_TORCH
    allowed = {name: max(tolerance, times * error) for name, error in theirs.items()}
    return {
        "errors": errors,
        "torch": theirs,
        "tolerance": tolerance,
        "repeats": repeats,
        "passed": repeats and all(errors[name] < most for name, most in allowed.items()),
    }


def derivatives(
    run: Callable[..., Any], inputs: Sequence[Tensor], orders: int
) -> dict[str, list[Tensor]]:
    """Values, their gradients weighted by signs, and the gradients of the squares of those."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    results = run(*leaves)
    values = [results] if isinstance(results, Tensor) else list(results)
    source = rng.generator(0, "signs", device=leaves[0].device)
    signs = [rng.rademacher(tuple(value.shape), value, source) for value in values]
    first = torch.autograd.grad(
        values, leaves, signs, create_graph=orders > 1, materialize_grads=True
    )
    found = {"value": values, "gradient": list(first)}
    if orders > 1:
        total = torch.stack([gradient.square().sum() for gradient in first]).sum()
        # The square of a constant gradient has none.
        if total.requires_grad:
            found["second"] = list(torch.autograd.grad(total, leaves, materialize_grads=True))
    return {name: [value.detach() for value in values] for name, values in found.items()}


def worst_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest ‖found − expected‖ / ‖expected‖; NaN where a result is not finite."""
    errors = []
    for one, other in zip(found, expected, strict=True):
        difference = (one.double() - other).norm()
        size = other.norm()
        errors.append(difference / torch.where(size > 0, size, torch.ones_like(size)))
    return float(torch.stack(errors).max())


def _checked(
    run: Callable[..., Any], inputs: Callable[[], list[Tensor]], orders: int = 1
) -> Result:
    made = inputs()
    return compared(run, made, TOLERANCE[made[0].dtype], orders)


def _errors(found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> dict[str, float]:
    return {name: worst_error(found[name], values) for name, values in expected.items()}


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
