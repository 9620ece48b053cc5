"""Attention on graphs: eqflow against PyG's `TransformerConv` and `GATConv`.

`TransformerConv` computes `Σ_e a_e v_c` with softmax weights of scaled dot products. eqflow's
`attention_diffusion` computes `Σ_e a_e (v_c − v_r)`, which is `Σ_e a_e v_c − v_r` as the weights
sum to 1: with `v_r` added it is the same function, though it forms a difference on each edge. The
same sum without differences, `weighted_sum` of `attention_weights`, runs beside it. `GATConv` adds
logits of both ends; eqflow has no such layer, but its primitives compose it in three lines.
Linear maps of queries, keys and values are part of both sides, weights copied. Graphs are random,
with edges both ways and a self loop at each node; PyG gets them sorted by receiver, as eqflow's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peers_contest import agreement, contest
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch_geometric.nn import GATConv, TransformerConv

from eqflow import rng
from eqflow.edges import (
    Edges,
    attention_diffusion,
    attention_weights,
    gather,
    segment_softmax,
    weighted_sum,
)

CHANNELS = 64
HEADS = (1, 8)
# Nodes and pairs of neighbours, Cora's and more: edges are twice the pairs and one loop a node.
GRAPHS = {
    "2,708 nodes, 13,264 edges": (2_708, 5_278),
    "20,000 nodes, 400,000 edges": (20_000, 190_000),
}

Layer = Callable[[Tensor], Tensor]


def compare(rounds: int) -> list[dict[str, Any]]:
    """Forward and forward + backward on each graph, for each number of heads."""
    return [row for graph in GRAPHS for heads in HEADS for row in _rows(graph, heads, rounds)]


def _rows(graph: str, heads: int, rounds: int) -> Iterator[dict[str, Any]]:
    edges = _random_graph(*GRAPHS[graph])
    edge_index = torch.stack([edges.sender, edges.receiver])
    source = rng.generator(0, "peers", "attention")
    x = rng.normal((edges.nodes, CHANNELS), torch.zeros(()), source).requires_grad_()
    case = f"{graph}, {heads} head{'s' * (heads > 1)}"

    with rng.seeded(0, "weights"):
        transformer = TransformerConv(CHANNELS, CHANNELS // heads, heads, root_weight=False)
        gat = GATConv(CHANNELS, CHANNELS // heads, heads, add_self_loops=False, bias=False)
    contestants: list[tuple[str, nn.Module, Layer]] = [
        ("TransformerConv", transformer, partial(_diffusion, transformer, edges)),
        ("TransformerConv, weighted_sum", transformer, partial(_attention, transformer, edges)),
        ("GATConv", gat, partial(_gat, gat, edges)),
    ]
    for peer, module, mine in contestants:
        theirs = partial(module, edge_index=edge_index)
        equal = agreement(f"{case}, {peer}", _results(mine, x), _results(theirs, x))
        for work, ours, other in (
            ("forward", partial(_value, mine, x), partial(_value, theirs, x)),
            ("forward + backward", partial(_descend, mine, x), partial(_descend, theirs, x)),
        ):
            yield contest(case, work, peer, ours, other, rounds, equal)


def _diffusion(layer: TransformerConv, edges: Edges, x: Tensor) -> Tensor:
    query, key, value = _projected(layer, x)
    return (attention_diffusion(query, key, value, edges) + value).flatten(1)


def _attention(layer: TransformerConv, edges: Edges, x: Tensor) -> Tensor:
    query, key, value = _projected(layer, x)
    return weighted_sum(attention_weights(query, key, edges), value, edges).flatten(1)


def _projected(layer: TransformerConv, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values by the maps of `layer`, (N, C), or (N, H, C) with several heads."""
    maps = (layer.lin_query, layer.lin_key, layer.lin_value)
    if layer.heads == 1:
        return tuple(linear(x) for linear in maps)
    return tuple(linear(x).view(len(x), layer.heads, -1) for linear in maps)


def _gat(layer: GATConv, edges: Edges, x: Tensor) -> Tensor:
    value = layer.lin(x).view(len(x), layer.heads, -1)
    at_sender = gather((value * layer.att_src).sum(-1), edges)
    at_receiver = gather((value * layer.att_dst).sum(-1), edges, "receiver")
    weights = segment_softmax(leaky_relu(at_sender + at_receiver, layer.negative_slope), edges)
    return weighted_sum(weights, value, edges).flatten(1)


def _value(layer: Layer, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def _descend(layer: Layer, x: Tensor) -> None:
    """Values and gradients by input and weights, which add up over calls."""
    layer(x).square().mean().backward()


def _results(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    value = layer(x)
    (gradient,) = torch.autograd.grad(value.square().mean(), x)
    return value.detach(), gradient


def _random_graph(nodes: int, pairs: int) -> Edges:
    source = rng.generator(0, "peers", "graph")
    one, other = torch.randint(0, nodes, (2, pairs), generator=source)
    every = torch.arange(nodes)
    senders = torch.cat([one, other, every])
    return Edges.from_index(torch.stack([senders, torch.cat([other, one, every])]), nodes)
