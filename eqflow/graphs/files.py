"""Graphs in `.npz` files: eqflow's own layout and those of two public collections.

The names of the arrays are in `eqflow.graphs.arrays`. They cover what `write_graph` writes, the
files of gnn-benchmark (Shchur et al., 2018, arXiv:1811.05868) and those of heterophilous-graphs
(Platonov et al., 2023, arXiv:2302.11640). Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from eqflow import storage
from eqflow.data.numpy_files import load_arrays
from eqflow.data.text import require_content
from eqflow.errors import DataError, UsageError
from eqflow.graphs.arrays import EDGE_WEIGHTS, NAMES, graph_of_arrays
from eqflow.graphs.features import to_scipy
from eqflow.graphs.graph import Graph


def read_graph(
    path: str | Path,
    undirected: bool = True,
    self_loops: bool = False,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    needs_labels: bool = True,
) -> Graph:
    """A graph from an `.npz` file.

    Args:
        path: The file; `eqflow.graphs.arrays` says which arrays are looked for.
        undirected: Whether the reverse of each edge is added and repeats are merged. Otherwise
            edges stay as listed; mind that files of heterophilous-graphs list each undirected edge
            once, in a direction that means nothing.
        self_loops: Whether edges from a node to itself stay.
        name: Of the graph; the one in the file, else that of the file, where None.
        dtype: Of features and encoding.
        needs_labels: Whether a file without labels is refused; else each is unknown, −1, and its
            splits are left out.

    Raises:
        DataError: If the file is missing or damaged, or an array is missing or malformed.
        EmptyData: If the file is empty, has no nodes, or a part of a split has none.
    """
    path = Path(path)
    arrays = _arrays(path)
    if name is not None:
        arrays.pop("name", None)
    name = name or path.stem
    return graph_of_arrays(
        arrays, str(path), name, undirected, self_loops, dtype, needs_labels=needs_labels
    )


def edge_weights_in(path: str | Path) -> str | None:
    """The array of a graph file that gives edges weights that differ, which `read_graph` ignores.

    Raises:
        DataError: If the file is missing or damaged.
    """
    path = Path(path)
    found = _arrays(path, EDGE_WEIGHTS)
    for key in EDGE_WEIGHTS:
        values = found.get(key)
        if values is not None and values.size and bool((values != values.flat[0]).any()):
            return key
    return None


def write_graph(graph: Graph, path: str | Path) -> None:
    """Write a graph as `.npz` in eqflow's own layout, whole or not at all.

    `read_graph(path, undirected=False, self_loops=True, dtype=graph.x.dtype)` gives back the very
    same graph, its edges in the order of `graph.edges`.

    Raises:
        UsageError: If the path has another ending.
        StorageError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise UsageError(f"{path}: found the ending {path.suffix!r}, expected .npz for a graph.")
    edges = graph.edges
    arrays: dict[str, np.ndarray] = {
        "edge_index": torch.stack([edges.sender, edges.receiver]).cpu().numpy(),
        "y": graph.y.cpu().numpy(),
        "name": np.array(graph.name),
    }
    if graph.x.layout is torch.sparse_csr:
        matrix = to_scipy(graph.x)
        arrays |= {"x_shape": np.array(matrix.shape), "x_indptr": matrix.indptr}
        arrays |= {"x_indices": matrix.indices, "x_data": matrix.data}
    else:
        arrays["x"] = graph.x.detach().cpu().numpy()
    if graph.encoding is not None:
        arrays["encoding"] = graph.encoding.detach().cpu().numpy()
    if edges.clouds.count > 1:
        arrays["ptr"] = edges.clouds.ptr.cpu().numpy()
    if graph.splits:
        for key, part in (("train", "train"), ("val", "validation"), ("test", "test")):
            masks = [split.parts[part] for split in graph.splits]
            arrays[f"{key}_mask"] = torch.stack(masks, 1).cpu().numpy()
        arrays["split_names"] = np.array([split.name for split in graph.splits])
    storage.write_atomically(path, partial(_save, arrays))


def _save(arrays: dict[str, Any], file: IO[bytes]) -> None:
    np.savez_compressed(file, **arrays)


def _arrays(path: Path, names: Collection[str] = NAMES) -> dict[str, np.ndarray]:
    head = require_content(path)
    if not head.startswith(b"PK"):
        raise DataError(
            f"{path}: found a file that starts with {head[:8]!r}, expected a graph in an .npz "
            "file. Pickles and .pt files are never opened: convert them with "
            "eqflow.graphs.from_pyg and write_graph where you trust them."
        )
    return load_arrays(path, names)
