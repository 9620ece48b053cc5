r"""Personalised PageRank: where a random walk is that restarts at its own node now and then.

With `T` the random walk (`eqflow.graphs.matrices`) and `1 − β` the probability to restart,

.. math::
    U = (1 - \beta) (I - \beta T)^{-1} = (1 - \beta) \sum_k \beta^k T^k

(the printed formula has the Laplacian for `T`, for which the series diverges). Row `i` sums to 1
and says from where node `i` hears: a walk goes from receiver to sender, so that `U x` smooths
features as `weighted_sum` does. A node that hears from nobody has itself alone.

Graphs too large for a dense solve are done by blocks of rows, with one sparse product a term:

- Where every edge has its reverse, `T` is similar to a symmetric matrix with eigenvalues in
  [−1, 1], on which :math:`1 / (1 - \beta s) = \sum_k c_k T_k(s)` in Chebyshev polynomials, with
  :math:`c_k = (2 - \delta_{k0}) \, r^k / \sqrt{1 - \beta^2}`,
  :math:`r = (1 - \sqrt{1 - \beta^2}) / \beta`. What is left out after `K` terms is at most
  :math:`2 r^K / ((1 - r) \sqrt{1 - \beta^2})`: at `β = 0.95` and to
  1e-5, 37 terms on a regular graph, where powers take 225.
- Otherwise by powers. All terms are positive and each row sums to 1, so what is left out of a row
  is :math:`\beta^K` exactly.

References: Diffusion Improves Graph Learning (Gasteiger, Weißenberger, Günnemann, 2019),
arXiv:1911.05485, eq. 1-3 and section 3; Beltrami Flow and Neural Diffusion on Graphs (Chamberlain
et al., 2021), arXiv:2110.09443, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.graphs import matrices
from eqflow.graphs.matrices import each_graph
from eqflow.graphs.sparsification import AbstractKeep, Entries, LargestPerRow

Over = Literal["rows", "columns", "symmetric_columns"]

# A dense matrix of so many rows takes 3 GiB, and its solve about as much again.
DENSE_LIMIT = 20_000
# From here on float32 rounds less than the tolerance lets go, and is more than twice as fast.
SINGLE_PRECISION_TOLERANCE = 1e-5


def personalised_pagerank(edges: Edges, teleport: float = 0.05) -> Tensor:
    """`U`, exactly, by a dense solve for each graph of the batch.

    Takes `O(n³)` time and `O(N²)` memory: one CPU-second for Cora's 2,708 nodes.

    Args:
        edges: The graph; repeated edges count as often as they are there.
        teleport: `1 − β`, the probability to restart at each step, above 0 and at most 1.

    Returns:
        Shape (N, N), float64, on the CPU; zero between graphs.

    Raises:
        UsageError: If the teleport probability is out of range, or the graph is too large.
    """
    _require_teleport(teleport)
    if edges.nodes > DENSE_LIMIT:
        raise UsageError(
            f"personalised_pagerank: found {edges.nodes} nodes, expected at most {DENSE_LIMIT} "
            "for a dense matrix. Use sparse_pagerank, which keeps the largest entries."
        )
    beta = 1 - teleport
    U = torch.zeros(edges.nodes, edges.nodes, dtype=torch.float64)
    for first, A in each_graph(edges, matrices.adjacency(edges)):
        T = torch.from_numpy(matrices.random_walk(A).toarray())
        identity = torch.eye(len(T), dtype=torch.float64)
        last = first + len(T)
        U[first:last, first:last] = teleport * torch.linalg.solve(identity - beta * T, identity)
    return U


def sparse_pagerank(
    edges: Edges,
    keep: AbstractKeep | None = None,
    teleport: float = 0.05,
    tolerance: float = 1e-5,
) -> Tensor:
    """The entries of `U` worth keeping, by a series over blocks of rows.

    Args:
        edges: The graph.
        keep: `LargestPerRow(k)`, `AtLeast(epsilon)` or `AverageDegree(degree)`; the 64 largest of
            each row by default.
        teleport: `1 − β`, above 0 and at most 1.
        tolerance: How far an entry may be off, absolutely: the series ends when what it leaves out
            is below. Computed in float32 from 1e-5 on.

    Returns:
        Sparse CSR of shape (N, N), float64, on the CPU. A row sums to what was kept of its 1.

    Raises:
        UsageError: If the teleport probability or the tolerance is out of range.
    """
    _require_teleport(teleport)
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance: found {tolerance}, expected a number between 0 and 1.")
    keep = LargestPerRow() if keep is None else keep
    kept = Entries(edges.nodes)
    for first, A in each_graph(edges, matrices.adjacency(edges)):
        ours = Entries(edges.nodes)
        limit = 4 * A.shape[0] * matrices.BLOCK_ROWS
        for row, U in pagerank_rows(A, teleport, tolerance):
            ours.add(keep.of_rows(U), U, row + first, first)
            if ours.count > limit:
                # Nothing outside the largest of these can be among the largest of all.
                ours = ours.only(keep, A.shape[0])
                limit = max(limit, 2 * ours.count)
        kept.join(ours.only(keep, A.shape[0]))
    return matrices.to_torch(kept.matrix())


def ppr_encoding(
    edges: Edges,
    keep: AbstractKeep | None = None,
    teleport: float = 0.05,
    normalise: Over | None = "columns",
    tolerance: float = 1e-5,
) -> Tensor:
    """A positional encoding: each node's row of the sparse `U`, one channel a node.

    A classifier projects it by a linear layer, `N` to the width of positions, learned with the
    rest; a channel means nothing in another graph, so this suits a single graph. The published code
    of BLEND does so with every entry (`LargestPerRow(N)`) of a graph with self loops, and
    "symmetric_columns".

    Args:
        edges, keep, teleport, tolerance: As in `sparse_pagerank`.
        normalise: What sums to 1 again after entries were dropped: "rows", "columns", or the
            columns of `√d_i U_ij / √d_j`, "symmetric_columns", which is what `D^{-1/2} A D^{-1/2}`
            gives in place of `T`. None leaves entries as they are.

    Returns:
        Sparse CSR of shape (N, N), float32, for `Graph.encoding`.

    Raises:
        UsageError: If a setting is out of range or has no such name.
    """
    U = sparse_pagerank(edges, keep, teleport, tolerance)
    return normalised_pagerank(U, edges, normalise).to(torch.float32)


def ppr_low_rank_encoding(
    edges: Edges,
    width: int,
    keep: AbstractKeep | None = None,
    teleport: float = 0.05,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> Tensor:
    r"""A dense encoding of given width: :math:`Y \sqrt\Sigma` of :math:`U \approx Y \Sigma Z^T`.

    Each graph of a batch is decomposed on its own, so this suits batches too.

    Args:
        edges, keep, teleport, tolerance: As in `sparse_pagerank`.
        width: Channels P; those beyond a graph's nodes are zero.
        seed: Of the iteration's first vector; changes rounding alone, where singular values differ.

    Returns:
        Shape (N, P), float32. The sign of each channel is fixed by its largest entry; channels of
        equal singular values are arbitrary within their space.

    Raises:
        UsageError: If the width is not at least 1.
    """
    matrices.require_width("ppr_low_rank_encoding", width)
    U = matrices.to_scipy(sparse_pagerank(edges, keep, teleport, tolerance))
    encoding = np.zeros((edges.nodes, width))
    for first, own in each_graph(edges, U):
        vectors, values = matrices.left_singular(own, width, seed)
        encoding[first : first + own.shape[0]] = vectors * np.sqrt(values)
    return torch.from_numpy(encoding).to(torch.float32)


def normalised_pagerank(matrix: Tensor, edges: Edges, over: Over | None) -> Tensor:
    """`U` with sums of 1 as in `ppr_encoding`; rows or columns that are zero stay so.

    Raises:
        UsageError: If there is no such way.
    """
    if over is None:
        return matrix
    if over not in ("rows", "columns", "symmetric_columns"):
        raise UsageError(
            f"normalise: found {over!r}, expected 'rows', 'columns', 'symmetric_columns' or None."
        )
    values = matrices.to_scipy(matrix)
    if over == "symmetric_columns":
        degree = matrices.with_a_place_to_stay(matrices.adjacency(edges)).sum(axis=1)
        # The factor of each column falls out with its sum.
        values = csr_array(diags_array(np.sqrt(degree)) @ values)
    sums = values.sum(axis=1 if over == "rows" else 0)
    scale = diags_array(np.divide(1, sums, out=np.zeros_like(sums), where=sums != 0))
    return matrices.to_torch(csr_array(scale @ values if over == "rows" else values @ scale))


def pagerank_rows(
    A: csr_array, teleport: float, tolerance: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of `U` of one graph in blocks: the first row, and an array (rows, n).

    Args:
        A: Adjacency, shape (n, n).
        teleport: `1 − β`.
        tolerance: Largest absolute error of an entry.
    """
    dtype = np.dtype(np.float32 if tolerance >= SINGLE_PRECISION_TOLERANCE else np.float64)
    beta = 1 - teleport
    if matrices.is_symmetric(A):
        full = matrices.with_a_place_to_stay(A)
        root = np.sqrt(full.sum(axis=1))
        S = csr_array(diags_array(1 / root) @ full @ diags_array(1 / root)).astype(dtype)
        # Going back from S to T multiplies an entry's error by at most this.
        stretch = float(root.max() / root.min())
        weights = teleport * chebyshev_weights(beta, tolerance / (teleport * stretch))
        for first, X in matrices.unit_rows(len(root), dtype):
            P = _chebyshev_sum(S.__matmul__, X, weights)
            P *= root[:, None].astype(dtype)
            P /= root[first : first + X.shape[1]].astype(dtype)
            yield first, np.ascontiguousarray(P.clip(min=0).T)
        return
    # Rows of T^k are columns of its transpose's.
    back = csr_array(matrices.random_walk(A).T).astype(dtype)
    terms = 1 if beta == 0 else math.ceil(math.log(tolerance) / math.log(beta))
    for first, X in matrices.unit_rows(A.shape[0], dtype):
        total = X.copy()
        for _ in range(terms - 1):
            X = back @ X
            X *= dtype.type(beta)
            total += X
        yield first, np.ascontiguousarray(total.T) * dtype.type(teleport)


