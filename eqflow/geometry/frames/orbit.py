r"""Orbit frames: as few poses as the symmetry of a cloud allows.

One axis after the other is given by a point. Of all points (then of all pairs, …) those are taken
whose kind is rarest, a kind being everything about a point that no motion changes: its type, its
distance, and where it lies along the axes so far. What is left are poses in which the cloud looks
alike or nearly so, and of these the ones of one look are kept. The poses of a generic cloud are
then one, those of a symmetric cloud a coset of its point group, 24 for methane, all of which are
needed. Kinds are told apart by a tolerance, so a cloud that is symmetric up to the tolerance counts
as symmetric.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.geometry.frames.abstract import AbstractFrame
from eqflow.geometry.frames.axes import pose
from eqflow.geometry.frames.beginnings import FILLED, Beginnings
from eqflow.geometry.frames.poses import Poses
from eqflow.geometry.frames.ties import classes, ranks, rarest
from eqflow.geometry.segments import Segments

# A point that gives an axis is at least this far from the span of those before it, as a part of the
# furthest: axes are then well conditioned. No simple fraction, which a lattice might have.
FAR = 0.2843

# What a look is told apart by: waves in directions without symmetry, with a phase for each type.
# Of a large cloud in float32 one wave alone takes two looks in a hundred for the same.
WAVE = (1.7320508, 2.2360680, 2.6457513, 3.3166248, 3.6055513)
PHASE = 2.3999632
WAVES = 4


class OrbitFrame(AbstractFrame):
    """The smallest frame: equivariant on every cloud, and exact on symmetric ones.

    Averages jump where a cloud becomes symmetric up to the tolerance, and where another kind of
    point becomes the rarest; between, they are smooth.

    Args:
        tolerance: What counts as equal, in units of the cloud's radius; by default
            `eps ** 0.4` of the dtype: 5e-7 in float64, 2e-3 in float32.

    Raises:
        UsageError: If the tolerance is not between 0 and 0.1.
    """

    shares_pose = True

    def __init__(self, tolerance: float | None = None) -> None:
        if tolerance is not None and not 0 < tolerance < 0.1:
            raise UsageError(f"tolerance: found {tolerance}, expected between 0 and 0.1.")
        self.tolerance = tolerance

    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None = None, proper: bool = False
    ) -> Poses:
        """The poses; arguments as in `AbstractFrame`."""
        eps = torch.finfo(x.dtype).eps
        tolerance = eps**0.4 if self.tolerance is None else self.tolerance
        with torch.no_grad():
            radius = clouds.max(x.detach().double().norm(dim=-1)).clamp(min=0)
            size = torch.where(radius > 0, radius, torch.ones_like(radius))
            scaled = x.detach().double() / clouds.expand(size).unsqueeze(-1)
            kinds = clouds.ids.new_zeros(clouds.rows) if types is None else ranks(types, clouds)
            found = Beginnings.none_yet(scaled, clouds)
            rank = torch.full_like(clouds.lengths, x.shape[1])
            for level in range(x.shape[1] - 1):
                found, spans = _rarest_extensions(found, kinds, tolerance)
                rank = torch.where(~spans & (rank > level), level, rank)
            owner, sign = _signed(found, rank, proper)
            turned = pose(found.axes[owner], sign)
            kept = _of_least_look(_looks(turned, found, owner, kinds), found, owner, tolerance)
            owner, sign = owner[kept], sign[kept].to(x.dtype)
            points, axes = found.points[owner], found.axes[owner].to(x.dtype)
            owners = Segments.of_lengths(torch.bincount(found.cloud[owner], minlength=clouds.count))
        given = (points != FILLED).unsqueeze(-1)
        vectors = torch.where(given, x[points.clamp(min=0)], axes) if clouds.rows else axes
        weight = owners.expand(1 / owners.lengths.to(x.dtype))
        return Poses(pose(vectors, sign), weight, owners, rank)


def _rarest_extensions(
    found: Beginnings, kinds: Tensor, tolerance: float
) -> tuple[Beginnings, Tensor]:
    """Beginnings with one axis more, and the clouds (B,) some point of which gave it."""
    distance = found.rest.norm(dim=-1)
    furthest = found.extension_owners.max(distance)
    spans = furthest > tolerance
    cloud = found.cloud[found.extensions.ids]
    usable = (spans[cloud] & (distance >= FAR * furthest[cloud])).nonzero().squeeze(1)
    owner = cloud[usable]
    measured = torch.cat([distance.unsqueeze(1), found.along], 1)[usable]
    keys = [classes(column, owner, tolerance) for column in measured.unbind(1)]
    kept = usable[rarest([kinds[found.extension_points[usable]], *keys], owner, len(spans))]
    on = found.extended(kept, distance[kept], found.weight[found.extensions.ids[kept]])
    return on.beside(found.filled((~spans[found.cloud]).nonzero().squeeze(1))), spans


def _signed(found: Beginnings, rank: Tensor, proper: bool) -> tuple[Tensor, Tensor]:
    """The beginning and the determinant of each pose: both determinants of O(d) where they count.

    Where the last axes are free the average is over all of them, mirrored or not.
    """
    every = torch.arange(len(found.cloud), device=rank.device)
    if proper:
        return every, torch.ones_like(found.weight)
    both = (rank == found.x.shape[1])[found.cloud]
    owner = every.repeat_interleave(1 + both.long())
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    return owner, torch.where(first, 1.0, -1.0).to(found.weight)


def _looks(turned: Tensor, found: Beginnings, owner: Tensor, kinds: Tensor) -> Tensor:
    """Numbers of each pose, (K, L): equal where the cloud looks the same in two poses."""
    rows, points = found.clouds.select(found.cloud[owner])
    d = turned.shape[-1]
    wave = turned.new_tensor(
        [
            [WAVE[(axis + turn) % len(WAVE)] + axis // len(WAVE) for turn in range(WAVES)]
            for axis in range(d)
        ]
    )
    placed = torch.einsum("nd,nde->ne", found.x[points], turned[rows.ids])
    phase = PHASE * kinds[points] + math.sqrt(0.5)
    return rows.sum(torch.cos(placed @ wave + phase.unsqueeze(1)))


def _of_least_look(looks: Tensor, found: Beginnings, owner: Tensor, tolerance: float) -> Tensor:
    """Poses whose first number is the least of their cloud, of these those whose second is, …."""
    cloud = found.cloud[owner]
    kept = torch.arange(len(owner), device=owner.device)
    for look in looks.unbind(1):
        owners = Segments.of_lengths(torch.bincount(cloud[kept], minlength=found.clouds.count))
        least = -owners.max(-look[kept])
        most = owners.expand(least + tolerance * found.clouds.lengths)
        kept = kept[look[kept] <= most]
    return kept
