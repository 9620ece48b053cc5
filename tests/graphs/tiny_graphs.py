"""Small graphs with everything a graph can have, and other numberings of their nodes."""

import torch

from eqflow.edges import Edges
from eqflow.graphs import Graph, Split


def mask(nodes: int, places: list[int]) -> torch.Tensor:
    return torch.isin(torch.arange(nodes), torch.tensor(places))


def two_components() -> Graph:
    """A cycle of five nodes with a pendant, a pair, and a node alone; nine nodes, two splits."""
    pairs = [(8, 2), (2, 5), (5, 0), (0, 3), (3, 8), (3, 7), (1, 6)]
    index = torch.tensor(pairs + [(b, a) for a, b in pairs]).T
    y = torch.tensor([0, 1, 0, 1, -1, 2, 1, 0, 2])
    splits = (
        Split(mask(9, [0, 3, 5]), mask(9, [2, 1]), mask(9, [7, 8]), "first"),
        Split(mask(9, [2, 3, 8]), mask(9, [0]), mask(9, [5, 6, 7]), "second"),
    )
    x = torch.arange(9 * 4.0).reshape(9, 4) / 7
    return Graph(x, Edges.from_index(index, 9), y, x[:, :2] - 1, splits, "tiny")


def renumbered(graph: Graph, order: torch.Tensor) -> Graph:
    """The same graph whose node `k` is node `order[k]` of the first, made without `subgraph`."""
    place = torch.argsort(order)
    index = torch.stack([place[graph.edges.sender], place[graph.edges.receiver]])
    return Graph(
        graph.x.to_dense()[order],
        Edges.from_index(index, graph.nodes),
        graph.y[order],
        None if graph.encoding is None else graph.encoding[order],
        tuple(
            Split(*(part[order] for part in split.parts.values()), split.name)
            for split in graph.splits
        ),
        graph.name,
    )
