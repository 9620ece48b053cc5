"""Backbones without any symmetry in space: smooth, with weights that are drawn once and for all."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow import rng
from eqflow.geometry import Segments

WIDTH = 8


class GenericBackbone:
    """A row a point, or where `pooled` a row a cloud, of what every point and their mean say.

    Reordering points reorders its rows, and nothing else is symmetric in it. What it was asked is
    written down: the points of each call are in `rows`.

    Args:
        dimension: Coordinates of a point.
        outputs: Columns that come out.
        pooled: Whether a row a cloud comes out.
        size: About how large numbers come out.
    """

    def __init__(
        self, dimension: int, outputs: int, pooled: bool = False, size: float = 1.0
    ) -> None:
        source = rng.generator(0, "generic backbone", dimension, outputs)
        like = torch.zeros((), dtype=torch.float64)

        def drawn(*shape: int) -> Tensor:
            return rng.normal(shape, like, source) / shape[0] ** 0.5

        self.of_x, self.of_mean_x = drawn(dimension, WIDTH), drawn(dimension, WIDTH)
        self.of_h, self.of_mean_h = drawn(1, WIDTH), drawn(1, WIDTH)
        self.shift, self.of_mean = drawn(1, WIDTH), drawn(WIDTH, WIDTH)
        self.last = size * drawn(WIDTH, outputs)
        self.pooled = pooled
        self.rows: list[int] = []

    def __call__(self, x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        self.rows.append(x.shape[0])
        clouds = Segments.of(ptr)
        own, mean = x @ self.of_x.to(x), x @ self.of_mean_x.to(x)
        if h is not None:
            h = h.to(x) / 10
            own, mean = own + h @ self.of_h.to(x), mean + h @ self.of_mean_h.to(x)
        context = clouds.mean(torch.tanh(mean + self.shift.to(x)))
        hidden = torch.tanh(own + clouds.expand(context @ self.of_mean.to(x)))
        values = hidden @ self.last.to(x)
        return clouds.mean(values) if self.pooled else values


class OrderedBackbone(GenericBackbone):
    """As above, but each point is moved by its place: reordering points changes what comes out."""

    def __call__(self, x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        place = Segments.of(ptr).place.to(x).unsqueeze(1)
        return super().__call__(x + 0.3 * torch.cos(place), ptr, h)
