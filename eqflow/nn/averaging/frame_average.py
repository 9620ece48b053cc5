r"""Frame averaging: any network of point clouds made invariant or equivariant.

:math:`⟨Φ⟩(x) = \sum_k w_k\, D(R_k)\, Φ\big((x - t) R_k\big) + t`, over the poses `R_k` of a frame,
`t` the centre of mass, added where the output is a point. Reference: Frame Averaging for Invariant
and Equivariant Network Design (Puny et al., 2021), arXiv:2110.03336.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from eqflow.errors import UsageError
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
from eqflow.geometry.representations import Representation, representation
from eqflow.nn.averaging.features import Backbone, types_of
from eqflow.nn.averaging.free_axes import projectors
from eqflow.nn.averaging.inputs import checked_input
from eqflow.nn.averaging.outputs import checked_output, owner_of_rows
from eqflow.nn.averaging.same_look import matching_points

FRAMES: dict[str, Callable[[], AbstractFrame]] = {
    "pca": PCAFrame,
    "orbit": OrbitFrame,
    "weighted": WeightedFrame,
    "stochastic": lambda: StochasticFrame(WeightedFrame()),
}


# Positions that are this many units of rounding from their mean, in units of their distance from
# the origin, coincide.
ROUNDING = 16


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
        UsageError: If there is no such group, frame or output, `rows` is not positive, or the
            backbone cannot be called.

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
        if not callable(backbone):
            raise UsageError(
                f"FrameAverage: found {backbone!r} as the backbone, expected a function or module "
                "backbone(x, ptr, h)."
            )
        self.backbone = backbone
        self.group: EuclideanGroup = euclidean_group(group)
        self.frame = frame_of(frame)
        self.kind = representation(output, self.group.dimension)
        self.backbone_permutes = backbone_permutes
        if rows < 1:
            raise UsageError(f"rows: found {rows}, expected at least 1.")
        self.rows = rows

    def forward(
        self,
        x: Tensor,
        ptr: Tensor | Segments,
        h: Tensor | None = None,
        *,
        frame: AbstractFrame | None = None,
    ) -> Tensor:
        """The average.

        Args:
            x: Finite positions, shape (N, d).
            ptr: Start of each cloud, shape (B + 1,).
            h: Features that no motion changes, shape (N, F); points with different rows are told
                apart.
            frame: Another frame than the model's own, for this call.

        Returns:
            Shape (N, k) or (B, k), as the backbone's.

        Raises:
            ShapeError: If a shape does not fit, or the backbone's output is none of that kind.
            DataError: If a position is not finite.
            DegenerateFrame: If a cloud has no principal axes and the frame is `PCAFrame`.
        """
        invariant = Representation("scalar")
        clouds = checked_input(x, ptr, h, self.group.dimension, invariant, "FrameAverage")
        centre = centre_of_mass(x, clouds) if self.group.translates else None
        relative = x if centre is None else _about(x, clouds, centre)
        frame = self.frame if frame is None else frame
        poses = self.poses(relative, clouds, h, frame)
        rows, chosen = clouds.select(poses.owners.ids)
        posed = in_pose(relative, poses, rows, chosen)
        found = None
        if self._serves_all(x, poses, frame):
            found = self._once(posed, poses, rows, chosen, clouds, h)
        values, owner, target = found or self._each(posed, rows, chosen, h, poses.owners.ids)
        count = clouds.rows if target is chosen else clouds.count
        turned = self._turned(values, poses, owner)
        average = turned.new_zeros(count, turned.shape[1]).index_add(
            0, target, turned * poses.weight[owner].unsqueeze(1).to(turned)
        )
        if self.kind.translates and centre is not None:
            average = average + (clouds.expand(centre) if target is chosen else centre)
        return average

    def poses(
        self,
        x: Tensor,
        clouds: Segments,
        h: Tensor | None = None,
        frame: AbstractFrame | None = None,
    ) -> Poses:
        """The poses of clouds at their centre of mass (or relative to the origin of O(d))."""
        if not self.group.rotates:
            return _as_they_are(x, clouds)
        frame = self.frame if frame is None else frame
        types = types_of(h) if frame.tells_types else None
        return frame(x, clouds, types, self.group.is_proper)

    def _serves_all(self, x: Tensor, poses: Poses, frame: AbstractFrame) -> bool:
        """Whether one call does for all poses of a cloud.

        Not where the result is differentiated by positions: poses that look alike here do not on a
        cloud that was moved a little.
        """
        differentiated = torch.is_grad_enabled() and x.requires_grad
        transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
        return (
            self.backbone_permutes
            and frame.shares_pose
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
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """As `_each`, the rows of all poses of a cloud being those of its first, reordered.

        None where a cloud looks the same in them only up to the tolerance of the frame.
        """
        first = poses.owners.ptr[:-1]
        _, placed = rows.select(first)
        match = matching_points(posed, posed[placed], rows, clouds, poses.owners.ids, types_of(h))
        if match is None:
            return None
        values, _, _ = self._each(
            posed[placed], clouds, torch.arange(clouds.rows, device=posed.device), h, first
        )
        if values.shape[0] != clouds.rows:
            every = torch.arange(poses.count, device=posed.device)
            return values[poses.owners.ids], every, poses.owners.ids
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
    if not isinstance(frame, str) or frame not in FRAMES:
        raise UsageError(
            f"frame: found {frame!r}, expected one of {', '.join(map(repr, FRAMES))}, or a frame "
            "of eqflow.geometry.frames."
        )
    return FRAMES[frame]()


def in_pose(x: Tensor, poses: Poses, rows: Segments, chosen: Tensor) -> Tensor:
    """Positions of every pose's cloud along its axes, 0 along those that are free, (M, d)."""
    placed = x[chosen]
    if rows.uniform:
        placed = (placed.reshape(poses.count, rows.uniform, -1) @ poses.rotation).flatten(0, 1)
    else:
        placed = torch.einsum("nd,nde->ne", placed, poses.rotation[rows.ids])
    if bool((poses.rank < poses.dimension).any()):
        placed = placed.masked_fill(poses.is_free[rows.ids], 0.0)
    return placed


def chunks(rows: Segments, most: int) -> list[tuple[int, int]]:
    """Ranges of segments with at most `most` rows together, or one segment that has more."""
    ends, start, ptr = [], 0, rows.ptr.tolist()
    for end in range(1, rows.count + 1):
        if ptr[end] - ptr[start] > most and end - 1 > start:
            ends.append((start, end - 1))
            start = end - 1
    return [*ends, (start, rows.count)]


def _about(x: Tensor, clouds: Segments, centre: Tensor) -> Tensor:
    """Positions relative to the centres, 0 where rounding is all that they consist of."""
    relative = x - clouds.expand(centre)
    with torch.no_grad():
        size = clouds.max(x.detach().norm(dim=-1))
        radius = clouds.max(relative.detach().norm(dim=-1))
        is_point = radius <= ROUNDING * torch.finfo(x.dtype).eps * size
    return relative.masked_fill(clouds.expand(is_point).unsqueeze(-1), 0.0)


def _as_they_are(x: Tensor, clouds: Segments) -> Poses:
    d = x.shape[1]
    every = torch.ones_like(clouds.lengths)
    rotation = torch.eye(d, dtype=x.dtype, device=x.device).expand(clouds.count, d, d)
    return Poses(rotation, x.new_ones(clouds.count), Segments.of_lengths(every), d * every)
