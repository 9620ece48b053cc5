"""Plain networks `backbone(x, ptr, h)` of packed clouds, which know nothing of how space turns.

A backbone reads the coordinates of points as numbers. What it puts out is a row a point, (N, k), or
where it is pooled a row a cloud, (B, k). Averaged over a group or over frames of a cloud it becomes
invariant or equivariant, and stays as expressive as it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

from eqflow.errors import ShapeError
from eqflow.geometry import Segments
from eqflow.nn.arguments import require_counts

# 1 / √E[SiLU(z)²] for a standard normal z.
SILU_GAIN = 1.68


class AbstractBackbone(nn.Module, ABC):
    """A function of positions and features of the points of each cloud, whichever others there are.

    Args:
        dimension: Coordinates of a point, d.
        features: Width F of the node features, 0 for none.
        outputs: Columns that come out, k.
        pooled: Whether a row a cloud comes out, or a row a point.

    Raises:
        UsageError: If a number is out of range.
    """

    def __init__(self, dimension: int, features: int, outputs: int, *, pooled: bool) -> None:
        super().__init__()
        name = type(self).__name__
        require_counts(name, dimension=dimension, outputs=outputs)
        require_counts(name, 0, features=features)
        self.dimension = dimension
        self.features = features
        self.outputs = outputs
        self.pooled = pooled

    def forward(self, x: Tensor, ptr: Tensor | Segments, h: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: Positions, shape (N, d).
            ptr: Start of each cloud, shape (B + 1,), int64, or the clouds as `Segments`.
            h: Node features, shape (N, F), or None where there are none.

        Returns:
            Shape (N, outputs), or (B, outputs) where pooled.

        Raises:
            ShapeError: If a shape does not fit.
        """
        clouds = Segments.of(ptr)
        self._check(x, clouds, h)
        return self.of_points(x, x if h is None else torch.cat([x, h], 1), clouds)

    @abstractmethod
    def of_points(self, x: Tensor, values: Tensor, clouds: Segments) -> Tensor:
        """The network of positions (N, d) and all that is known of points, `[x, h]`, (N, d + F)."""

    def _check(self, x: Tensor, clouds: Segments, h: Tensor | None) -> None:
        name, rows = type(self).__name__, clouds.rows
        if x.shape != (rows, self.dimension):
            raise ShapeError(
                f"{name}: x has shape {tuple(x.shape)}, expected ({rows}, {self.dimension}): a row "
                "for each point of ptr, `dimension` wide."
            )
        found = None if h is None else tuple(h.shape)
        expected = (rows, self.features) if self.features else None
        if found != expected and not (found == (rows, 0) and not self.features):
            raise ShapeError(
                f"{name}: h has shape {found}, expected {expected}: a row a point, `features` wide."
            )


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers with SiLU between them, `widths[0]` to `widths[-1]`.

    Weights are drawn such that of inputs of variance 1 outputs have about that too, at any depth.
    """
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = nn.Linear(inputs, outputs)
        nn.init.normal_(layer.weight, std=(SILU_GAIN if parts else 1.0) / inputs**0.5)
        parts += [layer, nn.SiLU()]
    return nn.Sequential(*parts[:-1])


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of elementary operations.

    The derivative of torch's own forward mode by its weights and inputs is wrong, silently (2.13):
    a divergence taken forward could not be trained on.
    """

    def forward(self, h: Tensor) -> Tensor:
        """Rows of mean 0 and variance 1, scaled and shifted, (N, width) to (N, width)."""
        h = h - h.mean(-1, keepdim=True)
        scale = (h.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return torch.addcmul(self.bias, h * scale, self.weight)
