"""Homophily: how often neighbours are of one class, which decides whether smoothing helps."""

from __future__ import annotations

from eqflow.graphs.graph import Graph


def homophily(graph: Graph) -> float:
    r"""Edge homophily, the share of edges between nodes of one class.

    .. math:: h = \frac{|\{(i, j) \in E : y_i = y_j\}|}{|E|}

    Self loops, and edges of nodes without a label, do not count. NaN where no edge is left.

    Reference: Beyond Homophily in Graph Neural Networks (Zhu et al., 2020), arXiv:2006.11468,
    definition 1.

    >>> import torch
    >>> from eqflow.edges import Edges
    >>> edges = Edges.from_index(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
    >>> homophily(Graph(torch.ones(3, 1), edges, torch.tensor([0, 0, 1])))
    0.5
    """
    edges = graph.edges
    sent, received = graph.y[edges.sender], graph.y[edges.receiver]
    counted = (edges.sender != edges.receiver) & (sent >= 0) & (received >= 0)
    same = (sent == received)[counted]
    return float(same.double().mean()) if len(same) else float("nan")
