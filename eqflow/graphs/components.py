"""Connected components: which nodes reach each other, and the largest such part of a graph.

Diffusion carries nothing from one component to another, and benchmarks of it are often reported on
the largest one.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import DataError, EmptyData, ShapeError
from eqflow.graphs.features import rows_of
from eqflow.graphs.graph import Graph, Split


def component_ids(edges: Edges) -> Tensor:
    """Component of each node, shape (N,), int64, numbered by size, the largest 0.

    Directions are ignored: nodes joined by an edge in either are in one component. Among components
    of one size the one with the lowest node comes first.
    """
    n = edges.nodes
    pairs = (edges.sender.cpu().numpy(), edges.receiver.cpu().numpy())
    matrix = scipy.sparse.coo_matrix((np.ones(edges.count, np.int8), pairs), shape=(n, n))
    _, found = connected_components(matrix.tocsr().astype(bool), directed=False)
    _, first, member, sizes = np.unique(
        found, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return torch.from_numpy(rank[member]).to(edges.receiver.device)


def largest_component(graph: Graph) -> tuple[Graph, Tensor]:
    """The largest connected component, in the order its nodes had.

    Returns:
        The graph, and which nodes of the whole these are, shape (M,), int64.

    Raises:
        EmptyData: If the graph has no nodes, or a part of a split has none of the nodes that stay.
    """
    if not graph.nodes:
        raise EmptyData(f"{graph.name}: found no nodes, expected a component.")
    places = (component_ids(graph.edges) == 0).nonzero().squeeze(1)
    return subgraph(graph, places), places


def subgraph(graph: Graph, places: Tensor) -> Graph:
    """The nodes in `places`, in that order, and the edges among them; splits keep these nodes.

    Args:
        graph: One graph; the nodes that stay are one graph too.
        places: Which nodes, shape (M,), int64, none twice.

    Raises:
        ShapeError: If `places` has another shape or type, or is out of range.
        DataError: If a node is named twice.
        EmptyData: If a part of a split has none of the nodes that stay.
    """
    n, edges = graph.nodes, graph.edges
    if places.dim() != 1 or places.dtype != torch.int64:
        raise ShapeError(
            f"subgraph: found places {tuple(places.shape)} of {places.dtype}, expected (M,) of "
            "torch.int64. Of a mask, take mask.nonzero().squeeze(1)."
        )
    if len(places) and (int(places.min()) < 0 or int(places.max()) >= n):
        raise ShapeError(
            f"subgraph: found places from {int(places.min())} to {int(places.max())}, expected 0 "
            f"to {n - 1}."
        )
    if len(places.unique()) != len(places):
        raise DataError("subgraph: found a node twice in places, expected each at most once.")
    new = torch.full((n,), -1, dtype=torch.int64, device=places.device)
    new[places] = torch.arange(len(places), device=places.device)
    inside = torch.stack([new[edges.sender], new[edges.receiver]])
    inside = inside[:, (inside >= 0).all(0)]
    return Graph(
        rows_of(graph.x, places),
        Edges.from_index(inside, len(places)),
        graph.y[places],
        None if graph.encoding is None else graph.encoding[places],
        tuple(_kept(graph, split, places) for split in graph.splits),
        graph.name,
    )


def _kept(graph: Graph, split: Split, places: Tensor) -> Split:
    try:
        return Split(*(mask[places] for mask in split.parts.values()), split.name)
    except EmptyData as error:
        raise EmptyData(
            f"{graph.name}: {error} These are what is left of it among {len(places)} of "
            f"{graph.nodes} nodes. Take out the split first, and draw another one afterwards."
        ) from error
