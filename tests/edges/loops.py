"""What each edge primitive means, written edge by edge over a plain list of (sender, receiver).

Slow and independent of the package: the answer the backends are held to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow.edges import (
    Edges,
    attention_weights,
    difference_dot,
    edge_dot,
    edge_linear,
    gather,
    normalised,
    segment_softmax,
    segment_sum,
    squared_distance,
    weighted_difference,
    weighted_sum,
)

Pairs = list[tuple[int, int]]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest value expected (of 1 where that is smaller)."""
    assert found.shape == expected.shape
    if found.numel() == 0:
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def at_edges(rows: list[Tensor], like: Tensor, *trailing: int) -> Tensor:
    return torch.stack(rows) if rows else like.new_zeros(0, *trailing)


def at_nodes(m: Tensor, ends: list[int], n: int) -> Tensor:
    """Rows of `m` added up at the node named for each."""
    sums = [m.new_zeros(m.shape[1:]) for _ in range(n)]
    for e, node in enumerate(ends):
        sums[node] = sums[node] + m[e]
    return torch.stack(sums) if n else m.new_zeros(0, *m.shape[1:])


def loop_gather(end: int) -> Callable[..., Tensor]:
    def run(pairs: Pairs, n: int, x: Tensor) -> Tensor:
        return at_edges([x[pair[end]] for pair in pairs], x, *x.shape[1:])

    return run


def loop_segment_sum(end: int) -> Callable[..., Tensor]:
    return lambda pairs, n, m: at_nodes(m, [pair[end] for pair in pairs], n)


def loop_edge_dot(pairs: Pairs, n: int, p: Tensor, q: Tensor) -> Tensor:
    return at_edges([(p[r] * q[c]).sum(-1) for c, r in pairs], p, *p.shape[1:-1])


def loop_weighted(pairs: Pairs, n: int, w: Tensor, rows: list[Tensor], x: Tensor) -> Tensor:
    """`Σ_{e→i} w_e row_e` with the heads of `w`, of `x`, or of both."""
    heads = w.shape[1:] if w.dim() == 2 else x.shape[1:-1]
    wide = [
        torch.stack([w[e] * row if w.dim() == 1 else w[e, k] * row for k in range(*heads)])
        if heads and row.dim() == 1
        else (w[e].reshape(-1, 1) * row if heads else w[e] * row)
        for e, row in enumerate(rows)
    ]
    return at_nodes(at_edges(wide, x, *heads, x.shape[-1]), [r for _, r in pairs], n)


def loop_weighted_sum(pairs: Pairs, n: int, w: Tensor, x: Tensor) -> Tensor:
    return loop_weighted(pairs, n, w, [x[c] for c, _ in pairs], x)


def loop_weighted_difference(pairs: Pairs, n: int, w: Tensor, x: Tensor) -> Tensor:
    return loop_weighted(pairs, n, w, [x[c] - x[r] for c, r in pairs], x)


def loop_difference_dot(pairs: Pairs, n: int, g: Tensor, x: Tensor) -> Tensor:
    return at_edges([(g[r] * (x[c] - x[r])).sum(-1) for c, r in pairs], g, *g.shape[1:-1])


def loop_squared_distance(pairs: Pairs, n: int, x: Tensor) -> Tensor:
    return at_edges([(x[c] - x[r]).square().sum() for c, r in pairs], x)


def loop_segment_softmax(end: int) -> Callable[..., Tensor]:
    def run(pairs: Pairs, n: int, logits: Tensor) -> Tensor:
        rows = []
        for e, pair in enumerate(pairs):
            beside = logits[[k for k, other in enumerate(pairs) if other[end] == pair[end]]]
            rows.append((logits[e] - torch.logsumexp(beside, 0)).exp())
        return at_edges(rows, logits, *logits.shape[1:])

    return run


