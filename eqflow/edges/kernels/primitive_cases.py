"""The kernels of primitives and attention as they are compiled for typical graphs and widths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from eqflow.edges.kernels import attention_kernels, primitive_kernels
from eqflow.edges.kernels.aot import Case
from eqflow.edges.kernels.attention_passes import KEY_ELEMENTS, QUERY_ELEMENTS, tile_of_heads
from eqflow.edges.kernels.launch import (
    ACCUMULATOR,
    Tile,
    power_of_2,
    tile_of_edges,
    tile_of_rows,
)

# Type of values, channels, mean number of neighbours: 18 as in a molecule, 4 in a sparse graph.
PRIMITIVES = [
    ("fp32", 3, 18),
    ("fp32", 64, 18),
    ("fp32", 128, 4),
    ("bf16", 128, 18),
    ("fp64", 64, 18),
]
ATTENTION = [
    ("fp32", 16, 4),
    ("fp32", 64, 18),
    ("fp32", 256, 18),
    ("bf16", 64, 18),
    ("bf16", 256, 4),
    ("fp64", 64, 18),
]
TYPES = {"fp32": "fp32", "bf16": "fp32", "fp64": "fp64"}  # of values, and of their sums
SUM_TYPES = {"fp32": ACCUMULATOR[torch.float32][1], "fp64": ACCUMULATOR[torch.float64][1]}

INDICES = ["index", "begin", "length", "row", "slot", "edge", "other", "receiver", "sender"]
VALUES = ["m", "w", "x", "p", "q", "g", "query", "key", "logits"]
SUMS = ["out_x", "largest", "total", "mean"]


def aot_cases() -> list[Case]:
    """Every kernel, for a few types, widths and graphs each."""
    primitives = [case for setting in PRIMITIVES for case in _primitives(*setting)]
    return primitives + [case for setting in ATTENTION for case in _attention(*setting)]


def _primitives(value: str, width: int, length: int) -> Iterator[Case]:
    kernels, words = primitive_kernels, f"{value} {width} channels degree {length}"
    rows, edges = tile_of_rows(width, length), tile_of_edges(width)
    sums = {"ACCUMULATOR": SUM_TYPES[TYPES[value]]}
    for in_order in (True, False):
        constants = sums | {"IN_ORDER": in_order}
        name = f"segment_sum {'receiver' if in_order else 'sender'} {words}"
        yield _case(name, kernels.segment_sum_kernel, value, TYPES[value], rows, constants)
    for end, reading in product(("receiver", "sender"), ("receiver", "sender", "difference")):
        constants = sums | {"ROW": end, "B": reading}
        name = f"pull {end} {reading} {words}"
        yield _case(name, kernels.pull_kernel, value, TYPES[value], rows, constants)
    yield _case(
        f"softmax_sums {words}", kernels.softmax_sums_kernel, value, TYPES[value], rows, sums
    )
    forms = [("receiver", "sender"), ("receiver", "difference"), ("difference", "difference")]
    for A, B in forms:
        name, constants = f"dot {A} {B} {words}", sums | {"A": A, "B": B}
        yield _case(name, kernels.dot_kernel, value, value, edges, constants)
    yield _case(f"softmax {words}", kernels.softmax_kernel, value, value, edges, sums)
    yield _case(f"gather {words}", kernels.gather_kernel, value, value, edges, {})


def _attention(value: str, width: int, length: int) -> Iterator[Case]:
    kernels = {
        "attention": (attention_kernels.attention_kernel, QUERY_ELEMENTS),
        "attention_query": (attention_kernels.attention_query_kernel, QUERY_ELEMENTS),
        "attention_key": (attention_kernels.attention_key_kernel, KEY_ELEMENTS),
    }
    for (name, (kernel, elements)), squareplus in product(kernels.items(), (False, True)):
        constants = {
            "ACCUMULATOR": SUM_TYPES[TYPES[value]],
            "WIDTH": width,
            "VALUES": width,
            "SCALE": 1 / math.sqrt(width),
            "SQUAREPLUS": squareplus,
            "VALUE_CHANNELS": power_of_2(width),
        }
        tile = tile_of_heads(width, width, length, elements)
        words = f"{'squareplus' if squareplus else 'softmax'} {value} {width} channels"
        words = f"{name} {words} degree {length}"
        yield _case(words, kernel, value, TYPES[value], tile, constants)


def _case(
    name: str, kernel: Any, value: str, out: str, tile: Tile, constants: dict[str, Any]
) -> Case:
    kinds = {"out": f"*{out}"}
    kinds |= dict.fromkeys(INDICES, "*i32") | dict.fromkeys(VALUES, f"*{value}")
    kinds |= dict.fromkeys(SUMS, f"*{TYPES[value]}")
    shape = {"ROWS": tile.rows, "EDGES": tile.edges, "CHANNELS": tile.channels}
    signature = {
        argument: "constexpr" if argument.isupper() else kinds.get(argument, "i32")
        for argument in kernel.arg_names
    }
    constexprs = {name: v for name, v in (constants | shape).items() if name in signature}
    return Case(name, kernel, signature, constexprs, tile.warps)
