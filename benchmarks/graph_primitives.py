"""The edge primitives on CPU: kernels for rows of a table against formulas of gathered rows.

The package has both, `eqflow.edges.reference.by_hand.rows` and `eqflow.edges.reference.primitives`,
and chooses by size. Here it takes turns with itself without the kernels, in one process with one
thread. Figures are medians of CPU milliseconds for a call; an error is that of the value against
float64, in units of its largest entry. On small graphs and on positions both sides are to be alike.

PYTHONPATH=. python benchmarks/graph_primitives.py [rounds=7]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from harness import race, write_results
from torch import Tensor

from eqflow import rng
from eqflow.edges import (
    Edges,
    attention_diffusion,
    attention_weights,
    difference_dot,
    edge_dot,
    normalised,
    weighted_difference,
    weighted_sum,
)
from eqflow.edges.reference.by_hand import rows

HEADS, HEAD_WIDTH = 8, 16
SIZES = ("LARGE", "LARGE_DIFFERENCE", "LARGE_WEIGHTS")
Case = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def main(rounds: int = 7) -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    tables = {}
    for name, (edges, width) in graphs().items():
        print(f"{name}: {edges.nodes} nodes, {edges.count} edges, {width} channels", flush=True)
        tables[name] = {}
        for case, parts in cases(edges, width).items():
            tables[name][case] = table = _measured(*parts, edges, rounds)
            print(f"  {case}: " + ", ".join(f"{k} {v:.3g}" for k, v in table.items()), flush=True)
    write_results("graph_primitives", {"milliseconds": tables})


def graphs() -> dict[str, tuple[Edges, int]]:
    """Graphs and the width of their features."""
    return {
        "size of Cora": (citations(2708, 5278), 80),
        "20 000 nodes": (uniform(20_000, 400_000), 64),
        "small": (uniform(64, 500), 16),
        "positions, 64 clouds of 13": (Edges.complete(torch.arange(65) * 13), 3),
    }


def citations(nodes: int, pairs: int) -> Edges:
    """Both directions of pairs with a few nodes of high degree, and a loop at every node."""
    source = rng.generator(0, "graph_primitives", "citations")
    u = rng.normal((pairs,), torch.zeros(()), source).abs()
    hubs = (nodes * (u / 4).clamp(max=1 - 1e-6) ** 3).long()
    others = rng.permutation(pairs, source) % nodes
    loops = torch.arange(nodes)
    pair = torch.stack([torch.cat([hubs, others, loops]), torch.cat([others, hubs, loops])])
    return Edges.from_index(pair, nodes)


def uniform(nodes: int, count: int) -> Edges:
    """Directed edges between nodes drawn at random."""
    source = rng.generator(0, "graph_primitives", "uniform", nodes)
    ends = [rng.permutation(count, source) % nodes for _ in range(2)]
    return Edges.from_index(torch.stack(ends), nodes)


def cases(edges: Edges, width: int) -> dict[str, Case]:
    """What is called on either side, and on what."""
    source = rng.generator(0, "graph_primitives", "values")

    def draw(*shape: int) -> Tensor:
        return rng.normal(shape, torch.zeros(()), source)

    w, logits = draw(edges.count), draw(edges.count, HEADS)
    g, x = draw(edges.nodes, width), draw(edges.nodes, width)
    found: dict[str, Case] = {
        "weighted_sum": (weighted_sum, (w, x)),
        "weighted_difference": (weighted_difference, (w, x)),
        "edge_dot": (edge_dot, (g, x)),
        "difference_dot": (difference_dot, (g, x)),
        "softmax": (normalised, (w,)),
    }
    if width < HEAD_WIDTH:
        return found
    query, key, values = (draw(edges.nodes, HEADS, HEAD_WIDTH) for _ in range(3))
    return found | {
        "weighted_sum, 8 heads": (weighted_sum, (logits, values)),
        "edge_dot, 8 heads": (edge_dot, (query, key)),
        "softmax, 8 heads": (normalised, (logits,)),
        "squareplus, 8 heads": (
            lambda logits, edges: normalised(logits, edges, "squareplus"),
            (logits,),
        ),
        "softmax of senders, 8 heads": (
            lambda logits, edges: normalised(logits, edges, "softmax", "sender"),
            (logits,),
        ),
        "attention_weights, 8 heads": (attention_weights, (query, key)),
        "attention_weights, squareplus, 8 heads": (
            lambda q, k, edges: attention_weights(q, k, edges, "squareplus"),
            (query, key),
        ),
        "sum by mean attention, 8 heads": (
            lambda q, x, edges: weighted_sum(attention_weights(q, q, edges).mean(1), x, edges),
            (query, x),
        ),
        "attention_diffusion, 8 heads": (attention_diffusion, (query, key, values)),
    }


@contextmanager
def formulas_alone() -> Iterator[None]:
    """No call inside is large enough for the kernels."""
    kept = {name: getattr(rows, name) for name in SIZES}
    for name in SIZES:
        setattr(rows, name, 2**62)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(rows, name, value)


def _measured(
    call: Callable[..., Tensor], inputs: tuple[Tensor, ...], edges: Edges, rounds: int
) -> dict[str, float]:
    leaves = [value.clone().requires_grad_() for value in inputs]
    with formulas_alone():
        exact = call(*[value.double() for value in inputs], edges)
    error = float((call(*inputs, edges) - exact).abs().max() / exact.abs().max())
    covector = rng.normal(exact.shape, inputs[0], rng.generator(0, "covector"))
    repeats = max(1, 200_000 // edges.count)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(repeats):
                call(*inputs, edges)

    def both() -> None:
        for _ in range(repeats):
            torch.autograd.grad(call(*leaves, edges), leaves, covector)

    table = {"error": error}
    for name, passes in {"forward": forward, "forward + backward": both}.items():
        seconds = race(
            {"eqflow": passes, "formulas": formulas_alone()(passes)}, rounds, steady=True
        )
        for side, taken in seconds.items():
            table[f"{name}, {side}"] = 1e3 * taken / repeats
    return table


if __name__ == "__main__":
    main(*(int(argument.partition("=")[2]) for argument in sys.argv[1:]))
