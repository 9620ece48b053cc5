"""Weighted outputs of poses, added up as they come: a row a point, or a row a cloud."""

from __future__ import annotations

from torch import Tensor

from eqflow.geometry import Segments


class Sums:
    """The sum over the poses of each cloud, of parts of the poses at a time.

    Whether rows are those of points or of clouds is told by their number. A part of as many points
    as poses says nothing, and waits for one that does; they are those of points where none does.

    Args:
        clouds: The points of each cloud.
    """

    def __init__(self, clouds: Segments) -> None:
        self.clouds = clouds
        self.total: Tensor | None = None
        self.of_points: bool | None = None
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, values: Tensor, points: Tensor, owners: Tensor) -> None:
        """Add a part.

        Args:
            values: A row for each of the points of all poses, or for each pose.
            points: The point of each row, if they are those of points, shape (M,).
            owners: The cloud of each pose, shape (K,).
        """
        if self.of_points is None and len(points) != len(owners):
            self.of_points = len(values) == len(points)
        self.waiting.append((values, points, owners))
        if self.of_points is not None:
            self._add_waiting()

    def _add_waiting(self) -> None:
        for values, points, owners in self.waiting:
            where, count = (
                (points, self.clouds.rows) if self.of_points else (owners, self.clouds.count)
            )
            if self.total is None:
                self.total = values.new_zeros(count, values.shape[1])
            self.total = self.total.index_add(0, where, values)
        self.waiting.clear()

    def result(self) -> tuple[Tensor, bool]:
        """The sums, (N, k) or (B, k), and whether they are those of points."""
        if self.of_points is None:
            self.of_points = True
            self._add_waiting()
        assert self.total is not None
        return self.total, self.of_points
