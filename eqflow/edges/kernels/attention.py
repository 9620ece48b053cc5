"""Attention diffusion in one pass, with derivatives.

Reverse mode of first order is fused and recomputes the weights; nothing of size E × C, and not
even the weights, is kept. Forward mode and second derivatives compose the primitives, which keeps
the weights, (E, H).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from eqflow.edges.graph import Edges
from eqflow.edges.kernels.attention_passes import (
    MOST_CHANNELS,
    Attended,
    attend,
    attend_backward,
)
from eqflow.edges.kernels.derivatives import (
    copies_as_heads,
    dot,
    heads_of,
    pull,
    softmax,
    softmax_slope,
    sum_to_heads,
)
from eqflow.edges.kernels.launch import ACCUMULATOR
from eqflow.edges.kernels.reductions import Form

FROM_QUERY: Form = ("receiver", "sender")
MOVED: Form = ("receiver", "difference")


def attention_diffusion(
    query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: str
) -> Tensor:
    """`Σ_e a_e (x_c − x_r)`; see `eqflow.edges.attention_diffusion`."""
    has_heads = query.dim() == 3
    if not has_heads:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
    values = x if x.dim() == 3 else x.unsqueeze(1)
    out, _, _ = _AttentionDiffusion.apply(query, key, values, edges, normaliser)
    out = out.to(x.dtype)
    return out if has_heads else out.squeeze(1)


def why_not_attention(query: Tensor, x: Tensor) -> str | None:
    """What keeps the kernel from these shapes, or None."""
    widest = max(query.shape[-1], x.shape[-1])
    if widest > MOST_CHANNELS:
        return f"heads have {widest} channels, of at most {MOST_CHANNELS}"
    return None


class _AttentionDiffusion(Function):
    """`Attended` of query and key (N, H, C) and values (N, H', D), in the type of sums."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, largest, total = attend(query, key, x, edges, normaliser)
        return out, largest, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        query, key, x, *ctx.where = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(query, key, x, *output)
        ctx.save_for_forward(query, key, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        query, key, x, *attended = ctx.saved_tensors
        g = g.to(x.dtype)
        if torch.is_grad_enabled():
            of_each = _composed_backward(query, key, x, g, *ctx.where)
        else:
            of_each = _AttentionBackward.apply(query, key, x, g, *attended, *ctx.where)
        of_query, of_key, of_x = of_each
        return of_query, of_key, sum_to_heads(of_x, x.shape[1]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None, None]:
        moved = _composed_jvp(ctx.saved_tensors, tangents[:3], *ctx.where)
        return moved.to(ACCUMULATOR[moved.dtype][0]), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, query: Tensor, key: Tensor, x: Tensor, *where: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        of_query, of_key, of_x, *_ = in_dims
        copies, heads = info.batch_size, heads_of(query, of_query)
        query = query.repeat(1, copies, 1) if of_query is None else query
        key = key.repeat(1, copies, 1) if of_key is None else key
        out = _AttentionDiffusion.apply(
            copies_as_heads(query, of_query, heads),
            copies_as_heads(key, of_key, heads),
            copies_as_heads(x, of_x, heads),
            *where,
        )
        return tuple(part.unflatten(1, (copies, heads)) for part in out), (1, 1, 1)


class _AttentionBackward(Function):
    """The derivative of first order, fused; only taken where no further one is asked for."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, x: Tensor, g: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        *attended, edges, normaliser = rest
        return attend_backward(query, key, x, g, Attended(*attended), edges, normaliser)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        def one(query: Tensor, key: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
            return _composed_backward(query, key, x, g, *inputs[-2:])

        return torch.func.vmap(one, in_dims[:4])(*inputs[:4]), (0, 0, 0)


class _Weights(NamedTuple):
    """Weights that are kept: `a` (E, H), and the slope `λ'` of each one's logarithm."""

    a: Tensor
    slope: Tensor | float


def _weights(query: Tensor, key: Tensor, edges: Edges, normaliser: str) -> _Weights:
    logits = dot(query, key, FROM_QUERY, edges) * _scale(query)
    if normaliser == "softmax":
        return _Weights(softmax(logits, edges), 1.0)
    slope = 1 / torch.hypot(logits, torch.full_like(logits, 2))
    return _Weights(softmax(torch.asinh(logits / 2), edges), slope)


def _composed_jvp(
    primal: tuple[Tensor, ...],
    tangents: tuple[Tensor | None, ...],
    edges: Edges,
    normaliser: str,
) -> Tensor:
    """Derivative of the value along `tangents`, in primitives."""
    query, key, x = primal
    dquery, dkey, dx = (
        torch.zeros_like(v) if dv is None else dv for v, dv in zip(primal, tangents, strict=True)
    )
    a, slope = _weights(query, key, edges, normaliser)
    dlogits = dot(dquery, key, FROM_QUERY, edges) + dot(query, dkey, FROM_QUERY, edges)
    da = softmax_slope(a, dlogits * _scale(query) * slope, edges)
    return pull(da, x, MOVED, edges) + pull(a, dx, MOVED, edges)


def _composed_backward(
    query: Tensor, key: Tensor, x: Tensor, g: Tensor, edges: Edges, normaliser: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by query, key and, for every head by itself, values, in primitives."""
    a, slope = _weights(query, key, edges, normaliser)
    of_a = dot(g, x, MOVED, edges)
    of_logits = softmax_slope(a, of_a, edges) * slope * _scale(query)
    return (
        pull(of_logits, key, FROM_QUERY, edges),
        pull(of_logits, query, FROM_QUERY[::-1], edges),
        pull(a, g, MOVED[::-1], edges),
    )


def _scale(query: Tensor) -> float:
    return 1 / math.sqrt(query.shape[-1])
