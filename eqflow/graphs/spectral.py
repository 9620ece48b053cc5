r"""Encodings from the spectrum of a graph: eigenvectors of its Laplacian, and returning walks.

The normalised Laplacian :math:`L = I - D^{-1/2} A D^{-1/2}` has an eigenvalue 0 for each connected
component, whose vector :math:`\sqrt{d}` on that component says which it is and nothing else: these
zero modes are left out, all of them, and the next ones are the encoding. Eigenvectors are given up
to their sign: `random_signs` draws one for each channel of each graph, so that a model in training
does not come to rely on ours. Return probabilities :math:`(T^k)_{ii}` of the random walk have no
such ambiguity.

PyG's `AddLaplacianEigenvectorPE` leaves out one zero mode only, draws from global generators, and
takes a batch for one graph; its `AddRandomWalkPE` takes repeated edges for one where it is dense.
On graphs that are connected and simple they agree with these, which the tests show.

References: Benchmarking Graph Neural Networks (Dwivedi et al., 2020), arXiv:2003.00982, section
2.2; Graph Neural Networks with Learnable Structural and Positional Representations (Dwivedi et al.,
2021), arXiv:2110.07875, eq. 12.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import ShapeError
from eqflow.geometry import Segments
from eqflow.graphs import matrices
from eqflow.graphs.matrices import each_graph


def laplacian_encoding(edges: Edges, width: int, seed: int = 0) -> Tensor:
    """Eigenvectors of the `width` smallest eigenvalues of `L` above 0, each graph on its own.

    Self loops are left out, and edges count both ways, whichever way they point. Of a graph in
    several components, the smallest eigenvalues of all of them are taken: each vector is of one
    component and zero on the others, unless eigenvalues coincide.

    Args:
        edges: The graph.
        width: Channels P; those beyond the modes of a graph are zero.
        seed: Of the iteration's first vector; changes rounding alone, where eigenvalues differ.

    Returns:
        Shape (N, P), float64: unit vectors, the entry of largest size positive. Isolated nodes are
        at the origin. Vectors of equal eigenvalues are arbitrary within their space.

    Raises:
        UsageError: If the width is not at least 1.
    """
    matrices.require_width("laplacian_encoding", width)
    encoding = np.zeros((edges.nodes, width))
    for first, A in each_graph(edges, matrices.adjacency(edges)):
        modes = _modes(A, width, seed)
        encoding[first : first + A.shape[0], : modes.shape[1]] = modes
    return torch.from_numpy(encoding)


def _modes(A: csr_array, width: int, seed: int) -> np.ndarray:
    A = matrices.both_ways(A)
    A = csr_array(A - diags_array(A.diagonal()))
    degree = A.sum(axis=1)
    root = np.sqrt(degree)
    inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
    S = csr_array(diags_array(inverse) @ A @ diags_array(inverse))
    # The zero modes of L are known: of each component, √d; of an isolated node, itself.
    count, component = connected_components(A, directed=False)
    root[degree == 0] = 1
    norm = np.sqrt(np.bincount(component, weights=root**2))
    Z = csr_array(
        (root / norm[component], (np.arange(len(root)), component)), shape=(len(root), count)
    )
    kept = min(width, len(root) - count)
    if kept == 0:
        return np.zeros((len(root), 0))
    # Isolated nodes have L_ii = 0. Zero modes are moved from eigenvalue 1 of S to −2, out of the
    # way: so many equal ones are what an iteration is bad at.
    if len(root) <= max(matrices.DENSE_ROWS, width + 1):
        dense = S.toarray() + np.diag((degree == 0).astype(float)) - 3 * (Z @ Z.T).toarray()
        vectors = np.linalg.eigh(dense)[1][:, ::-1][:, :kept]
        return matrices.signed(vectors)
    stuck = (degree == 0).astype(float)

    def apply(x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(root), -1)
        return S @ x + stuck[:, None] * x - 3 * (Z @ (Z.T @ x))

    shape = (len(root), len(root))
    operator = LinearOperator(shape, matvec=apply, matmat=apply, dtype=np.float64)
    start = rng.normal(
        (len(root),), torch.zeros(0, dtype=torch.float64), rng.generator(seed, "eigenvectors")
    )
    values, vectors = eigsh(operator, k=kept, which="LA", v0=start.numpy())
    return matrices.signed(vectors[:, np.argsort(-values)])


def random_walk_encoding(edges: Edges, width: int) -> Tensor:
    """Probabilities that a walk is back where it began after 1, 2, …, `width` steps.

    A walk goes from receiver to sender, each edge with equal probability, repeated ones as often as
    they are there. A node that hears from nobody keeps its walk: its probabilities are 1.

    Args:
        edges: The graph.
        width: Channels P, steps of the walk.

    Returns:
        Shape (N, P), float64.

    Raises:
        UsageError: If the width is not at least 1.
    """
    matrices.require_width("random_walk_encoding", width)
    encoding = np.zeros((edges.nodes, width))
    for first, A in each_graph(edges, matrices.adjacency(edges)):
        back = csr_array(matrices.random_walk(A).T)
        for row, X in matrices.unit_rows(A.shape[0], np.dtype(np.float64)):
            own = np.arange(X.shape[1])
            for step in range(width):
                X = back @ X
                encoding[first + row + own, step] = X[row + own, own]
    return torch.from_numpy(encoding)


def random_signs(encoding: Tensor, clouds: Segments, source: torch.Generator) -> Tensor:
    """The encoding with a random sign for each channel of each graph, for training.

    Args:
        encoding: Shape (N, P).
        clouds: Nodes grouped by graph.
        source: A generator from `eqflow.rng`, such as `rng.generator(seed, "signs", step)`, on the
            device of the encoding.

    Returns:
        Shape (N, P).

    Raises:
        ShapeError: If the encoding does not have one row a node.
    """
    if encoding.dim() != 2 or len(encoding) != clouds.rows:
        raise ShapeError(
            f"random_signs: found an encoding {tuple(encoding.shape)}, expected (N, P) with "
            f"N = {clouds.rows}, one row a node."
        )
    signs = rng.rademacher((clouds.count, encoding.shape[1]), encoding, source)
    return encoding * clouds.expand(signs)
