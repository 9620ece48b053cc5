"""What a frame is: a rule that gives each cloud poses which move along with it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from eqflow.geometry.frames.poses import Poses
from eqflow.geometry.segments import Segments


class AbstractFrame(ABC):
    """Poses of clouds, equivariant under O(d) or SO(d) about the origin.

    Attributes:
        is_continuous: Whether an average over the poses of a continuous function is continuous.
        in_expectation: Whether averages are equivariant in expectation only.
        shares_pose: Whether a cloud looks the same in all of its poses, up to the order of points.
    """

    is_continuous: bool = False
    in_expectation: bool = False
    shares_pose: bool = False

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
