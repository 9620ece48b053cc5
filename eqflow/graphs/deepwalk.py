r"""DeepWalk in its closed form: nodes that walks visit together lie together.

DeepWalk draws random walks and trains a skip-gram with `b` negative samples on pairs of nodes at
most `w` steps apart. As walks grow in number and length, what it factorises is known:

.. math::
    M = \frac{\mathrm{vol}(G)}{b w} \Big(\sum_{r=1}^{w} T^r\Big) D^{-1}, \qquad
    \log \max(M, 1) \approx Y \Sigma Z^T, \qquad u = Y \sqrt\Sigma

with the random walk :math:`T = D^{-1} A` and :math:`\mathrm{vol}(G) = \sum_i d_i`. Taking the limit
instead of the samples needs no walks to be drawn, no training and no learning rate, has no noise
between seeds, and takes seconds where the published skip-gram settings (80 walks of 40 steps a
node) ask for millions of pairs an epoch. PyG's `Node2Vec` draws, and wants a compiled extension.

References: Network Embedding as Matrix Factorization: Unifying DeepWalk, LINE, PTE, and node2vec
(Qiu et al., 2018), arXiv:1710.02971, theorem 2.3 and algorithm 3; DeepWalk: Online Learning of
Social Representations (Perozzi, Al-Rfou, Skiena, 2014), arXiv:1403.6652.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.graphs import matrices
from eqflow.graphs.matrices import each_graph


def deepwalk(
    edges: Edges,
    width: int,
    window: int = 10,
    negatives: int = 1,
    seed: int = 0,
) -> Tensor:
    """An embedding of every node, each graph of a batch on its own.

    Args:
        edges: The graph; walks go along edges both ways, whichever way they point.
        width: Channels P; those beyond a graph's nodes are zero.
        window: `w`, how many steps apart two nodes count as visited together.
        negatives: `b`, negative samples of the skip-gram: more of them, fewer entries.
        seed: Of the iteration's first vector; changes rounding alone, where singular values differ.

    Returns:
        Shape (N, P), float32. The sign of each channel is fixed by its largest entry. An isolated
        node is at the origin.

    Raises:
        UsageError: If the width, window or number of negatives is not at least 1.
    """
    matrices.require_width("deepwalk", width)
    _require_counts(window, negatives)
    encoding = np.zeros((edges.nodes, width))
    for first, A in each_graph(edges, matrices.adjacency(edges)):
        M = _logarithms(A, window, negatives, np.dtype(np.float32))
        vectors, values = matrices.left_singular(M, width, seed)
        encoding[first : first + A.shape[0]] = vectors * np.sqrt(values)
    return torch.from_numpy(encoding).to(torch.float32)


def deepwalk_matrix(edges: Edges, window: int = 10, negatives: int = 1) -> Tensor:
    """`log max(M, 1)`, what DeepWalk factorises; arguments as in `deepwalk`.

    Returns:
        Sparse CSR of shape (N, N), float64, symmetric: pairs that are visited together no more
        often than by chance have no entry.
    """
    _require_counts(window, negatives)
    blocks = [
        (first, _logarithms(A, window, negatives, np.dtype(np.float64)).tocoo())
        for first, A in each_graph(edges, matrices.adjacency(edges))
    ]
    row = [first + M.coords[0].astype(np.int64) for first, M in blocks]
    column = [first + M.coords[1].astype(np.int64) for first, M in blocks]
    whole = csr_array((edges.nodes, edges.nodes))
    if blocks:
        values = np.concatenate([M.data for _, M in blocks])
        pairs = np.concatenate(row), np.concatenate(column)
        whole = csr_array((values, pairs), shape=whole.shape)
    return matrices.to_torch(whole)


def _logarithms(A: csr_array, window: int, negatives: int, dtype: np.dtype) -> csr_array:
    """`log max(M, 1)` of one graph, by blocks of rows, so that `M` is never there as a whole."""
    A = matrices.both_ways(A)
    degree = A.sum(axis=1)
    scale = degree.sum() / (negatives * window)
    # Rows of T^r are columns of its transpose's.
    back = csr_array(matrices.random_walk(A).T).astype(dtype)
    inverse = np.divide(1, degree, out=np.zeros_like(degree), where=degree > 0)
    blocks = []
    for _, X in matrices.unit_rows(A.shape[0], dtype):
        total = np.zeros_like(X)
        for _ in range(window):
            X = back @ X
            total += X
        total *= (scale * inverse)[:, None].astype(dtype)
        blocks.append(csr_array(np.log(total.clip(min=1)).T))
    return csr_array(vstack(blocks, format="csr"))


def _require_counts(window: int, negatives: int) -> None:
    for name, count in (("window", window), ("negatives", negatives)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UsageError(
                f"deepwalk: found {name} = {count!r}, expected a whole number of at least 1."
            )
