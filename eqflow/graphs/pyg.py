"""Graphs from PyTorch Geometric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eqflow.errors import DataError
from eqflow.graphs.arrays import graph_of_arrays
from eqflow.graphs.graph import Graph

if TYPE_CHECKING:
    import torch_geometric.data

PARTS = ("edge_index", "y", "encoding", "train_mask", "val_mask", "test_mask", "ptr")


def from_pyg(
    data: torch_geometric.data.Data,
    undirected: bool = True,
    self_loops: bool = False,
    name: str = "graph",
    dtype: torch.dtype = torch.float32,
) -> Graph:
    """A graph from a PyG `Data` with `x`, `edge_index`, `y`, and masks where there are any.

    Masks (N,) or (N, S) become splits; `encoding` (N, P) is taken over, edge attributes are not.
    The tensors are copied to the CPU. A data set is `from_pyg(dataset[0])`.

    Args:
        data: One graph, or a `Batch` of graphs with labelled nodes.
        undirected: Whether the reverse of each edge is added and repeats are merged.
        self_loops: Whether edges from a node to itself stay.
        name: Of the graph.
        dtype: Of features and encoding.

    Raises:
        DataError: If a part is missing or malformed.
        EmptyData: If there are no nodes, or a part of a split has none.
    """
    where = f"from_pyg({data})"
    arrays: dict[str, np.ndarray] = {}
    for part in PARTS:
        value = getattr(data, part, None)
        if isinstance(value, Tensor):
            arrays[part] = value.detach().cpu().numpy()
    x = getattr(data, "x", None)
    if isinstance(x, Tensor):
        arrays |= _features(x.detach().cpu())
    elif x is not None:
        raise DataError(
            f"{where}: found x of type {type(x).__name__}, expected a tensor (N, F), dense or "
            "sparse. Convert a SparseTensor with x.to_torch_sparse_csr_tensor()."
        )
    return graph_of_arrays(arrays, where, name, undirected, self_loops, dtype)


def _features(x: Tensor) -> dict[str, np.ndarray]:
    if x.dtype is torch.bfloat16:  # numpy has no such numbers.
        x = x.float()
    if x.layout is torch.strided:
        return {"x": x.numpy()}
    # Coordinates serve all sparse layouts, and PyTorch makes them without the warnings of CSR.
    x = x.to_sparse_coo().coalesce()
    rows, columns = x.indices()
    starts = torch.zeros(x.shape[0] + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(rows, minlength=x.shape[0]).cumsum(0)
    parts = {"shape": torch.tensor(x.shape), "indptr": starts, "indices": columns}
    return {f"x_{part}": value.numpy() for part, value in (parts | {"data": x.values()}).items()}
