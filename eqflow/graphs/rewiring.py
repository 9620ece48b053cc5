r"""Other edges for the same nodes, decided before training, or between its epochs.

Neighbours by position, kNN or within a radius, are `Edges.knn` and `Edges.radius`; those of a state
that moves are `eqflow.nn.rewired`. No function here joins two graphs of a batch.

References: Diffusion Improves Graph Learning (Gasteiger, Weißenberger, Günnemann, 2019),
arXiv:1911.05485; Beltrami Flow and Neural Diffusion on Graphs (Chamberlain et al., 2021),
arXiv:2110.09443, section 4.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import NumericalError, ShapeError, UsageError
from eqflow.geometry import Segments
from eqflow.geometry.segments import lasting
from eqflow.graphs import matrices
from eqflow.graphs.ppr import Over, normalised_pagerank, sparse_pagerank
from eqflow.graphs.sparsification import AbstractKeep, LargestPerRow

Within = Literal["graph", "receiver"]


def ppr_top_k(edges: Edges, k: int, teleport: float = 0.05, tolerance: float = 1e-5) -> Edges:
    """From the `k` nodes with the largest personalised PageRank for each receiver, itself left out.

    Args:
        edges: The graph.
        k: Incoming edges a node, fewer where its walks reach fewer nodes.
        teleport, tolerance: As in `sparse_pagerank`.

    Raises:
        UsageError: If a setting is out of range.
    """
    keep = LargestPerRow(k)
    U = matrices.to_scipy(sparse_pagerank(edges, LargestPerRow(k + 1), teleport, tolerance))
    # A node hears most from itself, but not always: then the last of k + 1 others goes.
    U = _without_diagonal(U)
    return _edges_of(_largest(U, keep.k), edges)[0]


def diffused_graph(
    edges: Edges,
    keep: AbstractKeep | None = None,
    teleport: float = 0.05,
    normalise: Over | None = "columns",
    tolerance: float = 1e-5,
) -> tuple[Edges, Tensor]:
    """Graph diffusion convolution: the edges and weights of the sparse PageRank matrix.

    Args:
        edges, keep, teleport, normalise, tolerance: As in `ppr_encoding`.

    Returns:
        Edges, self loops among them, and their weights, shape (E,), float32, on the device of the
        graph: `weighted_sum(weights, x, edges)` diffuses.
    """
    U = normalised_pagerank(sparse_pagerank(edges, keep, teleport, tolerance), edges, normalise)
    return _edges_of(matrices.to_scipy(U), edges)


def two_hop(edges: Edges) -> Edges:
    """The pairs joined by an edge, and those joined by two: `c → m → r` gives `c → r`.

    Every pair is there once, self loops only where the graph has them. Each node's neighbours
    become neighbours of each other: at a hub of degree `d` that is `d²` edges.
    """
    A = matrices.adjacency(edges)
    return _edges_of(csr_array(A + _without_diagonal(csr_array(A @ A))), edges)[0]


def union(a: Edges, b: Edges) -> Edges:
    """The pairs that are in either graph, each once.

    Raises:
        ShapeError: If the graphs are not over the same nodes, grouped alike.
    """
    if not torch.equal(a.clouds.ptr, b.clouds.ptr):
        raise ShapeError(
            f"union: found {a} and {b} with other starts of graphs, expected both over the same "
            "nodes. Rewire the batch as a whole."
        )
    return _edges_of(csr_array(matrices.adjacency(a) + matrices.adjacency(b)), a)[0]


@lasting
def prune(edges: Edges, weight: Tensor, keep: float, within: Within = "graph") -> Edges:
    """The fraction `keep` of the edges with the largest weights.

    Of `m` edges `⌈keep · m⌉` stay; of equal weights those that come first in the graph. Pruned
    within receivers, every node that had an edge keeps one; within graphs, some may lose all.

    Args:
        edges: The graph.
        weight: Importance of each edge, such as attention averaged over heads, shape (E,).
        keep: Above 0 and at most 1.
        within: What the fraction is taken of: the edges of each "graph", or of each "receiver".

    Returns:
        The edges that stay; `values[pruned.order]` carries edge values over.

    Raises:
        ShapeError: If there is not one weight an edge.
        NumericalError: If a weight is NaN.
        UsageError: If `keep` or `within` is not as it should be.
    """
    if weight.shape != (edges.count,):
        raise ShapeError(
            f"prune: found weights {tuple(weight.shape)}, expected ({edges.count},), one an edge. "
            "Average over heads first."
        )
    if not 0 < keep <= 1:
        raise UsageError(f"prune: found keep = {keep}, expected a fraction above 0 and at most 1.")
    if within not in ("graph", "receiver"):
        raise UsageError(f"prune: found within={within!r}, expected 'graph' or 'receiver'.")
    if weight.isnan().any():
        raise NumericalError(
            f"prune: found NaN for edge {int(weight.isnan().nonzero()[0])}, expected weights that "
            "can be ordered."
        )
    groups = edges.incoming
    if within == "graph":
        groups = Segments(edges.incoming.ptr[edges.clouds.ptr])
    # Two stable sorts: by weight, then by group, so that groups stay as they stand.
    falling = torch.argsort(weight, descending=True, stable=True)
    falling = falling[torch.argsort(groups.ids[falling], stable=True)]
    # What is a whole number but for rounding, 0.07 of 100, is that number.
    allowed = (groups.lengths.double() * keep - 1e-6).ceil().long()
    stays = torch.zeros(edges.count, dtype=torch.bool, device=weight.device)
    stays[falling] = groups.place < groups.expand(allowed)
    order = stays.nonzero().squeeze(1)
    degree = torch.bincount(edges.receiver[order], minlength=edges.nodes)
    return Edges.trusted(Segments.of_lengths(degree), edges.clouds, edges.sender[order], order)


def _without_diagonal(matrix: csr_array) -> csr_array:
    return csr_array(matrix - diags_array(matrix.diagonal()))


def _largest(matrix: csr_array, k: int) -> csr_array:
    """The `k` largest entries of each row of a sparse matrix, the first of equal ones."""
    entries = matrix.tocoo()
    row, column = entries.coords
    order = np.lexsort((column, -entries.data, row))
    row, column, value = row[order], column[order], entries.data[order]
    start = np.searchsorted(row, np.arange(matrix.shape[0]))
    kept = np.arange(len(row)) - start[row] < k
    return csr_array(coo_array((value[kept], (row[kept], column[kept])), shape=matrix.shape))


def _edges_of(matrix: csr_array, like: Edges) -> tuple[Edges, Tensor]:
    """Edges where a matrix of receivers and senders has entries, and the entries as weights."""
    matrix.eliminate_zeros()
    matrix.sort_indices()
    device = like.clouds.ptr.device
    degree = torch.from_numpy(np.diff(matrix.indptr).astype(np.int64)).to(device)
    sender = torch.from_numpy(matrix.indices.astype(np.int64)).to(device)
    weight = torch.from_numpy(matrix.data.astype(np.float32)).to(device)
    return Edges.trusted(Segments.of_lengths(degree), like.clouds, sender), weight
