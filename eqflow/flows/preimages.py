r"""Bijections from real numbers onto the set of values that stand for a discrete label.

A model of continuous features says of a label that it is any value in a set: of category `k`, that
component `k` is the largest; of an integer `c`, that the value lies between `c` and `c + 1`. These
sets are disjoint and all but fill the space, so a density over values gives one over labels.

With `T = u_k`, :math:`v_k = T` and :math:`v_j = T - \mathrm{softplus}(T - u_j) < T`:

.. math::
    \log \left| \frac{\partial v}{\partial u} \right| = \sum_{j \ne k} \log σ(T - u_j)
    \quad \text{(category)} \qquad
    v = c + σ(u), \quad \log \left| \frac{\partial v}{\partial u} \right| = \log σ(u) + \log σ(-u)
    \quad \text{(integer)}

Reference: Argmax Flows and Multinomial Diffusion (Hoogeboom et al., 2021), arXiv:2102.05379,
section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot, softplus


def to_category(u: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Values whose largest component is that of the category, and the log-determinant.

    Args:
        u: Any numbers, shape (N, E).
        kind: Category of each row, shape (N,), int64, below E.

    Returns:
        Shapes (N, E) and (N,).
    """
    top, chosen = _top(u, kind)
    others = torch.where(chosen, torch.zeros_like(u), logsigmoid(top - u))
    return torch.where(chosen, u, top - softplus(top - u)), others.sum(-1)


def from_category(v: Tensor, kind: Tensor) -> Tensor:
    """The inverse of `to_category`, shape (N, E); NaN or infinite outside the category's set."""
    top, chosen = _top(v, kind)
    gap = torch.where(chosen, torch.ones_like(v), top - v)
    # log(exp(gap) − 1), which itself would overflow.
    return torch.where(chosen, v, top - gap - torch.log(-torch.expm1(-gap)))


def to_unit_interval(u: Tensor, integer: Tensor) -> tuple[Tensor, Tensor]:
    """Values between an integer and the next, and the log-determinant of each.

    Args:
        u: Any numbers, shape (N, I).
        integer: Shape (N, I), int64.

    Returns:
        Shapes (N, I) and (N, I).
    """
    return integer + torch.sigmoid(u), logsigmoid(u) + logsigmoid(-u)


def from_unit_interval(v: Tensor, integer: Tensor) -> Tensor:
    """The inverse of `to_unit_interval`, shape (N, I); NaN or infinite outside the interval."""
    part = v - integer
    return torch.log(part) - torch.log1p(-part)


def _top(values: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """The component of the category (N, 1), and which one that is (N, E)."""
    return values.gather(1, kind.unsqueeze(1)), one_hot(kind, values.shape[1]).bool()