def chebyshev_weights(beta: float, tolerance: float) -> np.ndarray:
    """Coefficients of `1 / (1 − β s)` on [−1, 1], as many as leave out less than `tolerance`."""
    if beta == 0:
        return np.ones(1)
    root = math.sqrt(1 - beta**2)
    # Equal to (1 − root) / β, without its cancellation.
    r = beta / (1 + root)
    terms = math.log(tolerance * (1 - r) * root / 2) / math.log(r)
    c = 2 * r ** np.arange(max(1, math.ceil(terms))) / root
    c[0] /= 2
    return c


def _chebyshev_sum(
    apply: Callable[[np.ndarray], np.ndarray], X: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """`Σ_k w_k T_k(S) X` by the recurrence `T_{k+1} = 2 S T_k − T_{k−1}`."""
    total = X * X.dtype.type(weights[0])
    before, now = X, apply(X) if len(weights) > 1 else X
    for k, weight in enumerate(weights[1:], start=1):
        total += now * X.dtype.type(weight)
        if k + 1 < len(weights):
            after = apply(now)
            after *= 2
            after -= before
            before, now = now, after
    return total


def _require_teleport(teleport: float) -> None:
    if not 0 < teleport <= 1:
        raise UsageError(
            f"teleport: found {teleport}, expected a probability above 0 and at most 1."
        )
