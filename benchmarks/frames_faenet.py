"""FAENet's own frames, unchanged: its transform a graph at a time, and its average over them.

`faenet` imports its network on the way, and with it pandas, mendeleev and torch_scatter; frames
need none of these. So its modules are imported without running the package's `__init__`.

Reference: FAENet (Duval et al., 2023), arXiv:2305.05577; `pip install --no-deps faenet`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def faenet_module(name: str) -> ModuleType:
    """A module of `faenet`, without its network."""
    if "faenet" not in sys.modules:
        spec = find_spec("faenet")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(
                "frames.py compares with a package that is not installed: faenet. "
                "Run: pip install --no-deps -r benchmarks/requirements.txt"
            )
        package = ModuleType("faenet")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["faenet"] = package
    return import_module(f"faenet.{name}")


def transform_of(method: str) -> Callable[[Any], Any]:
    """FAENet's transform of a PyG graph: `all`, `stochastic`, `det`, or `se3-` and one of them."""
    return faenet_module("transforms").FrameAveraging("3D", method)


def graphs_of(x: Tensor, ptr: Tensor, h: Tensor | None = None) -> list[Any]:
    """A PyG graph for each cloud."""
    from torch_geometric.data import Data

    return [Data(pos=x[a:b], h=None if h is None else h[a:b]) for a, b in pairwise(ptr.tolist())]


def averaged(backbone: Function, method: str) -> Function:
    """The backbone's vectors averaged by FAENet's `model_forward`."""
    from torch_geometric.data import Batch

    forward = faenet_module("fa_forward").model_forward

    def model(batch: Any, mode: str) -> dict[str, Tensor]:
        forces = backbone(batch.pos, batch.ptr, batch.h)
        return {"energy": forces.new_zeros(len(batch.natoms), 1), "forces": forces}

    def of(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        with _as_default(x.dtype):
            transform = transform_of(method)
            batch = Batch.from_data_list([transform(graph) for graph in graphs_of(x, ptr, h)])
            batch.natoms = ptr.diff()
            return forward(batch, model, "3D", crystal_task=False)["forces"]

    return of


@contextmanager
def _as_default(dtype: torch.dtype) -> Iterator[None]:
    """It compares determinants with `torch.tensor(1.0)`, which has to be of their type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
