r"""A polynomial of a sparse matrix times a vector, with its derivative written by hand.

With :math:`P = (A - D + G - \mu) / m`, `D` the sums of rows of `A` and `G` the gain,

.. math::
    y_j = \sum_k b_{jk} P^k v, \qquad
    \lambda_k = \sum_j b_{jk} \bar y_j + P^T \lambda_{k + 1}, \qquad
    \bar v = \lambda_0, \quad \bar P = \sum_{k \ge 1} \lambda_k \, (P^{k - 1} v)^T .

The derivative is Horner's scheme on the transpose. Torch's own would do the same products, but go
several times more through the states; and it would not know that the diagonal of `P`, for
normalised weights, is zero in value though not in derivative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqflow.edges import Edges, edge_dot, gather, segment_sum, weighted_sum
from eqflow.edges.watched import is_watched, is_watched_backward

# A diagonal this much smaller than the norm, in units of rounding, is rounding.
NEGLIGIBLE = 8


def combine_powers(
    edges: Edges,
    weight: Tensor,
    gain: Tensor | None,
    v: Tensor,
    b: np.ndarray,
    shift: float,
    norm: float,
) -> tuple[Tensor, ...]:
    """`Σ_k b_jk P^k v` for each `j`.

    Args:
        edges: The graph.
        weight: Entries of `A`, shape (E,).
        gain: `G`, shape (N,), or None for 0.
        v: Shape (N, C).
        b: Shape (J, K).
        shift: `μ`.
        norm: `m`, positive where K > 1.

    Returns:
        J tensors of shape (N, C).
    """
    if is_watched(v):
        return _plain(edges, weight, gain, v, b, shift, norm)
    return _Powers.apply(edges, b, shift, norm, weight, gain, v)


def _plain(
    edges: Edges,
    weight: Tensor,
    gain: Tensor | None,
    v: Tensor,
    b: np.ndarray,
    shift: float,
    norm: float,
) -> tuple[Tensor, ...]:
    """What `combine_powers` means."""
    A = weight / norm if norm else weight
    diagonal = _diagonal(edges, weight, gain, shift, norm).unsqueeze(1)
    totals = [torch.zeros_like(v)] * len(b)
    for k, column in enumerate(b.T.tolist()):
        v = weighted_sum(A, v, edges) + diagonal * v if k else v
        totals = [torch.add(y, v, alpha=b_k) for y, b_k in zip(totals, column, strict=True)]
    return tuple(totals)


class _Powers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        edges: Edges,
        b: np.ndarray,
        shift: float,
        norm: float,
        weight: Tensor,
        gain: Tensor | None,
        v: Tensor,
    ) -> tuple[Tensor, ...]:
        A = weight / norm if norm else weight
        sums = _diagonal(edges, weight, gain, shift, norm).unsqueeze(1)
        is_rounding = not len(sums) or sums.abs().max() <= NEGLIGIBLE * torch.finfo(v.dtype).eps
        diagonal = None if is_rounding else sums
        powers = [v]
        totals = [v * first for first in b[:, 0].tolist()]
        for column in b.T[1:].tolist():
            v = _product(A, diagonal, v, edges)
            for total, b_k in zip(totals, column, strict=True):
                total.add_(v, alpha=b_k)
            if any(ctx.needs_input_grad):
                powers.append(v)
        ctx.setting = edges, b, shift, norm
        # The last power enters no product.
        ctx.save_for_backward(weight, gain, A, diagonal, *powers[: max(len(powers) - 1, 1)])
        return tuple(totals)

    @staticmethod
    def backward(ctx: Any, *covectors: Tensor) -> tuple[Tensor | None, ...]:
        edges, b, shift, norm = ctx.setting
        weight, gain, A, diagonal, v, *powers = ctx.saved_tensors
        wants = ctx.needs_input_grad[4:]
        if is_watched_backward(*covectors):
            with torch.enable_grad():
                again = _plain(edges, weight, gain, v, b, shift, norm)
            parts = zip((weight, gain, v), wants, strict=True)
            asked = [part for part, wanted in parts if wanted]
            watched = torch.is_grad_enabled()
            given = iter(torch.autograd.grad(again, asked, covectors, create_graph=watched))
            return None, None, None, None, *(next(given) if wanted else None for wanted in wants)
        wants_weight, wants_gain, wants_v = wants
        turned = edges.transposed()
        A = A.index_select(0, edges.by_sender)
        g_A = torch.zeros_like(weight)
        g_diagonal = weight.new_zeros(edges.nodes)
        # A new one for each term would have its pages cleared by the system.
        products = torch.empty_like(v)
        adjoint: Tensor | None = None
        columns = b.T.tolist()
        for k in range(len(columns) - 1, -1, -1):
            if adjoint is not None:
                power = powers[k - 1] if k else v
                if wants_weight:
                    g_A += edge_dot(adjoint, power, edges)
                if wants_weight or wants_gain:
                    g_diagonal += torch.mul(adjoint, power, out=products).sum(1)
                if k == 0 and not wants_v:
                    break
                adjoint = _product(A, diagonal, adjoint, turned)
            for covector, b_k in zip(covectors, columns[k], strict=True):
                adjoint = covector * b_k if adjoint is None else adjoint.add_(covector, alpha=b_k)
        scale = 1 / norm if norm else 1.0
        g_weight = None
        if wants_weight:
            # An edge adds to its entry and takes from the diagonal of its receiver.
            g_weight = (g_A - gather(g_diagonal, edges, "receiver")) * scale
        g_gain = g_diagonal * scale if wants_gain else None
        return None, None, None, None, g_weight, g_gain, adjoint if wants_v else None


def _diagonal(
    edges: Edges, weight: Tensor, gain: Tensor | None, shift: float, norm: float
) -> Tensor:
    """`(−D + G − μ) / m`, shape (N,)."""
    diagonal = -segment_sum(weight, edges) - shift
    if gain is not None:
        diagonal = diagonal + gain
    return diagonal / norm if norm else diagonal


def _product(A: Tensor, diagonal: Tensor | None, v: Tensor, edges: Edges) -> Tensor:
    moved = weighted_sum(A, v, edges)
    return moved if diagonal is None else moved.addcmul_(diagonal, v)
