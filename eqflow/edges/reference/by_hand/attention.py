r"""Attention diffusion with its derivative written by hand, a block of edges at a time.

With `l_e = ⟨q_r, k_c⟩ / √C`, `a = softmax(l)` over a receiver's edges and `Δ_e = x_c − x_r`:

.. math::
    y_r = \sum_e a_e Δ_e, \quad g_{a} = \langle g_r, Δ_e \rangle, \quad
    g_l = a\, (g_a - \sum_e a\, g_a)

and from there to queries, keys and values. Nothing as large as edges times channels outlives a
block; the way back evaluates each block again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eqflow.edges.backend import current_choice
from eqflow.edges.graph import Block, Edges
from eqflow.edges.reference.by_hand.parts import (
    attention_blocks_of,
    plain_backward,
)
from eqflow.edges.watched import is_watched_backward


def attention_diffusion(
    query: Tensor,
    key: Tensor,
    x: Tensor,
    edges: Edges,
    normaliser: str,
    plain: Callable[..., Tensor],
) -> Tensor:
    """`Σ_e a_e (x_c − x_r)`, as `plain` gives it with the arguments before."""
    heads = query.shape[1:-1]
    if not heads:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
    shared = x.dim() == 2
    found: Tensor = _AttentionDiffusion.apply(
        edges, normaliser, plain, query, key, x.unsqueeze(1) if shared else x
    )
    return found if heads else found.squeeze(1)


class _AttentionDiffusion(torch.autograd.Function):
    """Queries and keys (N, H, C); values (N, H, D), or (N, 1, D) where heads share them."""

    @staticmethod
    def forward(
        ctx: Any, edges: Edges, normaliser: str, plain: Any, query: Tensor, key: Tensor, x: Tensor
    ) -> Tensor:
        found = x.new_zeros(edges.nodes, query.shape[1], x.shape[2])
        for block in attention_blocks_of(edges, query, x):
            part = _Block(block, query, key, x, normaliser)
            found.index_add_(0, block.receiver, part.a.unsqueeze(2) * part.difference)
        ctx.edges, ctx.normaliser, ctx.plain = edges, normaliser, plain
        ctx.save_for_backward(query, key, x)
        ctx.inputs, ctx.choice = 3, current_choice()
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        query, key, x = ctx.saved_tensors
        edges = ctx.edges
        if is_watched_backward(g):

            def formulas(parts: list[Tensor]) -> tuple[Tensor, ...]:
                return (ctx.plain(*parts, edges, ctx.normaliser),)

            return None, None, None, *plain_backward(ctx, formulas, (g,))
        g_query, g_key, g_x = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(x)
        for block in attention_blocks_of(edges, query, x):
            part = _Block(block, query, key, x, ctx.normaliser)
            g_y = g.index_select(0, block.receiver)
            g_logit = part.back_to_logits((g_y * part.difference).sum(2)).unsqueeze(2)
            g_query.index_add_(0, block.receiver, g_logit * part.k)
            g_key.index_add_(0, block.sender, g_logit * part.q)
            g_y *= part.a.unsqueeze(2)
            if x.shape[1] == 1:
                g_y = g_y.sum(1, keepdim=True)
            g_x.index_add_(0, block.sender, g_y)
            g_x.index_add_(0, block.receiver, g_y, alpha=-1)
        return None, None, None, g_query, g_key, g_x


class _Block:
    """Weights and differences of one block of edges."""

    def __init__(
        self, block: Block, query: Tensor, key: Tensor, x: Tensor, normaliser: str
    ) -> None:
        self.q = query.index_select(0, block.receiver)
        self.k = key.index_select(0, block.sender)
        self.difference = x.index_select(0, block.sender)
        self.difference -= x.index_select(0, block.receiver)
        self.scale = 1 / math.sqrt(query.shape[2])
        self.half = (self.q * self.k).sum(2).mul_(self.scale / 2)
        self.is_softmax = normaliser == "softmax"
        # squareplus(l) = exp(asinh(l / 2)).
        logits = 2 * self.half if self.is_softmax else self.half.asinh()

        self.row = block.receiver - block.receiver[0]
        self.rows = int(self.row[-1]) + 1
        index = self.row.unsqueeze(1).expand_as(logits)
        lowest = logits.new_full((self.rows, logits.shape[1]), -math.inf)
        highest = lowest.scatter_reduce(0, index, logits, "amax")
        weight = logits.sub_(highest.index_select(0, self.row)).exp_()
        self.a = weight.div_(self._total(weight))

    def back_to_logits(self, g_a: Tensor) -> Tensor:
        """The derivative by `⟨q, k⟩`, from that by the weights."""
        g_l = self.a * (g_a - self._total(self.a * g_a))
        if not self.is_softmax:
            g_l /= 2 * (1 + self.half.square()).sqrt()
        return g_l.mul_(self.scale)

    def _total(self, values: Tensor) -> Tensor:
        """Each receiver's sum, at all of its edges."""
        total = values.new_zeros(self.rows, values.shape[1]).index_add_(0, self.row, values)
        return total.index_select(0, self.row)
