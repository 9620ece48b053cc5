"""Every message kernel in every width and precision, as `gpu_checks` has it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from gpu_bench import Bench, Result
from gpu_checks import compared, graph_of
from gpu_problems import MessagePass, message_pass, pairs, with_directions
from gpu_scale import Scale

# What passes through three layers, by the bits of their operands. Rounding emulated as in
# `precision.py` on these graphs gives 1.3e-3 in tf32, and 5.8e-3 if operands were cut.
TOLERANCE = {"ieee": 1e-5, "tf32x3": 2e-5, "tf32": 3e-3, "bf16": 3e-2}
# Graphs whose tiles have more rows need kernels of their own: in these widths for each precision,
# in wider ones for one.
NARROW = 64
ONE_PRECISION = "tf32"


def jobs(scale: Scale) -> dict[str, Callable[[Bench], None]]:
    """One for each width and precision, of values and of values with tangents."""
    found: dict[str, Callable[[Bench], None]] = {}
    for width, precision in product(reversed(scale.widths), scale.precisions):
        words = f"F = {width}, {precision}"
        found[f"messages, {words}"] = partial(check_messages, width=width, precision=precision)
        found[f"messages dual, {words}"] = partial(check_duals, width=width, precision=precision)
    return found


def check_messages(bench: Bench, width: int, precision: str) -> None:
    """Values and gradients on each graph; gradients by inputs alone; every option."""

    def check(graph: str, every_option: bool = False, inputs_only: bool = False) -> Result:
        made = _pass(bench, graph, width, every_option)
        return _compared(made, precision, inputs_only)

    for graph in _graphs(width, precision):
        bench.case(graph, partial(check, graph))
    if width <= NARROW:
        bench.case("inputs only", lambda: check("pairs", inputs_only=True))
        bench.case("every option", lambda: check("pairs", every_option=True))
    if (width, precision) == (bench.scale.widths[0], bench.scale.precisions[0]):
        edges = pairs(bench.scale.pairs, bench.device)
        for d in (1, 2):
            made = message_pass(edges, width, torch.float32, dimension=d)
            bench.case(f"{d} dimensions", partial(_compared, made, precision))


def check_duals(bench: Bench, width: int, precision: str) -> None:
    """One direction on each graph, of positions alone too; several directions; every option."""

    def check(graph: str, directions: int, every_option: bool = False) -> Result:
        made = _pass(bench, graph, width, every_option)
        return _compared(with_directions(made, directions), precision)

    def check_still_features() -> Result:
        made = _pass(bench, "clouds", width)
        return _compared(with_directions(made, 1, of_features=False), precision)

    for graph in _graphs(width, precision):
        bench.case(graph, partial(check, graph, 1))
    bench.case("features stay", check_still_features)
    if width <= NARROW:
        bench.case("three directions", lambda: check("pairs", 3))
        bench.case("every option", lambda: check("pairs", 1, every_option=True))


def _compared(made: MessagePass, precision: str, inputs_only: bool = False) -> Result:
    tensors = made.tensors()
    if not inputs_only:
        return compared(made, tensors, TOLERANCE[precision], precision=precision)
    count = len(tensors) - len(made.network.tensors())
    weights = tensors[count:]

    def of_inputs(*moving: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return made(*moving, *(weight.to(moving[0].dtype) for weight in weights))

    return compared(of_inputs, tensors[:count], TOLERANCE[precision], precision=precision)


def _pass(bench: Bench, graph: str, width: int, every_option: bool = False) -> MessagePass:
    is_small = graph == "pairs"
    edges = pairs(bench.scale.pairs, bench.device) if is_small else graph_of(bench, graph)
    return message_pass(edges, width, torch.float32, every_option=every_option)


def _graphs(width: int, precision: str) -> tuple[str, ...]:
    every = ("clouds", "pairs", "hub")
    return every if width <= NARROW or precision == ONE_PRECISION else every[:1]
