r"""Frame averaging: any network of point clouds made invariant or equivariant.

:math:`⟨Φ⟩(x) = \sum_k w_k\, D(R_k)\, Φ\big((x - t) R_k\big) + t`, over the poses `R_k` of a frame,
`t` the centre of mass, added where the output is a point. Reference: Frame Averaging for Invariant
and Equivariant Network Design (Puny et al., 2021), arXiv:2110.03336.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqflow.errors import DataError, ShapeError, UsageError
from eqflow.geometry import Segments, centre_of_mass
from eqflow.geometry.euclidean import EuclideanGroup, euclidean_group
from eqflow.geometry.frames import (
    AbstractFrame,
    OrbitFrame,
    PCAFrame,
    Poses,
    StochasticFrame,
    WeightedFrame,
)
from eqflow.geometry.representations import representation
from eqflow.nn.averaging.free_axes import projectors
from eqflow.nn.averaging.outputs import checked_output, owner_of_rows
from eqflow.nn.averaging.same_look import matching_points

Backbone = Callable[[Tensor, Tensor, Tensor | None], Tensor]

FRAMES: dict[str, Callable[[], AbstractFrame]] = {
    "pca": PCAFrame,
    "orbit": OrbitFrame,
    "weighted": WeightedFrame,
    "stochastic": lambda: StochasticFrame(WeightedFrame()),
}


class FrameAverage(nn.Module):
    """A backbone averaged over the poses of a frame.

    Args:
        backbone: `backbone(x, ptr, h)` with `x` (N, d), `ptr` (B + 1,) and `h` (N, F) or None, the
            clouds in their poses; returns a row a point, (N, k), or a row a cloud, (B, k).
        group: `"E(d)"`, `"SE(d)"`, `"O(d)"`, `"SO(d)"` or `"T(d)"` with a number for d.
        frame: `"orbit"` (the fewest poses; exact), `"weighted"` (exact and continuous; many),
            `"pca"` (exact where principal moments differ, an error elsewhere), `"stochastic"` (one
            pose drawn from the weighted frame; exact in expectation), or a frame of
            `eqflow.geometry.frames` with other settings.
        output: How the output moves: `"scalar"`, `"vector"`, `"point"` (rotates and translates),
            `"tensor(m)"`, or irreps of O(3) in e3nn's notation.
        backbone_permutes: Whether reordering points reorders the backbone's rows, or leaves them
            as they are where they are those of clouds. Where no derivative with respect to
            positions is asked for, one call then serves all poses of an orbit frame.
        rows: Most points in one call of the backbone.

    Raises:
        UsageError: If there is no such group, frame or output, or `rows` is not positive.

    Example:
        >>> from eqflow.nn.averaging import FrameAverage
        >>> lopsided = lambda x, ptr, h: x * torch.tensor([1.0, 2.0, 3.0])
        >>> model = FrameAverage(lopsided, group="E(3)", frame="orbit", output="vector")
        >>> model(torch.randn(7, 3), torch.tensor([0, 3, 7])).shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        backbone: Backbone,
        group: str = "E(3)",
        frame: str | AbstractFrame = "orbit",
        output: str = "vector",
        *,
        backbone_permutes: bool = False,
        rows: int = 65536,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.group: EuclideanGroup = euclidean_group(group)
        self.frame = frame_of(frame)
        self.kind = representation(output, self.group.dimension)
        self.backbone_permutes = backbone_permutes
        if rows < 1:
            raise UsageError(f"rows: found {rows}, expected at least 1.")
        self.rows = rows

    def forward(self, x: Tensor, ptr: Tensor | Segments, h: Tensor | None = None) -> Tensor:
        """The average.

        Args:
            x: Finite positions, shape (N, d).
            ptr: Start of each cloud, shape (B + 1,).
            h: Features that no motion changes, shape (N, F); points with different rows are told
                apart.

        Returns:
            Shape (N, k) or (B, k), as the backbone's.

        Raises:
            ShapeError: If a shape does not fit, or the backbone's output is none of that kind.
            DataError: If a position is not finite.
            DegenerateFrame: If a cloud has no principal axes and the frame is `PCAFrame`.
        """
        clouds = Segments.of(ptr)
        _check(x, clouds, h, self.group)
        centre = centre_of_mass(x, clouds) if self.group.translates else None
        relative = x if centre is None else x - clouds.expand(centre)
        poses = self.poses(relative, clouds, h)
        rows, chosen = clouds.select(poses.owners.ids)
        posed = in_pose(relative, poses, rows, chosen)
        if self._serves_all(x, poses):
            values, owner, target = self._once(posed, poses, rows, chosen, clouds, h)
        else:
            values, owner, target = self._each(posed, rows, chosen, h, poses.owners.ids)
        count = clouds.rows if target is chosen else clouds.count
        turned = self._turned(values, poses, owner)
        average = turned.new_zeros(count, turned.shape[1]).index_add(
            0, target, turned * poses.weight[owner].unsqueeze(1).to(turned)
        )
        if self.kind.translates and centre is not None:
            average = average + (clouds.expand(centre) if target is chosen else centre)
        return average

    def poses(self, x: Tensor, clouds: Segments, h: Tensor | None = None) -> Poses:
        """The poses of clouds at their centre of mass (or relative to the origin of O(d))."""
        if not self.group.rotates:
            return _as_they_are(x, clouds)
        return self.frame(x, clouds, types_of(h), self.group.is_proper)

    def _serves_all(self, x: Tensor, poses: Poses) -> bool:
        """Whether one call does for all poses of a cloud.

        Not where the result is differentiated by positions: poses that look alike here do not on a
        cloud that was moved a little.
        """
        differentiated = torch.is_grad_enabled() and x.requires_grad
        transformed = torch._C._are_functorch_transforms_active()
        return (
            self.backbone_permutes
            and self.frame.shares_pose
            and poses.count > poses.owners.count
            and not differentiated
            and not transformed
        )

    def _each(
        self, posed: Tensor, rows: Segments, chosen: Tensor, h: Tensor | None, owners: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The backbone's rows of every pose, with the pose and the place in the average of each."""
        parts = []
        for first, last in chunks(rows, self.rows):
            part = Segments.of_lengths(rows.lengths[first:last])
            here = slice(int(rows.ptr[first]), int(rows.ptr[last]))
            features = None if h is None else h[chosen[here]]
            parts.append(self._call(posed[here], part, features))
        values = torch.cat(parts)
        owner = owner_of_rows(values.shape[0], rows)
        return values, owner, chosen if values.shape[0] == rows.rows else owners

    def _once(
        self,
        posed: Tensor,
        poses: Poses,
        rows: Segments,
        chosen: Tensor,
        clouds: Segments,
        h: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_each`, the rows of all poses of a cloud being those of its first, reordered."""
        first = poses.owners.ptr[:-1]
        _, placed = rows.select(first)
        values, owner, _ = self._each(
            posed[placed], clouds, torch.arange(clouds.rows, device=posed.device), h, first
        )
        if values.shape[0] != clouds.rows:
            return values[poses.owners.ids], torch.arange(poses.count), poses.owners.ids
        match = matching_points(posed, posed[placed], rows, clouds, poses.owners.ids, types_of(h))
        return values[match], rows.ids, chosen

    def _call(self, x: Tensor, clouds: Segments, h: Tensor | None) -> Tensor:
        returned = self.backbone(x, clouds.ptr, h)
        return checked_output(returned, clouds.rows, clouds.count, self.kind, "FrameAverage")

    def _turned(self, values: Tensor, poses: Poses, owner: Tensor) -> Tensor:
        """Outputs (M, k) turned from their poses, what would depend on free axes left out."""
        if self.kind.matrices is None:
            return values
        d = poses.dimension
        matrices = self.kind.matrices(poses.rotation)
        if bool((poses.rank < d).any()):
            table = projectors(self.kind.name, d, self.group.is_proper).to(matrices)
            matrices = matrices @ table[poses.owners.expand(poses.rank)]
        return torch.einsum("mij,mj->mi", matrices[owner].to(values), values)


def frame_of(frame: str | AbstractFrame) -> AbstractFrame:
    """The frame of a name, or `frame` itself.

    Raises:
        UsageError: If there is none of that name.
    """
    if isinstance(frame, AbstractFrame):
        return frame
    if frame not in FRAMES:
        raise UsageError(
            f"frame: found {frame!r}, expected one of {', '.join(map(repr, FRAMES))}, or a frame "
            "of eqflow.geometry.frames."
        )
    return FRAMES[frame]()


def in_pose(x: Tensor, poses: Poses, rows: Segments, chosen: Tensor) -> Tensor:
    """Positions of every pose's cloud along its axes, 0 along those that are free, (M, d)."""
    placed = torch.einsum("nd,nde->ne", x[chosen], poses.rotation[rows.ids])
    if bool((poses.rank < poses.dimension).any()):
        placed = placed.masked_fill(poses.is_free[rows.ids], 0.0)
    return placed


def types_of(h: Tensor | None) -> Tensor | None:
    """Numbers that tell rows of features apart, (N, F) to (N,), in the order of the rows."""
    if h is None or h.numel() == 0:
        return None
    with torch.no_grad():
        return torch.unique(h.detach(), dim=0, return_inverse=True)[1]


def chunks(rows: Segments, most: int) -> list[tuple[int, int]]:
    """Ranges of segments with at most `most` rows together, or one segment that has more."""
    ends, start, ptr = [], 0, rows.ptr.tolist()
    for end in range(1, rows.count + 1):
        if ptr[end] - ptr[start] > most and end - 1 > start:
            ends.append((start, end - 1))
            start = end - 1
    return [*ends, (start, rows.count)]


def _as_they_are(x: Tensor, clouds: Segments) -> Poses:
    d = x.shape[1]
    every = torch.ones_like(clouds.lengths)
    rotation = torch.eye(d, dtype=x.dtype, device=x.device).expand(clouds.count, d, d)
    return Poses(rotation, x.new_ones(clouds.count), Segments.of_lengths(every), d * every)


def _check(x: Tensor, clouds: Segments, h: Tensor | None, group: EuclideanGroup) -> None:
    if x.dim() != 2 or x.shape != (clouds.rows, group.dimension):
        raise ShapeError(
            f"FrameAverage: x has shape {tuple(x.shape)}, expected "
            f"({clouds.rows}, {group.dimension}): a row for each point of ptr, in the dimension of "
            f"{group}."
        )
    if h is not None and (h.dim() != 2 or h.shape[0] != clouds.rows):
        raise ShapeError(
            f"FrameAverage: h has shape {tuple(h.shape)}, expected ({clouds.rows}, F): one row of "
            "features for each point."
        )
    bad = ~torch.isfinite(x.detach()).all(-1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise DataError(
            f"FrameAverage: position {row}, of cloud {int(clouds.ids[row])}, is "
            f"{x.detach()[row].tolist()}, expected finite numbers. Leave such clouds out."
        )