def loop_squareplus(end: int) -> Callable[..., Tensor]:
    def run(pairs: Pairs, n: int, logits: Tensor) -> Tensor:
        positive = (logits + (logits.square() + 4).sqrt()) / 2
        total = at_nodes(positive, [pair[end] for pair in pairs], n)
        rows = [positive[e] / total[pair[end]] for e, pair in enumerate(pairs)]
        return at_edges(rows, logits, *logits.shape[1:])

    return run


def loop_attention_weights(loop: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(pairs: Pairs, n: int, query: Tensor, key: Tensor) -> Tensor:
        logits = loop_edge_dot(pairs, n, query, key) / query.shape[-1] ** 0.5
        return loop(pairs, n, logits)

    return run


def loop_edge_linear(pairs: Pairs, n: int, p: Tensor, q: Tensor, a: Tensor, W: Tensor) -> Tensor:
    return at_edges([p[r] + q[c] + W @ a[e] for e, (c, r) in enumerate(pairs)], p, p.shape[1])


@dataclass(frozen=True)
class Primitive:
    """One primitive at inputs of one kind.

    Attributes:
        run: The primitive, `run(*inputs, edges)`.
        loop: Its meaning, `loop(pairs, n, *inputs)`.
        shapes: Shape of each input, with "N" for nodes and "E" for edges.
    """

    run: Callable[..., Tensor]
    loop: Callable[..., Tensor]
    shapes: tuple[tuple[str | int, ...], ...]

    def inputs(self, edges: Edges, seed: int = 0, dtype: torch.dtype = torch.float64) -> list:
        source = torch.Generator().manual_seed(seed)
        size = {"N": edges.nodes, "E": edges.count}
        shapes = [[size.get(axis, axis) for axis in shape] for shape in self.shapes]
        drawn = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]
        return [value.to(dtype).to(edges.incoming.ptr.device) for value in drawn]


