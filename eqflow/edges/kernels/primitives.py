"""The primitives: tensors of any shape brought to the columns and heads that kernels take."""

from __future__ import annotations

import math

from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.kernels import derivatives
from eqflow.edges.kernels.reductions import Form


def gather_receiver(x: Tensor, edges: Edges) -> Tensor:
    """`x_r`, (N, …) to (E, …)."""
    rows = derivatives.gather(_as_columns(x), edges, "receiver")
    return rows.reshape(edges.count, *x.shape[1:])


def gather_sender(x: Tensor, edges: Edges) -> Tensor:
    """`x_c`, (N, …) to (E, …)."""
    rows = derivatives.gather(_as_columns(x), edges, "sender")
    return rows.reshape(edges.count, *x.shape[1:])


def sum_receiver(m: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} m_e`, (E, …) to (N, …)."""
    rows = derivatives.segment_sum(_as_columns(m), edges, "receiver")
    return rows.reshape(edges.nodes, *m.shape[1:])


def sum_sender(m: Tensor, edges: Edges) -> Tensor:
    """`Σ_{i→e} m_e`, (E, …) to (N, …)."""
    rows = derivatives.segment_sum(_as_columns(m), edges, "sender")
    return rows.reshape(edges.nodes, *m.shape[1:])


def edge_dot(p: Tensor, q: Tensor, edges: Edges) -> Tensor:
    """`⟨p_r, q_c⟩` over the last axis."""
    return _dot(p, q, ("receiver", "sender"), edges)


def difference_dot(g: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`⟨g_r, x_c − x_r⟩` over the last axis."""
    return _dot(g, x, ("receiver", "difference"), edges)


def squared_distance(x: Tensor, edges: Edges) -> Tensor:
    """`‖x_c − x_r‖²` over the last axis."""
    d2 = derivatives.squared_distance(_as_heads(x), edges)
    return d2.reshape(edges.count, *x.shape[1:-1])


def weighted_sum(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e x_c`."""
    return _pull(w, x, ("receiver", "sender"), edges)


def weighted_difference(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e (x_c − x_r)`."""
    return _pull(w, x, ("receiver", "difference"), edges)


def segment_softmax(logits: Tensor, edges: Edges, end: str = "receiver") -> Tensor:
    """`exp(l_e) / Σ_{e'→r} exp(l_e')`, or the sum over the edges of one sender."""
    if end == "sender":
        turned = segment_softmax(logits.index_select(0, edges.by_sender), edges.transposed())
        return turned.index_select(0, edges.from_sender_order)
    return derivatives.softmax(_as_columns(logits), edges).reshape(logits.shape)


def normalised(
    logits: Tensor, edges: Edges, normaliser: str = "softmax", end: str = "receiver"
) -> Tensor:
    """`f(l_e) / Σ_e' f(l_e')` over the edges `e'` with the same end, `f` exp or squareplus."""
    return segment_softmax(logits if normaliser == "softmax" else (logits / 2).asinh(), edges, end)


def edge_linear(
    receiver: Tensor, sender: Tensor, scalars: Tensor, weight: Tensor, edges: Edges
) -> Tensor:
    """`p_r + q_c + W a_e`."""
    return gather_receiver(receiver, edges) + gather_sender(sender, edges) + scalars @ weight.t()


def why_not_heads(w: Tensor, x: Tensor) -> str | None:
    """What keeps the kernels from weights with heads on such values, or None."""
    if w.dim() == 2 and x.dim() > 3:
        return f"weights {tuple(w.shape)} have heads, and values {tuple(x.shape)} more axes"
    return None


def _dot(p: Tensor, q: Tensor, form: Form, edges: Edges) -> Tensor:
    dots = derivatives.dot(_as_heads(p), _as_heads(q), form, edges)
    return dots.reshape(edges.count, *p.shape[1:-1])


def _pull(w: Tensor, x: Tensor, form: Form, edges: Edges) -> Tensor:
    if w.dim() == 2:
        return derivatives.pull(w, x if x.dim() == 3 else x.unsqueeze(1), form, edges)
    # One weight for all heads: they are so many more channels.
    wide = _as_columns(x).unsqueeze(1)
    return derivatives.pull(w.unsqueeze(1), wide, form, edges).reshape(x.shape)


def _as_columns(values: Tensor) -> Tensor:
    """(N, …) as (N, K)."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def _as_heads(values: Tensor) -> Tensor:
    """(N, …, C) as (N, H, C)."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:-1]), values.shape[-1])
