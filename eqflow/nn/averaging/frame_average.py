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
from eqflow.geometry.frames.positions import in_all_poses, in_pose
from eqflow.geometry.representations import Representation, representation
from eqflow.nn.arguments import require_counts
from eqflow.nn.averaging.features import Backbone, types_of
from eqflow.nn.averaging.free_axes import projectors
from eqflow.nn.averaging.inputs import checked_input, require_callable
from eqflow.nn.averaging.outputs import checked_output, owner_of_rows
from eqflow.nn.averaging.precision import autocast_of_caller, without_autocast
from eqflow.nn.averaging.same_look import agree, matching_points
from eqflow.nn.averaging.sums import Sums

# Outputs that turn as positions do.
VECTORS = ("vector", "point", "1x1o")

FRAMES: dict[str, Callable[[], AbstractFrame]] = {
    "pca": PCAFrame,
    "orbit": OrbitFrame,
    "weighted": WeightedFrame,
    "stochastic": lambda: StochasticFrame(WeightedFrame()),
}


# Positions that are within this many units of rounding of each other coincide.
ROUNDING = 2


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
        require_callable(backbone, "FrameAverage")
        require_counts("FrameAverage", rows=rows)
        self.backbone = backbone
        self.group: EuclideanGroup = euclidean_group(group)
        self.frame = frame_of(frame)
        self.kind = representation(output, self.group.dimension)
        self.backbone_permutes = backbone_permutes
        self.rows = rows

    def extra_repr(self) -> str:
        """What distinguishes it from the average of another frame."""
        return f"group={self.group}, frame={self.frame!r}, output={self.kind.name!r}"

    def forward(
        self,
        x: Tensor,
        ptr: Tensor | Segments,
        h: Tensor | None = None,
        *,
        frame: str | AbstractFrame | None = None,
    ) -> Tensor:
        """The average.

        Args:
            x: Finite positions, shape (N, d). Clouds whose points are within 2 units of rounding
                of each other in every coordinate are one point.
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
        device = x.device.type
        autocast = autocast_of_caller(device)
        with without_autocast(device):
            return self._average(x, clouds, h, frame, autocast)

    def _average(
        self,
        x: Tensor,
        clouds: Segments,
        h: Tensor | None,
        frame: str | AbstractFrame | None,
        autocast: torch.autocast,
    ) -> Tensor:
        centre = centre_of_mass(x, clouds) if self.group.translates else None
        relative = x if centre is None else _about(x, clouds, centre)
        frame = self.frame if frame is None else frame_of(frame)
        poses = self.poses(relative, clouds, h, frame)
        alike = self._look_alike(relative, clouds, h, poses, frame)
        if alike is None:
            average, of_points = self._each(relative, clouds, h, poses, autocast)
        else:
            average, of_points = self._once(relative, clouds, h, poses, autocast, alike)
        if self.kind.translates and centre is not None:
            average = average + (clouds.expand(centre) if of_points else centre)
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
        types = types_of(h, clouds) if frame.tells_types else None
        with torch.no_grad():
            # Poses do not depend on the size of a cloud, whose square may be no number.
            size = clouds.max(x.detach().abs().amax(-1)).clamp(min=torch.finfo(x.dtype).tiny)
        return frame(x / clouds.expand(size).unsqueeze(-1), clouds, types, self.group.is_proper)

    def _each(
        self,
        x: Tensor,
        clouds: Segments,
        h: Tensor | None,
        poses: Poses,
        autocast: torch.autocast,
    ) -> tuple[Tensor, bool]:
        """The average by a row of the backbone's for each pose; whether it is one of points."""
        owners = poses.owners.ids
        matrices, sums = self._matrices(poses), Sums(clouds)
        parts = chunks(clouds.lengths[owners], self.rows)
        for here in parts:
            rows, points = clouds.select(owners[here])
            if len(parts) == 1:
                posed = in_all_poses(x, clouds, poses)
            else:
                posed = in_pose(x[points], rows, poses.rotation[here], poses.is_free[here])
            values = self._call(posed, rows, None if h is None else h[points], autocast)
            pose = owner_of_rows(len(values), rows)
            turned = _turned(values, None if matrices is None else matrices[here], pose)
            weight = poses.weight[here][pose].unsqueeze(1).to(turned)
            sums.add(weight * turned, points, owners[here])
        return sums.result()

    def _look_alike(
        self,
        x: Tensor,
        clouds: Segments,
        h: Tensor | None,
        poses: Poses,
        frame: AbstractFrame,
    ) -> Tensor | None:
        """The point of the first pose that is where a point of a pose is, if one call does for all.

        It does not where the result is differentiated by positions: poses that look alike here do
        not on a cloud that was moved a little.
        """
        differentiated = torch.is_grad_enabled() and x.requires_grad
        transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
        if (
            not self.backbone_permutes
            or not frame.shares_pose
            or poses.count == poses.owners.count
            or differentiated
            or transformed
        ):
            return None
        owners = poses.owners.ids
        rows, points = clouds.select(owners)
        posed = in_all_poses(x, clouds, poses)
        _, placed = rows.select(poses.owners.ptr[:-1])
        types = types_of(h, clouds)
        match = matching_points(posed, posed[placed], rows, clouds, owners, types)
        if match is None or h is None or agree(h[points], h[match]):
            return match
        return None

    def _once(
        self,
        x: Tensor,
        clouds: Segments,
        h: Tensor | None,
        poses: Poses,
        autocast: torch.autocast,
        alike: Tensor,
    ) -> tuple[Tensor, bool]:
        """As `_each`, the rows of all poses of a cloud being those of its first, reordered."""
        first = poses.owners.ptr[:-1]
        posed = in_pose(x, clouds, poses.rotation[first], poses.is_free[first])
        parts = []
        for here in chunks(clouds.lengths, self.rows):
            part = Segments.of_lengths(clouds.lengths[here])
            points = slice(int(clouds.ptr[here.start]), int(clouds.ptr[here.stop]))
            parts.append(
                self._call(posed[points], part, None if h is None else h[points], autocast)
            )
        values = torch.cat(parts)
        owners, sums = poses.owners.ids, Sums(clouds)
        rows, points = clouds.select(owners)
        of_points = len(values) == clouds.rows
        values = values[alike if of_points else owners]
        pose = rows.ids if of_points else torch.arange(poses.count, device=x.device)
        turned = _turned(values, self._matrices(poses), pose)
        sums.of_points = of_points
        sums.add(poses.weight[pose].unsqueeze(1).to(turned) * turned, points, owners)
        return sums.result()

    def _call(
        self, x: Tensor, clouds: Segments, h: Tensor | None, autocast: torch.autocast
    ) -> Tensor:
        with autocast:
            returned = self.backbone(x, clouds.ptr, h)
        where = f"FrameAverage (each pose of a cloud counts as one of {clouds.count})"
        values = checked_output(returned, clouds.rows, clouds.count, self.kind, where)
        return values.to(torch.promote_types(values.dtype, x.dtype))

    def _matrices(self, poses: Poses) -> Tensor | None:
        """How outputs turn from their poses, what depends on free axes left out; None for not."""
        if self.kind.matrices is None:
            return None
        d = poses.dimension
        matrices = self.kind.matrices(poses.rotation)
        if bool((poses.rank < d).any()):
            table = projectors(self.kind.name, d, self.group.is_proper).to(matrices)
            kept = table[poses.rank]
            if poses.opened is not None and self.kind.name in VECTORS:
                opened = torch.nn.functional.one_hot(poses.rank.clamp(max=d - 1), d)
                opened = opened * (poses.opened * (d - poses.rank)).unsqueeze(1)
                kept = kept + torch.diag_embed(opened).to(kept)
            matrices = matrices @ kept[poses.owners.ids]
        return matrices


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


