"""The torch backend: what each primitive means, in operations torch differentiates at will.

Reverse mode, reverse over reverse, forward mode and `torch.func` transforms all pass through. The
functions here trust their arguments; `eqflow.edges.primitives` checks them.
"""

from __future__ import annotations

from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.geometry.segments import Segments


def gather_receiver(x: Tensor, edges: Edges) -> Tensor:
    """`x_r`, (N, …) to (E, …)."""
    return edges.incoming.expand(x)


def gather_sender(x: Tensor, edges: Edges) -> Tensor:
    """`x_c`, (N, …) to (E, …)."""
    return x.index_select(0, edges.sender)


def sum_receiver(m: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} m_e`, (E, …) to (N, …)."""
    return edges.incoming.sum(m)


def sum_sender(m: Tensor, edges: Edges) -> Tensor:
    """`Σ_{i→e} m_e`, (E, …) to (N, …)."""
    return m.new_zeros(edges.nodes, *m.shape[1:]).index_add(0, edges.sender, m)


def difference(x: Tensor, edges: Edges) -> Tensor:
    """`x_c − x_r`, (N, …) to (E, …)."""
    return gather_sender(x, edges) - gather_receiver(x, edges)


def edge_dot(p: Tensor, q: Tensor, edges: Edges) -> Tensor:
    """`⟨p_r, q_c⟩` over the last axis."""
    return (gather_receiver(p, edges) * gather_sender(q, edges)).sum(-1)


def weighted_sum(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e x_c`."""
    return sum_receiver(_per_head(w, gather_sender(x, edges)), edges)


def weighted_difference(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e (x_c − x_r)`."""
    return sum_receiver(_per_head(w, difference(x, edges)), edges)


def difference_dot(g: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`⟨g_r, x_c − x_r⟩` over the last axis."""
    d = difference(x, edges)
    return (gather_receiver(g, edges) * (d.unsqueeze(1) if d.dim() < g.dim() else d)).sum(-1)


def squared_distance(x: Tensor, edges: Edges) -> Tensor:
    """`‖x_c − x_r‖²` over the last axis."""
    return difference(x, edges).square().sum(-1)


def segment_softmax(logits: Tensor, edges: Edges, end: str = "receiver") -> Tensor:
    """`exp(l_e) / Σ_{e'→r} exp(l_e')`, or the sum over the edges of one sender."""
    if end == "sender":
        by_sender = softmax(logits.index_select(0, edges.by_sender), edges.outgoing)
        return by_sender.index_select(0, edges.from_sender_order)
    return softmax(logits, edges.incoming)


def normalised(
    logits: Tensor, edges: Edges, normaliser: str = "softmax", end: str = "receiver"
) -> Tensor:
    """`f(l_e) / Σ_e' f(l_e')` over the edges `e'` with the same end, `f` exp or squareplus."""
    # squareplus(l) = exp(asinh(l / 2)), which neither overflows nor cancels.
    return segment_softmax(logits if normaliser == "softmax" else (logits / 2).asinh(), edges, end)


def softmax(logits: Tensor, segments: Segments) -> Tensor:
    """`exp(l_e) / Σ_e' exp(l_e')` over the rows `e'` of the segment of `e`."""
    # The maximum cancels, so it is a constant to the derivative.
    shifted = logits - segments.expand(segments.max(logits.detach()))
    weight = shifted.exp()
    return weight / segments.expand(segments.sum(weight))


def edge_linear(
    receiver: Tensor, sender: Tensor, scalars: Tensor, weight: Tensor, edges: Edges
) -> Tensor:
    """`p_r + q_c + W a_e`."""
    return gather_receiver(receiver, edges) + gather_sender(sender, edges) + scalars @ weight.t()


def _per_head(w: Tensor, x: Tensor) -> Tensor:
    """Edge weights times edge values: `w` (E,), or (E, H) with `x` (E, H, C) or (E, C)."""
    if w.dim() == 2 and x.dim() == 2:
        x = x.unsqueeze(1)
    return w.reshape(*w.shape, *[1] * (x.dim() - w.dim())) * x
