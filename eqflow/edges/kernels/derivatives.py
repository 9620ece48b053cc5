r"""The reductions with their derivatives: each is a function whose derivatives are of the same set.

With the linear readings `A`, `B` of `eqflow.edges.kernels.reductions`, the derivative of
`dot(p, q) = ⟨A p, B q⟩` along :math:`(\dot p, \dot q)` is
:math:`\mathrm{dot}(\dot p, q) + \mathrm{dot}(p, \dot q)`; pulled back by `v`, it is
:math:`A^\top (v \odot B q)` and :math:`B^\top (v \odot A p)`. Those are two `pull`, and the
derivatives of `pull(w, x) = Aᵀ(w ⊙ B x)` are a `dot` and two `pull`. So reverse and forward mode of
any order run the same kernels. Under `vmap`, copies become heads or channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from eqflow.edges.graph import Edges
from eqflow.edges.kernels import reductions
from eqflow.edges.kernels.reductions import Form
from eqflow.edges.primitives import End


def gather(x: Tensor, edges: Edges, end: End) -> Tensor:
    """Node rows (N, K) read at one end of each edge, (E, K)."""
    return _Gather.apply(x, edges, end)


def segment_sum(m: Tensor, edges: Edges, end: End) -> Tensor:
    """Edge rows (E, K) summed at one end, (N, K)."""
    return _SegmentSum.apply(m, edges, end)


def softmax(logits: Tensor, edges: Edges) -> Tensor:
    """Softmax of logits (E, H) over each receiver's edges."""
    return _Softmax.apply(logits, edges)


def dot(p: Tensor, q: Tensor, form: Form, edges: Edges) -> Tensor:
    """`⟨A p, B q⟩` of heads (N, H, C), to (E, H); the one with fewer heads is read again."""
    return _Dot.apply(p, q, form, edges)


def pull(w: Tensor, x: Tensor, form: Form, edges: Edges) -> Tensor:
    """`Aᵀ(w ⊙ B x)` of weights (E, H), values (N, H, C) or of fewer heads, to (N, H, C)."""
    return _Pull.apply(w, x, form, edges)


def squared_distance(x: Tensor, edges: Edges) -> Tensor:
    """`‖x_c − x_r‖²` of heads (N, H, C), to (E, H): a `dot` of equals, at half its derivatives."""
    return _SquaredDistance.apply(x, edges)


def softmax_slope(a: Tensor, v: Tensor, edges: Edges) -> Tensor:
    """`a ⊙ (v − Σ_e a_e v_e)`, (E, H): derivative of a softmax `a` along `v`; self-adjoint."""
    return a * (v - gather(segment_sum(a * v, edges, "receiver"), edges, "receiver"))


def heads_of(values: Tensor, dim: int | None) -> int:
    """Heads of values (N, H, C), with copies on the axis `dim` if that is not None."""
    return values.shape[1 if dim is None or dim > 1 else 2]


