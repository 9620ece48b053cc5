r"""Weighted sums and inner products on kernels for rows, with derivatives of the same set.

With `T` the transposed graph and :math:`W_i = \sum_{e \to i} w_e`:

.. math::
    y = \mathrm{sum}(w, x): \quad g_w = \mathrm{dot}(g, x), \quad g_x = \mathrm{sum}_T(w, g)

    l = \mathrm{dot}(p, q): \quad g_p = \mathrm{sum}(v, q), \quad g_q = \mathrm{sum}_T(v, p)

and for differences, which are sums of rows centred in their cloud minus a row's own part,

.. math::
    y_i = \sum_{e \to i} w_e x_c - W_i x_i: \quad
    g_w = \langle g_r, x_c - x_r \rangle, \quad g_x = \mathrm{sum}_T(w, g) - W g

so that derivatives of every order run the same kernels. What the kernels do not take, or somebody
watches, goes to the plain formulas.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.autograd import Function

from eqflow.edges.graph import Edges
from eqflow.edges.reference import primitives as plain
from eqflow.edges.reference.by_hand import rows
from eqflow.edges.reference.by_hand.parts import is_recorded
from eqflow.edges.watched import is_watched, is_watched_backward


def weighted_sum(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e x_c`."""
    if not _are_weighted_for_kernels(w, x, edges, rows.COLUMNS, rows.LARGE):
        return plain.weighted_sum(w, x, edges)
    if is_recorded((w, x)):
        found: Tensor = _WeightedSum.apply(w, _as_rows(w, x), edges)
    else:
        found = rows.weighted_sum(w, _as_rows(w, x), edges)
    return found if w.dim() == 2 or x.dim() == 2 else found.view(x.shape)


