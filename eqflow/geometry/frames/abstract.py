"""What a frame is: a rule that gives each cloud poses which move along with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from inspect import signature

import torch
from torch import Tensor

from eqflow.geometry.frames.draws import Uniform, drawn
from eqflow.geometry.frames.poses import Poses
from eqflow.geometry.segments import Segments


class AbstractFrame(ABC):
    """Poses of clouds, equivariant under O(d) or SO(d) about the origin.

    Attributes:
        jump_codimension: Codimension of the set of clouds where the average of a smooth function
            over the poses jumps, or None where it does so nowhere. A flow needs 2 or None: its
            paths cross a set of codimension 1.
        in_expectation: Whether averages are equivariant in expectation only.
        tells_types: Whether types of points make a difference to it.
        shares_pose: Whether a cloud looks the same in all of its poses, up to the order of points.
    """

    jump_codimension: int | None = 1
    in_expectation: bool = False
    tells_types: bool = True
    shares_pose: bool = False

    def __repr__(self) -> str:
        names = signature(type(self)).parameters
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({settings})"

    @abstractmethod
    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None = None, proper: bool = False
    ) -> Poses:
        """The poses of each cloud.

        Args:
            x: Finite positions, shape (N, d), relative to the point that the poses turn about.
            clouds: The points of each cloud.
            types: What tells points of one cloud apart beside their positions, shape (N,), int64,
                in an order that does not depend on other clouds; None where all are alike.
            proper: Rotations alone: a frame of SO(d) instead of O(d).
        """

    def drawn(
        self,
        x: Tensor,
        clouds: Segments,
        types: Tensor | None,
        proper: bool,
        draws: int,
        uniform: Uniform,
    ) -> Poses:
        """`draws` poses of each cloud, drawn by their weights, each of weight `1 / draws`.

        Args:
            x, clouds, types, proper: As for all poses.
            draws: Poses of each cloud, with replacement.
            uniform: Where random numbers come from.
        """
        poses = self(x, clouds, types, proper)
        chosen = drawn(poses.weight, poses.owners, uniform((clouds.count, draws)))
        return of_equal_weight(poses.rotation[chosen], draws, poses.rank)


def of_equal_weight(rotation: Tensor, each: int, rank: Tensor) -> Poses:
    """As many poses of every cloud, (B each, d, d), that count alike."""
    weight = rotation.new_full((len(rotation),), 1 / each)
    return Poses(rotation, weight, Segments.of_lengths(torch.full_like(rank, each)), rank)