def chunks(lengths: Tensor, most: int) -> list[slice]:
    """Ranges of segments of the given lengths that have at most `most` rows, or are one segment."""
    if int(lengths.sum()) <= most:
        return [slice(0, len(lengths))]
    ranges, start, rows = [], 0, 0
    for end, length in enumerate(lengths.tolist()):
        if rows + length > most and end > start:
            ranges.append(slice(start, end))
            start, rows = end, 0
        rows += length
    return [*ranges, slice(start, len(lengths))]


def _turned(values: Tensor, matrices: Tensor | None, owner: Tensor) -> Tensor:
    """Outputs (M, k), each by the matrix of its owner."""
    if matrices is None:
        return values
    return torch.einsum("mij,mj->mi", matrices[owner].to(values), values)


def _about(x: Tensor, clouds: Segments, centre: Tensor) -> Tensor:
    """Positions relative to the centres, 0 where rounding is all that they consist of."""
    relative = x - clouds.expand(centre)
    if not clouds.rows:
        return relative
    with torch.no_grad():
        first = x.detach()[clouds.ptr[:-1].clamp(max=max(len(x) - 1, 0))]
        spread = clouds.max((x.detach() - clouds.expand(first)).abs())
        size = clouds.max(x.detach().abs())
        is_point = (spread <= ROUNDING * torch.finfo(x.dtype).eps * size).all(-1)
    return relative.masked_fill(clouds.expand(is_point).unsqueeze(-1), 0.0)


def _as_they_are(x: Tensor, clouds: Segments) -> Poses:
    d = x.shape[1]
    every = torch.ones_like(clouds.lengths)
    rotation = torch.eye(d, dtype=x.dtype, device=x.device).expand(clouds.count, d, d)
    return Poses(rotation, x.new_ones(clouds.count), Segments.of_lengths(every), d * every)