def weighted_difference(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e (x_c − x_r)`."""
    columns, large = rows.COLUMNS_OF_DIFFERENCE, rows.LARGE_DIFFERENCE
    if not _are_weighted_for_kernels(w, x, edges, columns, large):
        return plain.weighted_difference(w, x, edges)
    if is_recorded((w, x)):
        found: Tensor = _WeightedDifference.apply(w, _as_rows(w, x), edges)
    else:
        found = _weighted_difference(w, _as_rows(w, x), edges)
    return found if w.dim() == 2 or x.dim() == 2 else found.view(x.shape)


def edge_dot(p: Tensor, q: Tensor, edges: Edges) -> Tensor:
    """`⟨p_r, q_c⟩` over the last axis; `q` may have no heads where `p` has."""
    if not _are_dots_for_kernels(p, q, edges, rows.COLUMNS, rows.LARGE):
        return plain.edge_dot(p, q if q.dim() == p.dim() else q.unsqueeze(1), edges)
    if is_recorded((p, q)):
        found: Tensor = _Dot.apply(p, q, edges)
        return found
    return rows.dot(p, q, edges)


def difference_dot(g: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`⟨g_r, x_c − x_r⟩` over the last axis."""
    columns, large = rows.COLUMNS_OF_DIFFERENCE, rows.LARGE_DIFFERENCE
    if not _are_dots_for_kernels(g, x, edges, columns, large):
        return plain.difference_dot(g, x, edges)
    if is_recorded((g, x)):
        found: Tensor = _DifferenceDot.apply(g, x, edges)
        return found
    return _difference_dot(g, x, edges)


class _WeightedSum(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(w, x)
        ctx.edges = edges
        return rows.weighted_sum(w, x, edges)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (w, x), edges = ctx.saved_tensors, ctx.edges
        need_w, need_x, _ = ctx.needs_input_grad
        of_w = edge_dot(g, x, edges) if need_w else None
        of_x = _heads_added(_sum_back(w, g, edges), x) if need_x else None
        return of_w, of_x, None


class _Dot(Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(p, q)
        ctx.edges = edges
        return rows.dot(p, q, edges)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (p, q), edges = ctx.saved_tensors, ctx.edges
        need_p, need_q, _ = ctx.needs_input_grad
        of_p = weighted_sum(v, q, edges) if need_p else None
        of_q = _heads_added(_sum_back(v, p, edges), q) if need_q else None
        return of_p, of_q, None


class _WeightedDifference(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(w, x)
        ctx.edges = edges
        return _weighted_difference(w, x, edges)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (w, x), edges = ctx.saved_tensors, ctx.edges
        need_w, need_x, _ = ctx.needs_input_grad
        of_w = difference_dot(g, x, edges) if need_w else None
        of_x = _heads_added(_difference_back(w, g, edges), x) if need_x else None
        return of_w, of_x, None


class _DifferenceDot(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.edges = edges
        return _difference_dot(g, x, edges)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (g, x), edges = ctx.saved_tensors, ctx.edges
        need_g, need_x, _ = ctx.needs_input_grad
        of_g = weighted_difference(v, x, edges) if need_g else None
        of_x = _heads_added(_difference_back(v, g, edges), x) if need_x else None
        return of_g, of_x, None


def _weighted_difference(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    x = rows.centred(x, edges.clouds)
    found = rows.weighted_sum(w, x, edges)
    own = rows.total(w, edges, "receiver").unsqueeze(-1)
    found.addcmul_(own, x if x.dim() == found.dim() else x.unsqueeze(1), value=-1)
    # Zero also where the own row of a node without edges is not finite.
    return found.index_fill_(0, edges.without_incoming, 0.0)


def _difference_dot(g: Tensor, x: Tensor, edges: Edges) -> Tensor:
    x = rows.centred(x, edges.clouds)
    return rows.dot(g, x, edges).sub_(edges.incoming.expand(rows.own_dot(g, x)))


def _sum_back(w: Tensor, g: Tensor, edges: Edges) -> Tensor:
    """`Σ_{i→e} w_e g_r`."""
    return weighted_sum(w.index_select(0, edges.by_sender), g, edges.transposed())


def _difference_back(w: Tensor, g: Tensor, edges: Edges) -> Tensor:
    """`Σ_{i→e} w_e g_r − Σ_{e→i} w_e g_i`."""
    found = _sum_back(w, g, edges)
    if is_watched(g) or is_watched_backward(g, w):
        return found - plain.sum_receiver(w, edges).unsqueeze(-1) * g
    return found.addcmul_(rows.total(w, edges, "receiver").unsqueeze(-1), g, value=-1)


def _heads_added(found: Tensor, like: Tensor) -> Tensor:
    """The sum over heads where `like` has none."""
    return found if found.dim() == like.dim() else found.sum(1)


def _as_rows(w: Tensor, x: Tensor) -> Tensor:
    """Heads that share their weights are so many more columns."""
    return x if w.dim() == 2 or x.dim() == 2 else x.flatten(1)


def _are_weighted_for_kernels(w: Tensor, x: Tensor, edges: Edges, columns: int, large: int) -> bool:
    heads = w.shape[1] if w.dim() == 2 else 1
    width = x.shape[-1] if w.dim() == 2 else math.prod(x.shape[1:])
    return not (w.dim() == 2 and x.dim() > 3) and _are_for_kernels(
        w, x, edges.count, heads, width, columns, large
    )


def _are_dots_for_kernels(p: Tensor, q: Tensor, edges: Edges, columns: int, large: int) -> bool:
    heads = p.shape[1] if p.dim() == 3 else 1
    return p.dim() < 4 and _are_for_kernels(p, q, edges.count, heads, p.shape[-1], columns, large)


def _are_for_kernels(
    one: Tensor, other: Tensor, count: int, heads: int, width: int, columns: int, large: int
) -> bool:
    if heads > 1:
        large = max(large, rows.LARGE_DIFFERENCE)
    return width >= columns and rows.is_for_kernels(count * heads * width, large, one, other)
