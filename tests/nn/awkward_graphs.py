"""Graphs that layers on fixed graphs are tried on, each with what is awkward about it by name."""

from __future__ import annotations

import networkx
import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges


def draws(*shape: int, seed: int = 0) -> Tensor:
    like = torch.zeros((), dtype=torch.float64)
    return rng.normal(shape, like, rng.generator(seed, "odd graphs"))


def both_ways(pairs: list[tuple[int, int]], n: int, ptr: list[int] | None = None) -> Edges:
    """An edge in each direction for each pair; a loop once."""
    turned = [(j, i) for i, j in pairs if i != j]
    return directed(pairs + turned, n, ptr)


def directed(pairs: list[tuple[int, int]], n: int, ptr: list[int] | None = None) -> Edges:
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    return Edges.from_index(index, n, None if ptr is None else torch.tensor(ptr))


def of_networkx(graph: networkx.Graph) -> Edges:
    return both_ways(list(graph.edges), graph.number_of_nodes())


IRREGULAR = of_networkx(networkx.barabasi_albert_graph(12, 2, seed=1))
GRID = of_networkx(networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(4, 5)))
PATH = [(0, 1), (1, 2), (2, 3)]

# Each edge in both directions, as often in one as in the other.
SYMMETRIC = {
    "irregular": IRREGULAR,
    "grid": GRID,
    "complete, two clouds": Edges.complete(torch.tensor([0, 4, 7])),
    "two components and an isolated node": both_ways([*PATH, (4, 5)], 7),
    "repeated edges": both_ways([*PATH, (0, 1), (0, 3)], 4),
    "self loops": both_ways([*PATH, (0, 0), (2, 2), (2, 2)], 4),
    "a batch": both_ways([(0, 1), (1, 2), (3, 4), (4, 5), (5, 3), (5, 6)], 8, [0, 3, 7, 8]),
    "no edges": both_ways([], 3),
}
DIRECTED = {
    "directed": directed([(0, 1), (2, 1), (3, 1), (1, 4), (4, 0), (0, 3)], 6),
    "directed and repeated": directed([(0, 1), (0, 1), (1, 0), (2, 1), (1, 1), (2, 3)], 4),
    "a directed batch": directed([(0, 1), (2, 1), (4, 3), (3, 5), (5, 4)], 6, [0, 3, 6]),
}
GRAPHS = SYMMETRIC | DIRECTED


def adjacency(edges: Edges) -> Tensor:
    """Number of edges to each row's node from each column's, (N, N)."""
    a = torch.zeros(edges.nodes, edges.nodes, dtype=torch.float64)
    for c, r in zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True):
        a[r, c] += 1
    return a


def cloud_matrix(edges: Edges) -> Tensor:
    """Which node is of which graph, (B, N)."""
    return (edges.clouds.ids == torch.arange(edges.clouds.count).unsqueeze(1)).double()


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest value expected (of 1 where that is smaller)."""
    assert found.shape == expected.shape
    if not found.numel():
        return 0.0
    scale = expected.detach().abs().max().clamp(min=1)
    return float((found - expected).detach().abs().max() / scale)
