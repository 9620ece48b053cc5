"""The edge primitives: every reduction over edges in eqflow is one of these.

Notation: an edge `e` goes from its sender `c` to its receiver `r`; `x_i` are rows of node tensors.
Each primitive's derivatives stay inside the set (formulas in each docstring), so backward, double
backward and forward mode never leave it. Differences `x_c − x_r` are formed inside: writing
`Σ w_e x_c − (Σ w_e) x_r` instead loses translation equivariance in float32, but where rows are
centred in their cloud before, as the torch backend does with wide ones.

Rows are moved and added whatever their type; what multiplies or exponentiates them takes floats.
Several types give the wider one, as in torch, but for a product of matrices, which takes one type.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from eqflow.edges.backend import run
from eqflow.edges.graph import Edges
from eqflow.errors import ShapeError, UsageError

End = Literal["receiver", "sender"]


def gather(x: Tensor, edges: Edges, end: End = "sender") -> Tensor:
    """Node rows read at one end of each edge: `x_c`, or `x_r` for `end="receiver"`.

    Its derivative is `segment_sum` at the same end.

    Args:
        x: Node values, shape (N, …).
        edges: The graph.
        end: Which end of the edge.

    Returns:
        Shape (E, …).

    Raises:
        ShapeError: If `x` does not have one row a node.
        UsageError: If there is no such end.
    """
    require_rows("gather: x", x, edges.nodes, "nodes")
    require_end("gather", end)
    return run(f"gather_{end}", x, edges)


def segment_sum(m: Tensor, edges: Edges, end: End = "receiver") -> Tensor:
    """Edge rows summed at one end: `Σ_{e→i} m_e`, or `Σ_{i→e} m_e` for `end="sender"`.

    Its derivative is `gather` at the same end.

    Args:
        m: Edge values, shape (E, …).
        edges: The graph.
        end: Which end of the edge.

    Returns:
        Shape (N, …), int64 where `m` holds integers or truth values; zero at a node without edges.

    Raises:
        ShapeError: If `m` does not have one row an edge.
        UsageError: If there is no such end.
    """
    require_rows("segment_sum: m", m, edges.count, "edges")
    require_end("segment_sum", end)
    if _is_counted(m):
        m = m.to(torch.int64)
    return run(f"sum_{end}", m, edges)


def edge_dot(p: Tensor, q: Tensor, edges: Edges) -> Tensor:
    """Inner product across each edge, `⟨p_r, q_c⟩` (SDDMM).

    Its derivative is `weighted_sum` on the graph and on its transpose.

    Args:
        p, q: Node values, shape (N, C), or (N, H, C) for `H` heads.
        edges: The graph.

    Returns:
        Shape (E,), or (E, H).
    """
    require_rows("edge_dot: p", p, edges.nodes, "nodes")
    require_rows("edge_dot: q", q, edges.nodes, "nodes")
    if p.shape != q.shape or p.dim() < 2:
        raise ShapeError(
            f"edge_dot: found p {tuple(p.shape)} and q {tuple(q.shape)}, expected (N, C) both."
        )
    require_floats("edge_dot", p=p, q=q)
    return run("edge_dot", p, q, edges)


def weighted_sum(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e x_c` (SpMM).

    Its derivatives are `edge_dot` and the same sum on the transpose.

    Args:
        w: Edge weights, shape (E,), or (E, H) for `H` heads.
        x: Node values, shape (N, C), or (N, H, C) for values of their own in each head.
        edges: The graph.

    Returns:
        Shape of `x`, or (N, H, C) where `w` has heads.
    """
    _require_weights("weighted_sum", w, x, edges)
    return run("weighted_sum", w, x, edges)


