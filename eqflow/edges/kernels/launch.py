"""What all kernels on node and edge rows share: what they take, how a program's tile is shaped."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import language as tl

from eqflow.edges.graph import Edges
from eqflow.edges.kernels.device import INTERPRETED, on_device

# Sums are float32 also where the values are narrower, and float64 where they are.
ACCUMULATOR = {
    torch.float16: (torch.float32, tl.float32),
    torch.bfloat16: (torch.float32, tl.float32),
    torch.float32: (torch.float32, tl.float32),
    torch.float64: (torch.float64, tl.float64),
}

_WARPS = 4
# Of a tile: 16 a thread, so that a few tiles fit into the registers. Two sides of an edge, each
# with addresses of its own, take more of them.
_ELEMENTS = 2048
_ELEMENTS_OF_EDGES = 1024
_WIDEST = 128
_LONGEST = 32


@dataclass(frozen=True)
class Tile:
    """What one program holds at once: some edges of some rows, some of their channels.

    Attributes:
        rows, edges, channels: Powers of two.
        warps: Groups of 32 threads that work on it.
    """

    rows: int
    edges: int
    channels: int
    warps: int = _WARPS


def tile_of_rows(
    channels: int, mean_length: float, widest: int = _WIDEST, elements: int = _ELEMENTS
) -> Tile:
    """A tile for a sum over each row's edges: as many rows at once as their length leaves room."""
    wide = min(power_of_2(channels), widest)
    long = min(power_of_2(round(mean_length)), _LONGEST, max(elements // wide, 1))
    return Tile(max(elements // (wide * long), 1), long, wide)


def tile_of_edges(channels: int) -> Tile:
    """A tile for an operation that takes every edge by itself."""
    wide = min(power_of_2(channels), _WIDEST)
    return Tile(1, _ELEMENTS_OF_EDGES // wide, wide)


def power_of_2(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


def launch(kernel: Any, programs: int, out: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run `programs` programs of a kernel that writes to `out`, on the device `out` is on."""
    if programs == 0:
        return
    with on_device(out):
        kernel[(programs,)](out, *arguments, **constants)


def why_not(tensors: Iterable[Tensor], edges: Edges) -> str | None:
    """What keeps the kernels from these tensors on this graph, or None."""
    tensors = tuple(tensors)
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in tensors})
    if len(dtypes) > 1:
        return f"the tensors are of several types ({', '.join(dtypes)})"
    if tensors[0].dtype not in ACCUMULATOR:
        return f"there is no kernel for {dtypes[0]}"
    devices = sorted({str(value.device) for value in (*tensors, edges.incoming.ptr)})
    if len(devices) > 1:
        return f"tensors and graph are on several devices ({', '.join(devices)})"
    if not tensors[0].is_cuda and not INTERPRETED:
        return f"the tensors are on {devices[0]}, and kernels run on a GPU"
    return None
