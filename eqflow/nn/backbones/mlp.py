"""The perceptron of a whole cloud, its points one after another in one long row.

It sees the order of the points: nothing in it is symmetric, neither under motions nor under
permutations. That makes it the plainest test of what an average over a group does.
"""

from __future__ import annotations

from torch import Tensor

from eqflow.errors import ShapeError
from eqflow.geometry import Segments
from eqflow.nn.arguments import require_counts
from eqflow.nn.backbones.abstract import AbstractBackbone, perceptron


class FlatMLPBackbone(AbstractBackbone):
    """`MLP([x_1, h_1, …, x_n, h_n])` for clouds of one size.

    Args:
        points: Points of every cloud, n.
        dimension, features, outputs, pooled: As in `AbstractBackbone`.
        width: Width of the hidden layers.
        layers: Number of hidden layers.

    Raises:
        UsageError: If a number is out of range.

    >>> import torch
    >>> backbone = FlatMLPBackbone(4, dimension=2, features=0, outputs=2)
    >>> backbone(torch.zeros(8, 2), torch.tensor([0, 4, 8])).shape
    torch.Size([8, 2])
    """

    def __init__(
        self,
        points: int,
        dimension: int,
        features: int,
        outputs: int,
        width: int = 64,
        layers: int = 2,
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__(dimension, features, outputs, pooled=pooled)
        require_counts(type(self).__name__, points=points, width=width, layers=layers)
        self.points = points
        columns = outputs if pooled else points * outputs
        self.network = perceptron(points * (dimension + features), *[width] * layers, columns)

    def of_points(self, x: Tensor, values: Tensor, clouds: Segments) -> Tensor:
        """The network; arguments as in `AbstractBackbone`.

        Raises:
            ShapeError: If a cloud has another number of points, also none.
        """
        if (clouds.lengths != self.points).any():
            cloud = int((clouds.lengths != self.points).nonzero()[0])
            raise ShapeError(
                f"FlatMLPBackbone: cloud {cloud} has {int(clouds.lengths[cloud])} points, expected "
                f"{self.points}. Make one of that size, or use TransformerBackbone or "
                "PointNetBackbone, which take clouds of any size."
            )
        out = self.network(values.reshape(clouds.count, self.network[0].in_features))
        return out if self.pooled else out.reshape(clouds.rows, self.outputs)
