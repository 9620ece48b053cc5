"""Graphs that tests of several modules try things on: regular, irregular and degenerate ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges

Pairs = list[tuple[int, int]]  # (sender, receiver)


def both_ways(pairs: Pairs) -> Pairs:
    return [*pairs, *((b, a) for a, b in pairs)]


SYMMETRIC: dict[str, tuple[Pairs, list[int]]] = {
    "ring": (both_ways([(k, (k + 1) % 6) for k in range(6)]), [6]),
    "star": (both_ways([(0, k) for k in range(1, 6)]), [6]),
    "irregular": (both_ways([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (3, 6)]), [7]),
    "complete": ([(a, b) for a in range(5) for b in range(5) if a != b], [5]),
    "isolated node": (both_ways([(0, 1), (1, 2)]), [4]),
    "two components": (both_ways([(0, 1), (1, 2), (3, 4)]), [5]),
    "two graphs": (both_ways([(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 6)]), [3, 4]),
    "self loops": ([*both_ways([(0, 1), (1, 2)]), (0, 0), (1, 1), (2, 2)], [3]),
    "repeated edges": (both_ways([(0, 1), (0, 1), (1, 2)]), [3]),
}
DIRECTED: dict[str, tuple[Pairs, list[int]]] = {
    "directed": ([(0, 1), (2, 1), (1, 3), (3, 0), (4, 3)], [5]),
    "one edge": ([(0, 1)], [2]),
}


def edges_of(pairs: Pairs, sizes: list[int]) -> Edges:
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    ptr = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    return Edges.from_index(index, int(ptr[-1]), ptr)


def symmetric_graphs() -> Iterator[tuple[str, Edges]]:
    """Graphs with both directions of every edge."""
    for name, (pairs, sizes) in SYMMETRIC.items():
        yield name, edges_of(pairs, sizes)


def graphs() -> Iterator[tuple[str, Edges]]:
    """These and directed ones."""
    yield from symmetric_graphs()
    for name, (pairs, sizes) in DIRECTED.items():
        yield name, edges_of(pairs, sizes)


def states(edges: Edges, width: int, *purpose: str | int) -> Tensor:
    """Normal node states (N, width) in float64."""
    source = rng.generator(0, "tests", *purpose)
    return rng.normal((edges.nodes, width), torch.zeros((), dtype=torch.float64), source)


def dense(weight: Tensor, edges: Edges) -> Tensor:
    """The matrix `w_{rc}` of edge weights (E,), shape (N, N); repeated edges add up."""
    matrix = weight.new_zeros(edges.nodes, edges.nodes)
    return matrix.index_put((edges.receiver, edges.sender), weight, accumulate=True)


def permuted(edges: Edges, order: Tensor) -> Edges:
    """The graph whose node `k` is node `order[k]` of one graph."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    index = torch.stack([place[edges.sender], place[edges.receiver]])
    return Edges.from_index(index, edges.nodes)
