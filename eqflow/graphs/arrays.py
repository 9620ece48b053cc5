"""A graph from named arrays, each checked so that an error names the array and what it lacks.

| what | names, of which one is there |
|---|---|
| edges | `edge_index`, `edges` (2, E), senders first; (E, 2) beside `node_features`; CSR `adj_…` |
| features | `x` or `node_features` (N, F); CSR `x_…` or `attr_…` |
| labels | `y`, `labels` or `node_labels` (N,), integers from 0, −1 where one is not known |
| masks, optional | `train_mask`, `val_mask`, `test_mask`, or with `s` at the end |
| optional | `encoding` (N, P); `ptr` (B + 1,) of several graphs; `split_names` (S,); `name` |

A CSR matrix is `…_shape`, `…_indptr`, `…_indices` and `…_data`, whose entries are 1 where there is
no `…_data`. Weights of edges, `adj_data` or `edge_weight`, are not used. Masks of several splits
are (N, S) or (S, N), a square one (N, S); one mask may serve all splits. Arrays of other names are
left alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eqflow.errors import DataError, EmptyData, EqflowError
from eqflow.graphs.adjacency import joined
from eqflow.graphs.checked import (
    TRIPLE,
    Arrays,
    csr_rows,
    dense_rows,
    has_csr,
    node_mask,
    require_range,
    shown,
    whole,
)
from eqflow.graphs.features import from_numpy, from_scipy
from eqflow.graphs.graph import Graph, Split

EDGES, FEATURES = ("edge_index", "edges"), ("x", "node_features")
LABELS = ("y", "labels", "node_labels")
MASKS = {part: (f"{part}_mask", f"{part}_masks") for part in ("train", "val", "test")}
# What is known to give edges weights, for which graphs here have no place.
EDGE_WEIGHTS = ("edge_weight", "edge_weights", "edge_attr", "adj_data")
NAMES = {
    *EDGES,
    *FEATURES,
    *LABELS,
    *(name for names in MASKS.values() for name in names),
    *(f"{prefix}_{part}" for prefix in ("x", "attr", "adj") for part in (*TRIPLE, "data")),
    *("encoding", "ptr", "split_names", "name"),
}


def graph_of_arrays(
    arrays: Arrays,
    where: str,
    name: str = "graph",
    undirected: bool = True,
    self_loops: bool = False,
    dtype: torch.dtype = torch.float32,
    needs_labels: bool = True,
) -> Graph:
    """A graph from arrays with the names above.

    Args:
        arrays: By name.
        where: What errors start with.
        name: Of the graph, where the arrays say none.
        undirected: Whether the reverse of each edge is added and repeats are merged.
        self_loops: Whether edges from a node to itself stay.
        dtype: Of features and encoding.
        needs_labels: Whether arrays without labels are refused; else each is unknown, −1, and
            masks are left out, as parts of a split are of nodes with labels.

    Raises:
        DataError: If an array is missing or not what the table says.
        EmptyData: If there are no nodes, or a part of a split has none.
    """
    is_labelled = needs_labels or any(key in arrays for key in LABELS)
    y = _labels(arrays, where) if is_labelled else _unknown_labels(arrays, where)
    nodes = len(y)
    x = _features(arrays, nodes, where, dtype)
    encoding = None
    if "encoding" in arrays:
        encoding = torch.from_numpy(
            dense_rows(arrays["encoding"], "encoding", nodes, where, dtype)
        ).to(dtype)
    edge_index = _edge_index(arrays, nodes, where)
    ptr = arrays.get("ptr")
    if "name" in arrays and arrays["name"].dtype.kind == "U" and arrays["name"].size == 1:
        name = str(arrays["name"].item())
    try:
        starts = None if ptr is None else torch.from_numpy(whole(ptr, "ptr", where, 1))
        edges = joined(torch.from_numpy(edge_index), nodes, undirected, self_loops, starts)
        splits = _splits(arrays, nodes, where) if is_labelled else ()
        return Graph(x, edges, torch.from_numpy(y), encoding, splits, name)
    except EqflowError as error:
        if str(error).startswith(where):
            raise
        kind = EmptyData if isinstance(error, EmptyData) else DataError
        raise kind(f"{where}: {error}") from error


def _labels(arrays: Arrays, where: str) -> np.ndarray:
    key = _only(arrays, LABELS, "labels", where)
    y = arrays[key]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(
            f"{where}: found {shown(key, y)}, expected (N,) of integers, a class a node. "
            "Number the classes 0, 1, 2, …; several labels a node are not supported."
        )
    if not len(y):
        raise EmptyData(f"{where}: found {shown(key, y)}, expected at least one node.")
    if int(y.max()) >= max(len(y), 2) or int(y.min()) < -1:
        raise DataError(
            f"{where}: found {key} from {int(y.min())} to {int(y.max())} on {len(y)} nodes, "
            "expected classes numbered from 0, fewer than there are nodes, or −1 where one is not "
            "known. Number them with numpy.unique(…, return_inverse=True)."
        )
    return y.astype(np.int64)


def _unknown_labels(arrays: Arrays, where: str) -> np.ndarray:
    """−1 for each row of features."""
    rows = [len(arrays[key]) for key in FEATURES if key in arrays and arrays[key].ndim]
    for prefix in ("x", "attr"):
        if has_csr(arrays, prefix, where):
            rows.append(max(len(arrays[f"{prefix}_indptr"]) - 1, 0))
    if rows and not rows[0]:
        raise EmptyData(f"{where}: found no rows of features, expected at least one node.")
    return np.full(rows[0] if rows else 0, -1, np.int64)


def _features(arrays: Arrays, nodes: int, where: str, dtype: torch.dtype) -> Tensor:
    dense = [key for key in FEATURES if key in arrays]
    sparse = [prefix for prefix in ("x", "attr") if has_csr(arrays, prefix, where)]
    if len(dense) + len(sparse) != 1:
        found = ", ".join([*dense, *(f"{prefix}_…" for prefix in sparse)]) or _listed(arrays)
        raise DataError(
            f"{where}: found {found}, expected features as one of x (N, F), node_features, or a "
            "CSR matrix x_shape, x_indptr, x_indices [, x_data]. Nodes without features may have "
            "their degree, or x = numpy.eye(N)."
        )
    if dense:
        return from_numpy(dense_rows(arrays[dense[0]], dense[0], nodes, where, dtype), dtype)
    return from_scipy(csr_rows(arrays, sparse[0], nodes, where, dtype), dtype)


def _edge_index(arrays: Arrays, nodes: int, where: str) -> np.ndarray:
    if not any(key in arrays for key in EDGES) and has_csr(arrays, "adj", where):
        pairs = csr_rows(arrays, "adj", nodes, where, None)
        if pairs.shape[1] != nodes:
            raise DataError(
                f"{where}: found adj_shape {list(pairs.shape)}, expected {[nodes, nodes]}."
            )
        pairs = pairs.tocoo()
        return np.stack([pairs.row, pairs.col]).astype(np.int64)
    key = _only(arrays, EDGES, "edges", where)
    listed = whole(arrays[key], key, where, 2)
    if key == "edges" and "node_features" in arrays and listed.shape[1] == 2:
        listed = listed.T
    if listed.shape[0] != 2:
        raise DataError(
            f"{where}: found {shown(key, listed)}, expected (2, E): senders, then receivers."
            + (" Transpose it." if listed.shape[1] == 2 else "")
        )
    require_range(listed, key, nodes, where)
    return np.ascontiguousarray(listed)


def _splits(arrays: Arrays, nodes: int, where: str) -> tuple[Split, ...]:
    keys = {part: [key for key in names if key in arrays] for part, names in MASKS.items()}
    if not any(keys.values()):
        return ()
    for part, found in keys.items():
        if len(found) != 1:
            others = [key for names in keys.values() for key in names]
            raise DataError(
                f"{where}: found {', '.join(others)}, expected one mask each of train, val and "
                f"test, or none at all; {part} has {len(found)}. Without masks, draw a split with "
                "eqflow.graphs.random_split."
            )
    masks = [node_mask(arrays[found[0]], found[0], nodes, where) for found in keys.values()]
    count = max(mask.shape[1] for mask in masks)
    for mask, (key,) in zip(masks, keys.values(), strict=True):
        if mask.shape[1] not in (1, count):
            raise DataError(
                f"{where}: found {mask.shape[1]} splits in {key}, expected {count}, as in another "
                "mask, or 1 for all."
            )
    names = arrays.get("split_names")
    if names is None or names.shape != (count,) or names.dtype.kind != "U":
        names = np.array([str(place) for place in range(count)])
    return tuple(
        Split(
            *(torch.from_numpy(mask[:, min(place, mask.shape[1] - 1)].copy()) for mask in masks),
            str(names[place]),
        )
        for place in range(count)
    )


def _only(arrays: Arrays, names: tuple[str, ...], what: str, where: str) -> str:
    found = [name for name in names if name in arrays]
    if len(found) != 1:
        raise DataError(
            f"{where}: found {_listed(arrays)}, expected {what} under exactly one of the names "
            f"{', '.join(names)}. Add or rename the array."
        )
    return found[0]


def _listed(arrays: Arrays) -> str:
    return "the arrays " + ", ".join(arrays) if len(arrays) else "no array that is known"
