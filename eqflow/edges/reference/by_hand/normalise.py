r"""Weights that sum to 1 at one end of the edges, with their derivative written by hand.

With :math:`a_e = f(l_e) / \sum_{e'} f(l_{e'})`, for either normaliser

.. math:: g_l = a\, (g - \sum_{e'} a_{e'} g_{e'})\, \frac{f'(l)}{f(l)}

where :math:`f' / f` is 1 for the exponential and :math:`1 / \sqrt{l^2 + 4}` for squareplus.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from eqflow.edges.graph import Edges
from eqflow.edges.primitives import End
from eqflow.edges.reference import primitives as plain
from eqflow.edges.reference.by_hand import rows
from eqflow.edges.reference.by_hand.parts import is_recorded
from eqflow.edges.watched import is_watched, is_watched_backward


def normalised(
    logits: Tensor, edges: Edges, normaliser: str = "softmax", end: End = "receiver"
) -> Tensor:
    """Positive weights of logits (E,) or (E, H) that sum to 1 at that end."""
    if logits.dim() > 2 or not rows.is_for_kernels(logits.numel(), rows.LARGE_WEIGHTS, logits):
        return plain.normalised(logits, edges, normaliser, end)
    if is_recorded((logits,)):
        found: Tensor = _Normalised.apply(logits, edges, normaliser, end)
        return found
    return rows.normalised(logits, edges, normaliser, end)


def segment_softmax(logits: Tensor, edges: Edges, end: End = "receiver") -> Tensor:
    """`exp(l_e) / Σ_e' exp(l_e')` over the edges `e'` with the same end."""
    return normalised(logits, edges, "softmax", end)


class _Normalised(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, edges: Edges, normaliser: str, end: End) -> Tensor:
        a = rows.normalised(logits, edges, normaliser, end)
        ctx.edges, ctx.end, ctx.is_softmax = edges, end, normaliser == "softmax"
        ctx.save_for_backward(a, *([] if ctx.is_softmax else [logits]))
        return a

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (a, *logits), edges, end = ctx.saved_tensors, ctx.edges, ctx.end
        if is_watched(g) or is_watched_backward(g):
            sums, gathers = plain.sum_receiver, plain.gather_receiver
            if end == "sender":
                sums, gathers = plain.sum_sender, plain.gather_sender
            of_logits = a * (g - gathers(sums(a * g, edges), edges))
        else:
            of_logits = a * g
            mean = rows.total(of_logits, edges, end)
            of_logits.addcmul_(a, rows.expand(mean, edges, end), value=-1)
        if not ctx.is_softmax:
            of_logits = of_logits / (logits[0].square() + 4).sqrt()
        return of_logits, None, None, None
