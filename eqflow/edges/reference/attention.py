"""Attention diffusion composed of primitives."""

from __future__ import annotations

import math

from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.primitives import (
    edge_dot,
    segment_softmax,
    weighted_difference,
)
from eqflow.edges.reference import by_hand
from eqflow.edges.watched import is_watched


def attention_weights(query: Tensor, key: Tensor, edges: Edges, normaliser: str) -> Tensor:
    """Weights `a_e` of each receiver's incoming edges, which sum to 1."""
    logits = edge_dot(query, key, edges) / math.sqrt(query.shape[-1])
    # squareplus(l) = exp(asinh(l / 2)), which neither overflows nor cancels.
    return segment_softmax(logits if normaliser == "softmax" else (logits / 2).asinh(), edges)


def attention_diffusion(
    query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: str
) -> Tensor:
    """`Σ_e a_e (x_c − x_r)`."""
    if is_watched(x) or not query.dtype == key.dtype == x.dtype:
        return composed(query, key, x, edges, normaliser)
    return by_hand.attention_diffusion(query, key, x, edges, normaliser, composed)


def composed(query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: str) -> Tensor:
    """What `attention_diffusion` means."""
    if x.dim() == 3 and x.shape[1] == 1:
        x = x.squeeze(1)
    return weighted_difference(attention_weights(query, key, edges, normaliser), x, edges)
