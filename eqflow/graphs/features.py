"""Features of nodes, kept sparse where most of them are zero.

A bag of words has a few dozen words of thousands. Such features are a torch CSR matrix, whose
products with weights cost its entries alone: those of Coauthor CS take 13 MB instead of 499 MB. CSR
matrices know `@`, `torch.sparse.mm`, `.to` and arithmetic with numbers; they cannot be indexed by
masks, copied by `copy.deepcopy` or put through `dropout`: act on `.values()` and rebuild by `csr`.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from eqflow.errors import DataError
from eqflow.geometry.segments import Segments
from eqflow.graphs.graph import Graph

SPARSE_BELOW = 0.1  # Share of entries that are not zero.


def csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A torch CSR matrix, without PyTorch's word that such matrices are in beta.

    Args:
        starts: Start of each row among the entries, shape (N + 1,), int64.
        columns: Column of each entry, shape (nnz,), int64, rising within a row.
        values: Entries, shape (nnz,).
        shape: (N, F).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=True)


def from_scipy(matrix: scipy.sparse.csr_matrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """A torch matrix: CSR where less than a tenth of the entries are not zero, else dense.

    Repeated entries are added up, and stored zeros dropped.
    """
    matrix = scipy.sparse.csr_matrix(matrix)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    rows, columns = matrix.shape
    if matrix.nnz >= SPARSE_BELOW * rows * columns:
        return torch.from_numpy(matrix.toarray()).to(dtype)
    parts = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)
    starts, places, values = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return csr(starts, places, values.to(dtype), (rows, columns))


def from_numpy(x: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """A torch matrix of a dense array: CSR where less than a tenth is not zero, else dense."""
    if np.count_nonzero(x) >= SPARSE_BELOW * x.size:
        return torch.from_numpy(np.ascontiguousarray(x)).to(dtype)
    return from_scipy(scipy.sparse.csr_matrix(x), dtype)


def to_scipy(x: Tensor) -> scipy.sparse.csr_matrix:
    """The same matrix for scipy, from a dense or CSR one, on the CPU."""
    if x.layout is not torch.sparse_csr:
        return scipy.sparse.csr_matrix(x.detach().cpu().numpy())
    parts = (x.values().detach(), x.col_indices(), x.crow_indices())
    return scipy.sparse.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=x.shape)


def rows_of(x: Tensor, places: Tensor) -> Tensor:
    """Rows of a dense or CSR matrix, in the same layout.

    Args:
        x: Shape (N, F).
        places: Which rows, shape (M,), int64.
    """
    if x.layout is not torch.sparse_csr:
        return x[places]
    matrix = to_scipy(x)[places.cpu().numpy()]
    parts = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)
    starts, columns, values = (torch.from_numpy(part).to(x.device) for part in parts)
    return csr(starts, columns, values, (len(places), x.shape[1]))


def normalised_features(graph: Graph) -> Graph:
    r"""The same graph with features that add up to 1 in each row, :math:`x_{if} / \sum_g x_{ig}`.

    Rows of zeros stay zero. For counts of words this is what PyG's `NormalizeFeatures` does; that
    one also leaves rows that add up to less than 1 as they are, and shifts all features by the
    least one.

    Raises:
        DataError: If a feature is negative: such a sum may vanish.
    """
    x = graph.x
    sparse = x.layout is torch.sparse_csr
    values = x.values() if sparse else x
    if (values < 0).any():
        raise DataError(
            f"{graph.name}: found the feature {float(values.min()):g}, expected none below 0 to "
            "divide by their sum. Shift or standardise such features instead."
        )
    if not sparse:
        return replace(graph, x=x / _or_one(x.sum(1, keepdim=True)))
    starts = x.crow_indices()
    rows = Segments(starts)
    scaled = values / rows.expand(_or_one(rows.sum(values)))
    return replace(graph, x=csr(starts, x.col_indices(), scaled, (x.shape[0], x.shape[1])))


def binary_features(graph: Graph) -> Graph:
    """The same graph with features that are 1 where they were above 0, and 0 elsewhere.

    PyG reads the Amazon and Coauthor sets so; the files hold counts for the latter.
    """
    x = graph.x
    if x.layout is not torch.sparse_csr:
        return replace(graph, x=(x > 0).to(x.dtype))
    matrix = to_scipy(x)
    matrix.data = (matrix.data > 0).astype(matrix.data.dtype)
    return replace(graph, x=from_scipy(matrix, x.dtype).to(x.device))


def _or_one(sums: Tensor) -> Tensor:
    return torch.where(sums > 0, sums, torch.ones_like(sums))
