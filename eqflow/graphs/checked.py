"""Arrays from outside, checked: what is wrong with which one, and what to do about it.

`where` is what errors start with, `key` the name of the array, `nodes` the number of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse
import torch

from eqflow.errors import DataError

Arrays = Mapping[str, np.ndarray]

MOST_COLUMNS = 10_000_000
TRIPLE = ("shape", "indptr", "indices")


def dense_rows(x: np.ndarray, key: str, nodes: int, where: str, dtype: torch.dtype) -> np.ndarray:
    """A dense matrix with a row for each node, all of it finite in `dtype`.

    Raises:
        DataError: If it has another shape or type, or a number that is not finite.
    """
    if x.ndim != 2 or len(x) != nodes or x.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: found {shown(key, x)}, expected ({nodes}, …) of numbers, a row for each "
            "label."
        )
    require_finite(x, lambda row: row, key, where, dtype)
    return x.astype(np.float64 if dtype is torch.float64 else np.float32)


def csr_rows(
    arrays: Arrays, prefix: str, nodes: int, where: str, dtype: torch.dtype | None
) -> scipy.sparse.csr_matrix:
    """The CSR matrix `prefix_…` with a row for each node; its pattern alone where `dtype` is None.

    Raises:
        DataError: If its parts do not fit each other, or a number is not finite.
    """
    shape, starts, columns = (
        whole(arrays[f"{prefix}_{part}"], f"{prefix}_{part}", where, 1) for part in TRIPLE
    )
    if len(shape) != 2 or shape[0] != nodes or len(starts) != nodes + 1 or shape[1] < 0:
        raise DataError(
            f"{where}: found {prefix}_shape {shape.tolist()[:4]} and {len(starts)} entries of "
            f"{prefix}_indptr for {nodes} labels, expected [{nodes}, …] and {nodes + 1}."
        )
    if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] != len(columns):
        raise DataError(
            f"{where}: found {prefix}_indptr from {starts[0]} to {starts[-1]}, expected it to rise "
            f"from 0 to {len(columns)}, the number of {prefix}_indices. The file may be damaged."
        )
    if int(shape[1]) > MOST_COLUMNS:
        # An empty column takes no room in the file, but weights of its own in a model.
        raise DataError(
            f"{where}: found {prefix}_shape of {int(shape[1]):,} columns, expected at most "
            f"{MOST_COLUMNS:,}. Leave out the columns that are empty."
        )
    require_range(columns, f"{prefix}_indices", int(shape[1]), where)
    values = np.ones(len(columns), np.float32)
    if dtype is not None and f"{prefix}_data" in arrays:
        key = f"{prefix}_data"
        data = arrays[key]
        if data.shape != columns.shape or data.dtype.kind not in "fiub":
            raise DataError(
                f"{where}: found {shown(key, data)}, expected ({len(columns)},) of numbers, one "
                f"for each of {prefix}_indices."
            )
        require_finite(
            data,
            lambda entry: int(np.searchsorted(starts, entry, side="right")) - 1,
            key,
            where,
            dtype,
        )
        values = data.astype(np.float64 if dtype is torch.float64 else np.float32)
    return scipy.sparse.csr_matrix((values, columns, starts), shape=tuple(shape.tolist()))


def node_mask(mask: np.ndarray, key: str, nodes: int, where: str) -> np.ndarray:
    """A mask of nodes, (N,), (N, S) or (S, N), as (N, S), bool.

    Raises:
        DataError: If it has another shape, or entries other than true and false, 0 and 1.
    """
    is_binary = mask.dtype.kind in "iu" and bool(((mask == 0) | (mask == 1)).all())
    fits = (mask.ndim == 1 and len(mask) == nodes) or (mask.ndim == 2 and nodes in mask.shape)
    if not fits or not (mask.dtype.kind == "b" or is_binary):
        raise DataError(
            f"{where}: found {shown(key, mask)}, expected bool of shape ({nodes},), ({nodes}, S) "
            f"or (S, {nodes}). Of a list of nodes, make mask = numpy.zeros(N, bool); "
            "mask[nodes] = True."
        )
    if mask.ndim == 1:
        return mask.astype(bool)[:, None]
    return mask.astype(bool) if len(mask) == nodes else mask.astype(bool).T


def has_csr(arrays: Arrays, prefix: str, where: str) -> bool:
    """Whether there is a CSR matrix `prefix_…`.

    Raises:
        DataError: If there are some of its parts without the others.
    """
    there = [f"{prefix}_{part}" for part in TRIPLE if f"{prefix}_{part}" in arrays]
    if there and len(there) < len(TRIPLE):
        missing = [f"{prefix}_{part}" for part in TRIPLE if f"{prefix}_{part}" not in arrays]
        raise DataError(
            f"{where}: found {', '.join(there)} without {', '.join(missing)}, expected all parts "
            "of a CSR matrix."
        )
    return bool(there)


def whole(values: np.ndarray, key: str, where: str, dimensions: int) -> np.ndarray:
    """An array of integers with one or two dimensions, as int64.

    Raises:
        DataError: If it has other dimensions or another type.
    """
    # An empty list of edges has no integers in it, whatever type numpy gave it.
    if values.ndim != dimensions or (values.dtype.kind not in "iu" and values.size):
        shape = ("", "(n,)", "(2, E)")[dimensions]
        raise DataError(f"{where}: found {shown(key, values)}, expected {shape} of integers.")
    return values.astype(np.int64)


def require_range(values: np.ndarray, key: str, below: int, where: str) -> None:
    """Refuse numbers that are not from 0 to `below` − 1.

    Raises:
        DataError: If there are any.
    """
    if values.size and (int(values.min()) < 0 or int(values.max()) >= below):
        raise DataError(
            f"{where}: found {key} from {int(values.min())} to {int(values.max())}, expected 0 to "
            f"{below - 1}. Number from 0, and give each node a row of features and a label."
        )


def require_finite(
    values: np.ndarray,
    node_of: Callable[[int], int],
    key: str,
    where: str,
    dtype: torch.dtype,
) -> None:
    """Refuse numbers that are not finite, or not after they became `dtype`.

    Raises:
        DataError: If there are any; the message names the node of the first, `node_of` its row.
    """
    with np.errstate(over="ignore"):
        cast = values.astype(np.float64 if dtype is torch.float64 else np.float32)
    broken = np.argwhere(~np.isfinite(cast))
    if len(broken):
        node = int(node_of(broken[0][0]))
        raise DataError(
            f"{where}: found {values[tuple(broken[0])]} in {key} of node {node} "
            f"(and {len(broken) - 1} more such numbers), expected numbers that are finite in "
            f"{str(dtype).removeprefix('torch.')}. Mend or remove these nodes."
        )


def shown(key: str, values: np.ndarray) -> str:
    """An array as messages show it: name, shape and type."""
    return f"{key} {values.shape} of {values.dtype}"