def sender(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda values, edges: fn(values, edges, "sender")


def receiver(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda values, edges: fn(values, edges, "receiver")


def with_options(fn: Callable[..., Tensor], *options: str) -> Callable[..., Tensor]:
    return lambda *values_and_edges: fn(*values_and_edges, *options)


PRIMITIVES = {
    "gather, sender": Primitive(sender(gather), loop_gather(0), (("N", 3),)),
    "gather, receiver": Primitive(receiver(gather), loop_gather(1), (("N", 3),)),
    "gather, vector": Primitive(gather, loop_gather(0), (("N",),)),
    "gather, heads": Primitive(gather, loop_gather(0), (("N", 2, 3),)),
    "segment_sum, receiver": Primitive(receiver(segment_sum), loop_segment_sum(1), (("E", 3),)),
    "segment_sum, sender": Primitive(sender(segment_sum), loop_segment_sum(0), (("E", 3),)),
    "segment_sum, vector": Primitive(segment_sum, loop_segment_sum(1), (("E",),)),
    "segment_sum, heads": Primitive(segment_sum, loop_segment_sum(1), (("E", 2, 3),)),
    "edge_dot": Primitive(edge_dot, loop_edge_dot, (("N", 3), ("N", 3))),
    "edge_dot, heads": Primitive(edge_dot, loop_edge_dot, (("N", 2, 3), ("N", 2, 3))),
    "weighted_sum": Primitive(weighted_sum, loop_weighted_sum, (("E",), ("N", 3))),
    "weighted_sum, heads": Primitive(weighted_sum, loop_weighted_sum, (("E", 2), ("N", 2, 3))),
    "weighted_sum, heads share x": Primitive(weighted_sum, loop_weighted_sum, (("E", 2), ("N", 3))),
    "weighted_sum, heads share w": Primitive(
        weighted_sum, loop_weighted_sum, (("E",), ("N", 2, 3))
    ),
    "weighted_difference": Primitive(
        weighted_difference, loop_weighted_difference, (("E",), ("N", 3))
    ),
    "weighted_difference, heads": Primitive(
        weighted_difference, loop_weighted_difference, (("E", 2), ("N", 2, 3))
    ),
    "weighted_difference, heads share x": Primitive(
        weighted_difference, loop_weighted_difference, (("E", 2), ("N", 3))
    ),
    "weighted_difference, heads share w": Primitive(
        weighted_difference, loop_weighted_difference, (("E",), ("N", 2, 3))
    ),
    "difference_dot": Primitive(difference_dot, loop_difference_dot, (("N", 3), ("N", 3))),
    "difference_dot, heads": Primitive(
        difference_dot, loop_difference_dot, (("N", 2, 3), ("N", 2, 3))
    ),
    "difference_dot, heads share x": Primitive(
        difference_dot, loop_difference_dot, (("N", 2, 3), ("N", 3))
    ),
    "squared_distance": Primitive(squared_distance, loop_squared_distance, (("N", 3),)),
    "segment_softmax": Primitive(segment_softmax, loop_segment_softmax(1), (("E",),)),
    "segment_softmax, heads": Primitive(segment_softmax, loop_segment_softmax(1), (("E", 2),)),
    "segment_softmax, sender": Primitive(
        sender(segment_softmax), loop_segment_softmax(0), (("E",),)
    ),
    "segment_softmax, heads, sender": Primitive(
        sender(segment_softmax), loop_segment_softmax(0), (("E", 2),)
    ),
    "normalised, squareplus": Primitive(
        with_options(normalised, "squareplus", "receiver"), loop_squareplus(1), (("E", 2),)
    ),
    "normalised, squareplus, sender": Primitive(
        with_options(normalised, "squareplus", "sender"), loop_squareplus(0), (("E",),)
    ),
    "attention_weights": Primitive(
        attention_weights,
        loop_attention_weights(loop_segment_softmax(1)),
        (("N", 3), ("N", 3)),
    ),
    "attention_weights, heads, sender": Primitive(
        with_options(attention_weights, "softmax", "sender"),
        loop_attention_weights(loop_segment_softmax(0)),
        (("N", 2, 3), ("N", 2, 3)),
    ),
    "attention_weights, heads, squareplus": Primitive(
        with_options(attention_weights, "squareplus", "receiver"),
        loop_attention_weights(loop_squareplus(1)),
        (("N", 2, 3), ("N", 2, 3)),
    ),
    "edge_linear": Primitive(edge_linear, loop_edge_linear, (("N", 4), ("N", 4), ("E", 2), (4, 2))),
    "edge_linear, no scalars": Primitive(
        edge_linear, loop_edge_linear, (("N", 4), ("N", 4), ("E", 0), (4, 0))
    ),
}


@dataclass(frozen=True)
class Graph:
    """A graph as a list: edges in any order, and the sizes of the clouds."""

    pairs: Pairs
    sizes: tuple[int, ...]

    def edges(self, device: str = "cpu") -> Edges:
        index = torch.tensor(self.pairs, dtype=torch.int64).reshape(-1, 2).t()
        ptr = torch.tensor([0, *self.sizes]).cumsum(0)
        return Edges.from_index(index.to(device), sum(self.sizes), ptr.to(device))


def complete(*sizes: int) -> Graph:
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return Graph(
        [
            (start + c, start + r)
            for start, size in zip(starts, sizes, strict=True)
            for r in range(size)
            for c in range(size)
            if c != r
        ],
        sizes,
    )


GRAPHS = {
    "no nodes": Graph([], (0,)),
    "no clouds": Graph([], ()),
    "no edges": Graph([], (3,)),
    "one self loop": Graph([(0, 0)], (1,)),
    "uniform": complete(3, 3),
    "ragged": complete(3, 1, 4, 0, 2),
    "isolated": Graph([(4, 1), (1, 4), (2, 4)], (6,)),
    "repeated and loops": Graph([(2, 0), (1, 1), (2, 0), (0, 2), (1, 1), (1, 0), (2, 0)], (3,)),
    "unsorted clouds": Graph([(5, 3), (1, 0), (3, 5), (0, 1), (4, 3), (2, 1), (3, 4)], (3, 3)),
    "one receiver": Graph([(k, 2) for k in (4, 0, 3, 1)], (5,)),
}
