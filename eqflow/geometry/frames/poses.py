"""A few poses of each cloud: the orthogonal matrices and weights that a frame consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eqflow.geometry.segments import Segments


@dataclass(frozen=True, eq=False)
class Poses:
    """K poses of the B clouds of a batch.

    Attributes:
        rotation: Orthogonal matrices R, shape (K, d, d); its columns are the axes of the pose, so
            a cloud `x` in that pose is `x R`, and a vector `v` of the pose is `R v` in the cloud.
        weight: Share of each pose in the average over its cloud, shape (K,).
        owners: The poses of each cloud, one cloud after the other.
        rank: Number of leading axes that the cloud determines, shape (B,): `d`, or at most `d − 2`
            where the cloud spans no more. The others are one choice of many, about which what is
            averaged has to be symmetric.
        opened: Whether positions along the next axis count as well, shape (B,), or None where they
            nowhere do. They are zero and their derivatives are not: poses come with either sign of
            that axis and with each free axis in its place, so what a vector has along it stands
            for all of them.
    """

    rotation: Tensor
    weight: Tensor
    owners: Segments
    rank: Tensor
    opened: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of poses, K."""
        return self.owners.rows

    @property
    def dimension(self) -> int:
        """Number of coordinates, d."""
        return self.rotation.shape[-1]

    @cached_property
    def is_free(self) -> Tensor:
        """Axes along which positions do not count, shape (K, d)."""
        axis = torch.arange(self.dimension, device=self.rank.device)
        counted = self.rank if self.opened is None else self.rank + self.opened.long()
        return axis >= self.owners.expand(counted).unsqueeze(-1)

    @classmethod
    def joined(cls, parts: Sequence[tuple[Tensor, Poses]], clouds: int) -> Poses:
        """The poses of parts of a batch as those of the whole.

        Args:
            parts: The clouds of each part, shape (B_p,), and their poses.
            clouds: Number of clouds in the batch.
        """
        owner = torch.cat([which[poses.owners.ids] for which, poses in parts])
        order = torch.argsort(owner, stable=True)
        rank = torch.cat([poses.rank for _, poses in parts])
        which = torch.cat([which for which, _ in parts])
        opened = torch.cat(
            [
                torch.zeros_like(poses.rank, dtype=torch.bool)
                if poses.opened is None
                else poses.opened
                for _, poses in parts
            ]
        )
        return cls(
            torch.cat([poses.rotation for _, poses in parts])[order],
            torch.cat([poses.weight for _, poses in parts])[order],
            Segments.of_lengths(torch.bincount(owner, minlength=clouds)),
            rank[torch.argsort(which)],
            opened[torch.argsort(which)],
        )
