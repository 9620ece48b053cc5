"""From a list of edges to `Edges`: both directions, repeats merged, self loops left out.

Published files list edges in three ways: each direction by itself (citations, links), both
directions, or each undirected edge once, in a direction that means nothing. Diffusion is defined on
undirected graphs, so by default all three become symmetric.
"""

from __future__ import annotations

from torch import Tensor

from eqflow.edges import Edges


def joined(
    edge_index: Tensor,
    nodes: int,
    undirected: bool = True,
    self_loops: bool = False,
    ptr: Tensor | None = None,
) -> Edges:
    """Edges of a list of pairs; nodes that are in no pair stay, without edges.

    Args:
        edge_index: Senders and receivers, shape (2, E), int64.
        nodes: Number of nodes, N.
        undirected: Whether the reverse of each edge is added and repeats are merged; otherwise
            edges stay as they are listed, repeats included.
        self_loops: Whether edges from a node to itself stay.
        ptr: Start of each graph where there are several, shape (B + 1,).

    Raises:
        ShapeError: If the shape or type is wrong, or an index is out of range.
    """
    edges = Edges.from_index(edge_index, nodes, ptr)
    if not undirected and (self_loops or not (edge_index[0] == edge_index[1]).any()):
        return edges
    if not self_loops:
        edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    edges = Edges.from_index(edge_index, nodes, ptr)
    return edges.undirected() if undirected else edges
