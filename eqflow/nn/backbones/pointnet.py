r"""PointNet: what is known of each point by itself, and what all points of a cloud have in common.

:math:`g = \mathrm{pool}_i \, \varphi(x_i, h_i)`; a cloud gets :math:`\gamma(g)`, a point
:math:`\gamma(\varphi(x_i, h_i), g)`, as for segmentation.

Reference: PointNet (Qi, Su, Mo, Guibas, 2017), arXiv:1612.00593, eq. 1 and section 4.2, without the
transforms of input and features, which are not equivariant.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.geometry import Segments
from eqflow.nn.arguments import require_counts
from eqflow.nn.backbones.abstract import AbstractBackbone, perceptron

Pool = Literal["max", "mean"]


class PointNetBackbone(AbstractBackbone):
    """A perceptron of each point, a pool over those of a cloud, and a perceptron of both.

    Args:
        dimension, features, outputs, pooled: As in `AbstractBackbone`.
        width: Width of the hidden layers.
        layers: Number of layers before and after the pool, each.
        pool: "max", as published, whose derivative jumps where another point becomes the largest,
            or "mean", which is smooth. The pool of no points is zero.

    Raises:
        UsageError: If a number is out of range, or there is no such pool.

    >>> backbone = PointNetBackbone(3, features=0, outputs=5, pooled=True)
    >>> backbone(torch.zeros(6, 3), torch.tensor([0, 2, 6])).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        dimension: int,
        features: int,
        outputs: int,
        width: int = 64,
        layers: int = 2,
        *,
        pool: Pool = "max",
        pooled: bool = False,
    ) -> None:
        super().__init__(dimension, features, outputs, pooled=pooled)
        require_counts(type(self).__name__, width=width, layers=layers)
        if pool not in get_args(Pool):
            raise UsageError(f"PointNetBackbone: found pool={pool!r}, expected 'max' or 'mean'.")
        self.pool = pool
        self.point = perceptron(dimension + features, *[width] * layers)
        read = width if pooled else 2 * width
        self.head = perceptron(read, *[width] * (layers - 1), outputs)

    def of_points(self, x: Tensor, values: Tensor, clouds: Segments) -> Tensor:
        """The network; arguments as in `AbstractBackbone`."""
        own = self.point(values)
        if self.pool == "mean":
            common = clouds.mean(own)
        else:
            is_empty = (clouds.lengths == 0).unsqueeze(1)
            common = clouds.max(own).masked_fill(is_empty, 0.0)
        if self.pooled:
            return self.head(common)
        return self.head(torch.cat([own, clouds.expand(common)], 1))
