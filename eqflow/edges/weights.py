r"""Positive weights of edges that sum to 1 at one end of them: what attention diffuses by.

Any logits become weights by a positive function `f`, the exponential or squareplus, divided by its
sum over the edges of a node. Over each receiver's edges the matrix of weights is stochastic by
rows, over each sender's by columns: the one keeps a constant state constant, the other keeps the
sum of the state.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

from eqflow.edges.backend import run
from eqflow.edges.graph import Edges
from eqflow.edges.primitives import End, edge_dot, require_end, require_floats, require_rows
from eqflow.errors import ShapeError, UsageError

Normaliser = Literal["softmax", "squareplus"]


def normalised(
    logits: Tensor,
    edges: Edges,
    normaliser: Normaliser = "softmax",
    end: End = "receiver",
) -> Tensor:
    r"""Positive weights of any logits, which sum to 1 over each receiver's or each sender's edges.

    :math:`a_e = f(l_e) / \sum_{e'} f(l_{e'})` over the edges `e'` with the same `end`, where `f` is
    the exponential, or :math:`\mathrm{squareplus}(l) = (l + \sqrt{l^2 + 4}) / 2`. The latter is
    :math:`\exp(\operatorname{asinh}(l / 2))`, which neither overflows nor cancels; it grows like
    `l` and not like an exponential, so that no edge takes all.

    Args:
        logits: Shape (E,), or (E, H) for `H` heads.
        edges: The graph.
        normaliser: What makes logits positive.
        end: Whose edges' weights sum to 1.

    Returns:
        Shape of `logits`.

    Raises:
        ShapeError: If `logits` does not have one row an edge, or is not floating point.
        UsageError: If there is no such normaliser or end.

    Reference: GRAND (Chamberlain et al., 2021), arXiv:2106.10934, section 4, and its code.
    """
    require_normaliser("normalised", normaliser)
    require_end("normalised", end)
    require_rows("normalised: logits", logits, edges.count, "edges")
    require_floats("normalised", logits=logits)
    return run("normalised", logits, edges, normaliser, end)


def attention_weights(
    query: Tensor,
    key: Tensor,
    edges: Edges,
    normaliser: Normaliser = "softmax",
    end: End = "receiver",
) -> Tensor:
    r"""Weights of scaled dot-product attention, `normalised` at one end of the edges.

    :math:`a_e = f(\langle q_r, k_c \rangle / \sqrt{C}) / \sum_{e'} f(\dots)` over the edges `e'`
    with the same `end`.

    Args:
        query: Shape (N, C), or (N, H, C) for `H` heads; read at the receiver.
        key: Same shape; read at the sender.
        edges: The graph.
        normaliser: What makes logits positive.
        end: Whose edges' weights sum to 1: each receiver's, as in a transformer, or each sender's.

    Returns:
        Shape (E,) or (E, H).

    Raises:
        ShapeError: If query and key do not fit each other and the graph.
        UsageError: If there is no such normaliser or end.
    """
    require_normaliser("attention_weights", normaliser)
    require_end("attention_weights", end)
    require_floats("attention_weights", query=query, key=key)
    if not (query.dim() in (2, 3) and query.shape == key.shape and len(query) == edges.nodes):
        raise ShapeError(
            f"attention_weights: found query {tuple(query.shape)} and key {tuple(key.shape)}, "
            f"expected (N, C) or (N, H, C) both, N = {edges.nodes}."
        )
    logits = edge_dot(query, key, edges) / math.sqrt(query.shape[-1])
    return run("normalised", logits, edges, normaliser, end)


def require_normaliser(where: str, normaliser: str) -> None:
    """Refuse what is no normaliser."""
    if normaliser not in get_args(Normaliser):
        expected = " or ".join(map(repr, get_args(Normaliser)))
        raise UsageError(f"{where}: found normaliser={normaliser!r}, expected {expected}.")