def sum_to_heads(values: Tensor, heads: int) -> Tensor:
    """Add up the heads that read the same values: (N, k·heads, C) to (N, heads, C)."""
    if values.shape[1] == heads:
        return values
    return values.unflatten(1, (values.shape[1] // heads, heads)).sum(1)


def copies_as_heads(values: Tensor, dim: int | None, heads: int) -> Tensor:
    """Copies on the axis `dim`, if any, as heads: `heads` for each copy, repeated where fewer."""
    if dim is None:
        return values
    copies = values.movedim(dim, 1).unsqueeze(2)
    return copies.expand(-1, -1, heads // copies.shape[3], -1, -1).flatten(1, 3)


class _Gather(Function):
    @staticmethod
    def forward(x: Tensor, edges: Edges, end: End) -> Tensor:
        return reductions.gather_rows(x, edges, end)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.where = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return segment_sum(g, *ctx.where), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        return gather(dx, *ctx.where)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *where: Any) -> tuple[Tensor, int]:
        return _beside(_Gather, in_dims, x, *where)


class _SegmentSum(Function):
    @staticmethod
    def forward(m: Tensor, edges: Edges, end: End) -> Tensor:
        return reductions.sum_rows(m, edges, end)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.where = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return gather(g, *ctx.where), None, None

    @staticmethod
    def jvp(ctx: Any, dm: Tensor, *_: None) -> Tensor:
        return segment_sum(dm, *ctx.where)

    @staticmethod
    def vmap(info: Any, in_dims: Any, m: Tensor, *where: Any) -> tuple[Tensor, int]:
        return _beside(_SegmentSum, in_dims, m, *where)


class _Softmax(Function):
    @staticmethod
    def forward(logits: Tensor, edges: Edges) -> Tensor:
        return reductions.softmax(logits, edges)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.edges = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return softmax_slope(a, g, ctx.edges), None

    @staticmethod
    def jvp(ctx: Any, dlogits: Tensor, _: None) -> Tensor:
        (a,) = ctx.saved_tensors
        return softmax_slope(a, dlogits, ctx.edges)

    @staticmethod
    def vmap(info: Any, in_dims: Any, logits: Tensor, edges: Edges) -> tuple[Tensor, int]:
        return _beside(_Softmax, in_dims, logits, edges)


class _Dot(Function):
    @staticmethod
    def forward(p: Tensor, q: Tensor, form: Form, edges: Edges) -> Tensor:
        return reductions.dot(p, q, form, edges)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        p, q, *ctx.where = inputs
        ctx.save_for_backward(p, q)
        ctx.save_for_forward(p, q)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (p, q), ((A, B), edges) = ctx.saved_tensors, ctx.where
        need_p, need_q = ctx.needs_input_grad[:2]
        of_p = sum_to_heads(pull(v, q, (A, B), edges), p.shape[1]) if need_p else None
        of_q = sum_to_heads(pull(v, p, (B, A), edges), q.shape[1]) if need_q else None
        return of_p, of_q, None, None

    @staticmethod
    def jvp(ctx: Any, dp: Tensor | None, dq: Tensor | None, *_: None) -> Tensor:
        p, q = ctx.saved_tensors
        return _product_rule(_Dot, (p, dp), (q, dq), *ctx.where)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, p: Tensor, q: Tensor, form: Form, edges: Edges
    ) -> tuple[Tensor, int]:
        of_p, of_q, *_ = in_dims
        heads = max(heads_of(p, of_p), heads_of(q, of_q))
        p, q = copies_as_heads(p, of_p, heads), copies_as_heads(q, of_q, heads)
        return dot(p, q, form, edges).unflatten(1, (info.batch_size, heads)), 1


class _Pull(Function):
    @staticmethod
    def forward(w: Tensor, x: Tensor, form: Form, edges: Edges) -> Tensor:
        return reductions.pull(w, x, form, edges)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        w, x, *ctx.where = inputs
        ctx.save_for_backward(w, x)
        ctx.save_for_forward(w, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (w, x), ((A, B), edges) = ctx.saved_tensors, ctx.where
        need_w, need_x = ctx.needs_input_grad[:2]
        of_w = dot(g, x, (A, B), edges) if need_w else None
        of_x = sum_to_heads(pull(w, g, (B, A), edges), x.shape[1]) if need_x else None
        return of_w, of_x, None, None

    @staticmethod
    def jvp(ctx: Any, dw: Tensor | None, dx: Tensor | None, *_: None) -> Tensor:
        w, x = ctx.saved_tensors
        return _product_rule(_Pull, (w, dw), (x, dx), *ctx.where)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, w: Tensor, x: Tensor, form: Form, edges: Edges
    ) -> tuple[Tensor, int]:
        of_w, of_x, *_ = in_dims
        if of_w is None:  # One set of weights for all copies: their channels side by side.
            wide = x.movedim(of_x, 2)
            out = pull(w, wide.flatten(2), form, edges)
            return out.unflatten(2, wide.shape[2:]), 2
        w = w.movedim(of_w, 1)
        x = copies_as_heads(x, of_x, w.shape[2])
        return pull(w.flatten(1), x, form, edges).unflatten(1, w.shape[1:]), 1


class _SquaredDistance(Function):
    @staticmethod
    def forward(x: Tensor, edges: Edges) -> Tensor:
        return reductions.dot(x, x, ("difference", "difference"), edges)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.edges = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return 2 * pull(v, x, ("difference", "difference"), ctx.edges), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * dot(x, dx, ("difference", "difference"), ctx.edges)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, edges: Edges) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 1)
        return squared_distance(x.flatten(1, 2), edges).unflatten(1, x.shape[1:3]), 1


def _beside(
    function: type[Function], in_dims: Any, values: Tensor, *where: Any
) -> tuple[Tensor, int]:
    """Copies as columns beside those there are, for a function that takes each by itself."""
    copies = values.movedim(in_dims[0], 1)
    return function.apply(copies.flatten(1), *where).unflatten(1, copies.shape[1:]), 1


def _product_rule(
    function: type[Function],
    first: tuple[Tensor, Tensor | None],
    second: tuple[Tensor, Tensor | None],
    *where: Any,
) -> Tensor:
    (a, da), (b, db) = first, second
    if da is None:
        return function.apply(a, db, *where)
    if db is None:
        return function.apply(da, b, *where)
    return torch.add(function.apply(da, b, *where), function.apply(a, db, *where))
