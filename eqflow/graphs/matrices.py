r"""A graph as sparse matrices on the CPU, for encodings that are computed once, before training.

Rows are receivers and columns senders, as in `weighted_sum`: with :math:`A_{rc}` the number of
edges `c → r` and :math:`D` the row sums, the random walk is

.. math:: T = D^{-1} A

which is a mean over those a node listens to. A node that listens to nobody stays where it is:
its :math:`T_{rr}` is 1, so that every row of `T` sums to 1. The matrices are SciPy's, in float64;
what happens in each step of a model goes through `eqflow.edges` instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import svds
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.graphs.features import csr

# Up to so many rows a dense decomposition is as fast as an iterative one, and exact.
DENSE_ROWS = 400
# Rows of a dense block: what a cache holds of it decides the pace of a sparse product.
BLOCK_ROWS = 64


def adjacency(edges: Edges) -> csr_array:
    """`A`, shape (N, N), float64: entry `(r, c)` counts the edges `c → r`."""
    pairs = edges.receiver.cpu().numpy(), edges.sender.cpu().numpy()
    ones = np.ones(edges.count)
    matrix = csr_array((ones, pairs), shape=(edges.nodes, edges.nodes))
    matrix.sum_duplicates()
    return matrix


def both_ways(matrix: csr_array) -> csr_array:
    """The larger of `A` and its transpose: every edge walked in both directions."""
    return csr_array(matrix.maximum(matrix.T))


def is_symmetric(matrix: csr_array) -> bool:
    """Whether every edge has its reverse, as often."""
    return (matrix != matrix.T).nnz == 0


def with_a_place_to_stay(matrix: csr_array) -> csr_array:
    """`A` with a self loop at each node that has no incoming edge."""
    is_stuck = matrix.sum(axis=1) == 0
    return csr_array(matrix + diags_array(is_stuck.astype(matrix.dtype)))


def random_walk(matrix: csr_array) -> csr_array:
    """`T = D⁻¹ A`; each row sums to 1."""
    full = with_a_place_to_stay(matrix)
    return csr_array(diags_array(1 / full.sum(axis=1)) @ full)


def each_graph(edges: Edges, matrix: csr_array) -> Iterator[tuple[int, csr_array]]:
    """First node and own matrix of every graph of a batch that has nodes."""
    ptr = edges.clouds.ptr.tolist()
    for first, last in pairwise(ptr):
        if last > first:
            yield first, matrix[first:last, first:last]


def unit_rows(
    size: int, dtype: np.dtype, block: int = BLOCK_ROWS
) -> Iterator[tuple[int, np.ndarray]]:
    """The identity in blocks of rows, each transposed: first row, and its (size, rows) columns."""
    for first in range(0, size, block):
        rows = np.arange(first, min(first + block, size))
        columns = np.zeros((size, len(rows)), dtype)
        columns[rows, rows - first] = 1
        yield first, columns


def to_torch(matrix: csr_array, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same matrix as a sparse CSR tensor on the CPU."""
    matrix.sort_indices()
    starts, columns = (
        torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices)
    )
    rows, width = matrix.shape
    return csr(starts, columns, torch.from_numpy(matrix.data).to(dtype), (rows, width))


def to_scipy(matrix: Tensor) -> csr_array:
    """A sparse CSR tensor as SciPy's, in its own type."""
    parts = matrix.values(), matrix.col_indices(), matrix.crow_indices()
    return csr_array(tuple(part.detach().cpu().numpy() for part in parts), shape=matrix.shape)


def left_singular(matrix: csr_array, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The `width` largest singular values, falling, and their left vectors.

    Each vector is turned so that its entry of largest size is positive; where singular values
    coincide, the choice within their space is arbitrary. A matrix with fewer gets zeros.

    Returns:
        Vectors (N, width) and values (width,).
    """
    size = min(matrix.shape)
    if size <= max(DENSE_ROWS, width + 1):
        vectors, values, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        # ARPACK starts from here and not from a draw of its own.
        start = rng.normal(
            (size,), torch.zeros(0, dtype=torch.float64), rng.generator(seed, "singular vectors")
        )
        vectors, values, _ = svds(
            matrix, k=width, v0=start.numpy().astype(matrix.dtype), return_singular_vectors="u"
        )
        order = np.argsort(-values)
        vectors, values = vectors[:, order], values[order]
    kept = min(width, len(values))
    padded = np.zeros((matrix.shape[0], width)), np.zeros(width)
    padded[0][:, :kept] = signed(vectors[:, :kept])
    padded[1][:kept] = values[:kept]
    return padded


def signed(vectors: np.ndarray) -> np.ndarray:
    """Columns turned so that the entry of largest size, the first of them, is positive."""
    if not vectors.size:
        return vectors
    # Entries that are equal but for rounding count as equal, or rounding would choose the sign.
    size = np.abs(vectors)
    place = (size >= size.max(axis=0) * (1 - 1e-8)).argmax(axis=0)
    signs = np.sign(vectors[place, np.arange(vectors.shape[1])])
    return vectors * np.where(signs == 0, 1, signs)


def require_width(where: str, width: int) -> None:
    """Refuse a width that is no whole number of at least 1.

    Raises:
        UsageError: That says so.
    """
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise UsageError(
            f"{where}: found width = {width!r}, expected a whole number of at least 1."
        )
