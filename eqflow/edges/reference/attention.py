"""Attention diffusion composed of primitives, or a block of edges at a time."""

from __future__ import annotations

from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.primitives import weighted_difference
from eqflow.edges.reference import by_hand
from eqflow.edges.reference.by_hand import rows
from eqflow.edges.watched import is_watched
from eqflow.edges.weights import Normaliser, attention_weights


def attention_diffusion(
    query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: Normaliser
) -> Tensor:
    """`Σ_e a_e (x_c − x_r)`."""
    if (
        is_watched(x)
        or not query.dtype == key.dtype == x.dtype
        or _are_primitives_fast(query, x, edges)
    ):
        return composed(query, key, x, edges, normaliser)
    return by_hand.attention_diffusion(query, key, x, edges, normaliser, composed)


def composed(query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: Normaliser) -> Tensor:
    """What `attention_diffusion` means."""
    if x.dim() == 3 and x.shape[1] == 1:
        x = x.squeeze(1)
    return weighted_difference(attention_weights(query, key, edges, normaliser), x, edges)


def _are_primitives_fast(query: Tensor, x: Tensor, edges: Edges) -> bool:
    """Whether neither products nor differences write a row an edge."""
    width = min(query.shape[-1], x.shape[-1])
    return width >= rows.COLUMNS_OF_DIFFERENCE and rows.is_for_kernels(
        edges.count * width, rows.LARGE_DIFFERENCE, query, x
    )
