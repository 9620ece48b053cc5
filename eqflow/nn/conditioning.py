r"""Time and fixed node features as the features a network starts from.

A node is given :math:`[\mathrm{context}, \tau(t)]` with
:math:`\tau(t) = (t, \cos \pi k t, \sin \pi k t)_{k = 1 \dots K}`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Segments


@dataclass(frozen=True)
class Conditioning:
    """What a field depends on besides its state.

    Attributes:
        context_features: Width C of the fixed node features, 0 for none.
        time_frequencies: Number K of cosine-sine pairs beside `t`.

    Raises:
        UsageError: If one is negative.
    """

    context_features: int = 0
    time_frequencies: int = 0

    def __post_init__(self) -> None:
        if self.time_frequencies < 0 or self.context_features < 0:
            raise UsageError(
                f"found time_frequencies={self.time_frequencies}, "
                f"context_features={self.context_features}; expected 0 or more."
            )

    @property
    def width(self) -> int:
        """Features of a node, C + 1 + 2K."""
        return self.context_features + 1 + 2 * self.time_frequencies

    def __call__(self, t: Tensor, clouds: Segments, context: Tensor | None) -> Tensor:
        """Features of every node.

        Args:
            t: Time, a scalar, or one a cloud, shape (B,).
            clouds: Nodes of each cloud.
            context: Fixed node features, shape (N, C), or None.

        Returns:
            Shape (N, C + 1 + 2K).

        Raises:
            ShapeError: If the context has another width.
        """
        found = 0 if context is None else context.shape[-1]
        if found != self.context_features:
            raise ShapeError(
                f"field: found {found} context features, expected {self.context_features}."
            )
        h = clouds.expand(self._time_features(t.expand(clouds.count)))
        return h if context is None else torch.cat([context, h], -1)

    def _time_features(self, t: Tensor) -> Tensor:
        k = torch.arange(1, self.time_frequencies + 1, device=t.device, dtype=t.dtype)
        angle = math.pi * k * t.unsqueeze(1)
        return torch.cat([t.unsqueeze(1), angle.cos(), angle.sin()], 1)
