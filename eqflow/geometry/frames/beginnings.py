"""Poses in the making: the first few axes, and all points that may give the next one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eqflow.geometry.frames.axes import completion, residual
from eqflow.geometry.segments import Segments

FILLED = -1  # in place of a point, where no point gave the axis


@dataclass(frozen=True, eq=False)
class Beginnings:
    """P beginnings of poses, of k axes each.

    Attributes:
        x: Positions that poses are made of, shape (N, d).
        clouds: The points of each cloud.
        cloud: What each beginning is of, shape (P,), rising.
        points: The points that gave the axes, shape (P, k), or `FILLED`.
        axes: Orthonormal axes, shape (P, k, d).
        weight: Shape (P,).
    """

    x: Tensor
    clouds: Segments
    cloud: Tensor
    points: Tensor
    axes: Tensor
    weight: Tensor

    @classmethod
    def none_yet(cls, x: Tensor, clouds: Segments, copies: int = 1) -> Beginnings:
        """Beginnings without axes, as many copies for each cloud."""
        every = torch.arange(clouds.count, device=x.device).repeat_interleave(copies)
        return cls(
            x,
            clouds,
            every,
            every.new_zeros(len(every), 0),
            x.new_zeros(len(every), 0, x.shape[1]),
            x.new_ones(len(every)),
        )

    @cached_property
    def owners(self) -> Segments:
        """The beginnings of each cloud."""
        return Segments.of_lengths(torch.bincount(self.cloud, minlength=self.clouds.count))

    @cached_property
    def _rows(self) -> tuple[Segments, Tensor]:
        return self.clouds.select(self.cloud)

    @property
    def extensions(self) -> Segments:
        """The points of each beginning's cloud: one row for each way to go on, E in all."""
        return self._rows[0]

    @property
    def extension_points(self) -> Tensor:
        """The point of each extension, shape (E,)."""
        return self._rows[1]

    @cached_property
    def extension_owners(self) -> Segments:
        """The extensions of each cloud."""
        return Segments.of_lengths(self.clouds.lengths * self.owners.lengths)

    @cached_property
    def rest(self) -> Tensor:
        """What the position of each extension has perpendicular to the axes, shape (E, d)."""
        return residual(self.x[self.extension_points], self.axes[self.extensions.ids])

    @cached_property
    def along(self) -> Tensor:
        """Coordinates of each extension along the axes, shape (E, k)."""
        axes = self.axes[self.extensions.ids]
        return torch.einsum("ekd,ed->ek", axes, self.x[self.extension_points])

    def extended(self, chosen: Tensor, distance: Tensor, weight: Tensor) -> Beginnings:
        """Those that go on by the chosen extensions (M,), of that distance and weight (M,)."""
        before = self.extensions.ids[chosen]
        axis = self.rest[chosen] / distance.unsqueeze(-1)
        point = self.extension_points[chosen].unsqueeze(1)
        return Beginnings(
            self.x,
            self.clouds,
            self.cloud[before],
            torch.cat([self.points[before], point], 1),
            torch.cat([self.axes[before], axis.unsqueeze(1)], 1),
            weight,
        )

    def filled(self, chosen: Tensor) -> Beginnings:
        """The chosen beginnings (M,) with an axis that no point gives."""
        axes = self.axes[chosen]
        point = self.points.new_full((len(axes), 1), FILLED)
        return Beginnings(
            self.x,
            self.clouds,
            self.cloud[chosen],
            torch.cat([self.points[chosen], point], 1),
            torch.cat([axes, completion(axes).unsqueeze(1)], 1),
            self.weight[chosen],
        )

    def beside(self, other: Beginnings) -> Beginnings:
        """Those of both, cloud by cloud."""
        order = torch.argsort(torch.cat([self.cloud, other.cloud]), stable=True)

        def merged(one: Tensor, two: Tensor) -> Tensor:
            return torch.cat([one, two])[order]

        return Beginnings(
            self.x,
            self.clouds,
            merged(self.cloud, other.cloud),
            merged(self.points, other.points),
            merged(self.axes, other.axes),
            merged(self.weight, other.weight),
        )
