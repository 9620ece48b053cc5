"""Fields that predict masked categories as they are told, for tests of several modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.geometry import Segments, centred
from eqflow.nn import AbstractMaskedField

Posterior = Callable[[Tensor, Segments], Tensor]


class Told(AbstractMaskedField):
    """Velocity `−x` and the logits `fn(what is visible one-hot (N, K + 1), clouds)`."""

    def __init__(self, categories: int, fn: Posterior) -> None:
        super().__init__()
        self.categories = categories
        self.context_features = categories + 1
        self.fn = fn
        self.unit = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def velocity_and_logits(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert context is not None
        v = -self.unit * centred(x, edges.clouds)
        return v, self.fn(context[:, : self.categories + 1], edges.clouds)


def independent(p: Tensor) -> Posterior:
    """Every point is of a category with the same probabilities, whatever the others are."""
    return lambda visible, clouds: p.log().expand(len(visible), -1)


def alike(p: Tensor) -> Posterior:
    """The exact posterior of structures whose points are all of one category."""

    def logits(visible: Tensor, clouds: Segments) -> Tensor:
        seen = clouds.expand(clouds.sum(visible[:, :-1]))
        return p.log() + 1e3 * seen

    return logits