def weighted_difference(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e (x_c − x_r)`: the right-hand side of every model here.

    Translation invariant to rounding of the differences; on a CPU, for 16 and more columns on large
    graphs, to rounding of the cloud's spread: there it is the sum of rows minus their cloud's mean,
    less the row's own part. With `w` equal on both directions of every edge the centroid is
    conserved. Its derivatives are `difference_dot` and its own transpose.

    Args:
        w: Edge weights, shape (E,), or (E, H) for `H` heads.
        x: Node values, shape (N, C), or (N, H, C).
        edges: The graph.

    Returns:
        Shape of `x`, or (N, H, C) where `w` has heads.
    """
    _require_weights("weighted_difference", w, x, edges)
    return run("weighted_difference", w, x, edges)


def difference_dot(g: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`⟨g_r, x_c − x_r⟩`, the derivative of `weighted_difference` by its weights; rounded like it.

    Args:
        g: Node values, shape (N, C), or (N, H, C) for `H` heads.
        x: Node values, shape of `g`, or (N, C) where the heads share them.
        edges: The graph.

    Returns:
        Shape (E,), or (E, H).
    """
    require_rows("difference_dot: g", g, edges.nodes, "nodes")
    require_rows("difference_dot: x", x, edges.nodes, "nodes")
    is_shared = g.dim() == 3 and x.shape == (g.shape[0], g.shape[2])
    if g.dim() < 2 or not (is_shared or g.shape == x.shape):
        raise ShapeError(
            f"difference_dot: found g {tuple(g.shape)} and x {tuple(x.shape)}, expected "
            "(N, C) both, or g (N, H, C) with x the same or (N, C)."
        )
    require_floats("difference_dot", g=g, x=x)
    return run("difference_dot", g, x, edges)


def squared_distance(x: Tensor, edges: Edges) -> Tensor:
    """`d_e² = ‖x_c − x_r‖²`.

    Its derivative is `weighted_difference` on the graph and on its transpose.

    Args:
        x: Positions, shape (N, d).
        edges: The graph.

    Returns:
        Shape (E,), in the unit of `x` squared.
    """
    require_rows("squared_distance: x", x, edges.nodes, "nodes")
    require_floats("squared_distance", x=x)
    if x.dim() != 2:
        raise ShapeError(f"squared_distance: found x {tuple(x.shape)}, expected (N, d).")
    return run("squared_distance", x, edges)


def segment_softmax(logits: Tensor, edges: Edges, end: End = "receiver") -> Tensor:
    """Softmax over each receiver's incoming edges: `a_e = exp(l_e) / Σ_{e'→r} exp(l_e')`.

    With `end="sender"` over each sender's outgoing edges, `e'` those with the same sender. The
    maximum that keeps it from overflowing is taken per node, so one graph of a batch does not
    change another. Its derivative `J v = a ⊙ (v − Σ_e' a_e' v_e')` is self-adjoint.

    Args:
        logits: Shape (E,), or (E, H) for `H` heads.
        edges: The graph.
        end: Whose edges' weights sum to 1.

    Returns:
        Shape of `logits`; the weights of each node with edges at that end sum to 1.

    Raises:
        ShapeError: If `logits` does not have one row an edge, or is not floating point.
        UsageError: If there is no such end.
    """
    require_rows("segment_softmax: logits", logits, edges.count, "edges")
    require_end("segment_softmax", end)
    require_floats("segment_softmax", logits=logits)
    return run("segment_softmax", logits, edges, end)


def edge_linear(
    receiver: Tensor, sender: Tensor, scalars: Tensor, weight: Tensor, edges: Edges
) -> Tensor:
    """First layer of an edge MLP, factored: `p_r + q_c + W a_e`.

    With `p = W₁ h + b` and `q = W₂ h` this equals a linear layer on `[h_r, h_c, a_e]`, which is
    never built: the two wide products run once a node and not once an edge.

    Args:
        receiver: `p`, shape (N, F).
        sender: `q`, shape (N, F).
        scalars: Edge scalars `a` such as squared distances, shape (E, K).
        weight: `W`, shape (F, K).
        edges: The graph.

    Returns:
        Shape (E, F).
    """
    require_rows("edge_linear: receiver", receiver, edges.nodes, "nodes")
    require_rows("edge_linear: sender", sender, edges.nodes, "nodes")
    require_rows("edge_linear: scalars", scalars, edges.count, "edges")
    if weight.shape != (receiver.shape[-1], scalars.shape[-1]):
        raise ShapeError(
            f"edge_linear: weight has shape {tuple(weight.shape)}, expected (F, K) = "
            f"({receiver.shape[-1]}, {scalars.shape[-1]})."
        )
    require_one_type(
        "edge_linear", receiver=receiver, sender=sender, scalars=scalars, weight=weight
    )
    return run("edge_linear", receiver, sender, scalars, weight, edges)


def require_floats(where: str, **values: Tensor) -> None:
    """Refuse integers and truth values.

    Raises:
        ShapeError: That names the tensor and its type.
    """
    for name, value in values.items():
        if _is_counted(value):
            raise ShapeError(
                f"{where}: found {name} of {value.dtype}, expected floating point. "
                f"Pass {name}.float()."
            )


def require_one_type(where: str, **values: Tensor) -> None:
    """Refuse what `require_floats` does, and several types, but where autocast unites them.

    Raises:
        ShapeError: That names the tensors and their types.
    """
    require_floats(where, **values)
    (first, like), *others = values.items()
    for name, value in others:
        if value.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type):
            raise ShapeError(
                f"{where}: found {first} of {like.dtype} and {name} of {value.dtype}, expected one "
                f"type for all. Pass {name}.to({first}.dtype)."
            )


def _is_counted(values: Tensor) -> bool:
    """Whether these are integers or truth values."""
    return not (values.is_floating_point() or values.is_complex())


def require_end(where: str, end: str) -> None:
    """Refuse what is no end of an edge."""
    if end not in ("sender", "receiver"):
        raise UsageError(f"{where}: found end={end!r}, expected 'sender' or 'receiver'.")


def require_rows(what: str, values: Tensor, expected: int, unit: str) -> None:
    """Refuse what does not have one row for each node or edge."""
    if values.dim() == 0 or values.shape[0] != expected:
        raise ShapeError(
            f"{what} has shape {tuple(values.shape)}, expected one row for each of the "
            f"{expected} {unit}."
        )


def _require_weights(where: str, w: Tensor, x: Tensor, edges: Edges) -> None:
    require_rows(f"{where}: w", w, edges.count, "edges")
    require_rows(f"{where}: x", x, edges.nodes, "nodes")
    heads_differ = w.dim() == 2 and x.dim() == 3 and w.shape[1] != x.shape[1]
    if w.dim() > 2 or x.dim() < 2 or heads_differ:
        raise ShapeError(
            f"{where}: found w {tuple(w.shape)} and x {tuple(x.shape)}, expected "
            "w (E,) or (E, H) with x (N, C) or (N, H, C)."
        )
    require_floats(where, w=w, x=x)
