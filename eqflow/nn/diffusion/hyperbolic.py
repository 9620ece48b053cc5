r"""Squared distances across edges of points in the Poincaré ball.

.. math::
    d(u, v) = \operatorname{arcosh}\Big(1 + \frac{2 \lVert u - v \rVert^2}{(1 - \lVert u \rVert^2)
    (1 - \lVert v \rVert^2)}\Big)

The square is smooth where points coincide, the distance itself is not.

Reference: Poincaré Embeddings for Learning Hierarchical Representations (Nickel, Kiela, 2017),
arXiv:1705.08039, eq. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.edges import Edges, gather, squared_distance

# The ball ends here: points further out are taken to be at its rim.
RIM = 1e-5
# Below it arcosh²(1 + y) = 2 y − y² / 3 + 4 y³ / 45 to the last digit of float64.
SMALL = 1e-4


def squared_hyperbolic_distance(u: Tensor, edges: Edges) -> Tensor:
    """`d(u_r, u_c)²` across each edge.

    Args:
        u: Points of the open unit ball, shape (N, P); those beyond `1 − ‖u‖² = 1e-5` count as being
            there.
        edges: The graph.

    Returns:
        Shape (E,); differentiable any number of times, also where points coincide.
    """
    room = (1 - u.square().sum(1)).clamp(min=RIM)
    y = 2 * squared_distance(u, edges) / (gather(room, edges, "receiver") * gather(room, edges))
    return squared_arcosh_of_one_plus(y)


def squared_arcosh_of_one_plus(y: Tensor) -> Tensor:
    """`arcosh(1 + y)²` for `y ≥ 0`, smooth at 0."""
    is_small = y < SMALL
    series = y * (2 - y * (1 / 3 - y * (4 / 45 - y / 35)))
    away = torch.where(is_small, torch.ones_like(y), y)
    return torch.where(is_small, series, torch.log1p(away + (away * (away + 2)).sqrt()).square())
