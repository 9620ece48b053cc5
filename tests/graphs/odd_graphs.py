"""Graphs with all that may befall a graph, and a batch of them, for encodings and rewiring."""

import pytest
import torch

from eqflow.edges import Edges

PAIRS = {
    "path": (4, [(0, 1), (1, 2), (2, 3)], True),
    "ring with chords": (7, [(k, (k + 1) % 7) for k in range(7)] + [(0, 3), (1, 5)], True),
    "star": (6, [(0, k) for k in range(1, 6)], True),
    "two components and a node alone": (6, [(0, 1), (1, 2), (2, 0), (4, 5)], True),
    "directed": (5, [(0, 1), (1, 2), (2, 0), (3, 2), (1, 4)], False),
    "repeated edges": (4, [(0, 1), (0, 1), (1, 2), (2, 3), (2, 3), (2, 3)], True),
    "self loops": (4, [(0, 0), (0, 1), (1, 2), (3, 3)], True),
    "no edges": (3, [], True),
}


def edges_of(pairs: list[tuple[int, int]], n: int, ptr: torch.Tensor | None = None) -> Edges:
    return Edges.from_index(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T, n, ptr)


def pairs_of(name: str) -> tuple[int, list[tuple[int, int]]]:
    n, pairs, is_undirected = PAIRS[name]
    return n, pairs + [(b, a) for a, b in pairs if is_undirected and a != b]


def single(name: str) -> Edges:
    n, pairs = pairs_of(name)
    return edges_of(pairs, n)


def batched() -> tuple[Edges, list[Edges]]:
    """All of them as one batch, an empty graph among them, and each alone."""
    pairs, sizes = [], [0]
    for name in PAIRS:
        n, own = pairs_of(name)
        pairs += [(a + sum(sizes), b + sum(sizes)) for a, b in own]
        sizes += [n] if name != "star" else [n, 0]
    ptr = torch.tensor(sizes).cumsum(0)
    return edges_of(pairs, int(ptr[-1]), ptr), [single(name) for name in PAIRS]


def counts(edges: Edges) -> torch.Tensor:
    """Entry (r, c): how many edges go from c to r; edge by edge."""
    A = torch.zeros(edges.nodes, edges.nodes, dtype=torch.float64)
    for c, r in zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True):
        A[r, c] += 1
    return A


def walk(edges: Edges) -> torch.Tensor:
    """The random walk from receivers to senders, staying where there is nowhere to go."""
    A = counts(edges)
    for node in range(edges.nodes):
        if A[node].sum() == 0:
            A[node, node] = 1
    return A / A.sum(1, keepdim=True)


def blocks(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.block_diag(*parts)


def renumbered(edges: Edges, order: torch.Tensor) -> Edges:
    """The graph whose node `k` is node `order[k]` of the first."""
    place = torch.argsort(order)
    return Edges.from_index(place[torch.stack([edges.sender, edges.receiver])], edges.nodes)


def random_edges(n: int, m: int, seed: int = 0) -> Edges:
    """A simple undirected graph, connected by a ring."""
    source = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, n, (m, 2), generator=source).tolist()
    pairs = {(min(p), max(p)) for p in pairs if p[0] != p[1]}
    pairs |= {(k, k + 1) for k in range(n - 1)} | {(0, n - 1)}
    return edges_of(sorted(pairs) + [(b, a) for a, b in sorted(pairs)], n)


every_graph = pytest.mark.parametrize("name", PAIRS)
