"""Attention diffusion composed of primitives."""

from __future__ import annotations

import math

from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.primitives import (
    edge_dot,
    gather,
    segment_softmax,
    segment_sum,
    weighted_difference,
)


def attention_weights(query: Tensor, key: Tensor, edges: Edges, normaliser: str) -> Tensor:
    """Weights `a_e` of each receiver's incoming edges, which sum to 1."""
    logits = edge_dot(query, key, edges) / math.sqrt(query.shape[-1])
    if normaliser == "softmax":
        return segment_softmax(logits, edges)
    positive = (logits + (logits.square() + 4).sqrt()) / 2
    return positive / gather(segment_sum(positive, edges), edges, "receiver")


def attention_diffusion(
    query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: str
) -> Tensor:
    """`Σ_e a_e (x_c − x_r)`."""
    return weighted_difference(attention_weights(query, key, edges, normaliser), x, edges)
