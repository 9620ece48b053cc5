r"""Weighted frames: poses by all points in turn, each with a weight that is a smooth function.

A point gives the first axis with weight :math:`α_i ∝ ρ_i^p` of its distance from the origin, a
second point the next with weight :math:`β_{j|i} ∝ ρ_{j|i}^p` of its distance from the line of the
first, and so on; the last axis is perpendicular to the others. A pose that is about to be undefined
has weight zero, so averages are continuous. Every axis but the first is taken with both signs: as a
cloud becomes collinear, the axes perpendicular to it turn about it ever faster, and signs cancel
what would depend on them.

Robust weighted frames are due to Dym, Lawrence and Siegel (2024), arXiv:2402.16077; weights that
are normalised axis by axis, so that signs of the first axis are not needed, and the threshold are
this package's.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.geometry.frames.abstract import AbstractFrame, of_equal_weight
from eqflow.geometry.frames.axes import pose
from eqflow.geometry.frames.beginnings import Beginnings
from eqflow.geometry.frames.draws import Uniform, drawn
from eqflow.geometry.frames.poses import Poses
from eqflow.geometry.segments import Segments

# Power of the mean that stands for the largest distance: smooth, and never above the largest.
LEHMER = 8

# Quarter turns about the first axis.
QUARTER_TURNS = [
    [[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]]
    for cosine, sine in ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
]


class WeightedFrame(AbstractFrame):
    r"""A frame whose averages are exact and continuous on every cloud.

    A cloud of `n` points in three dimensions has up to `4 n (n − 1)` poses under O(3) and half as
    many under SO(3); in two dimensions `2 n` and `n`. A threshold leaves out those of points that
    are not far enough, still continuously: weights are :math:`(ρ / \bar ρ − θ)_+^p`, where
    :math:`\bar ρ = Σ ρ^8 / Σ ρ^7` is close to the largest distance. (The k largest would
    not do: which of equally far points are among them is no property of the cloud.)

    Averages of scalars and vectors are continuous wherever points do not all coincide; averages of
    tensors also have to stay away from clouds that span at most `d − 2` dimensions, such as
    collinear ones, where a tensor may turn about the line.
    On a line far from the origin rounding leaves the line, and averages of tensors are then wrong.
    Their derivatives are continuous where `n ≥ 3` points span at least `d − 1` dimensions.

    Args:
        power: Exponent p of the weights, at least 2, for derivatives that stay bounded.
        threshold: θ, at least 0 and below 1.

    Raises:
        UsageError: If an argument is out of range.
    """

    jump_codimension = None
    tells_types = False

    def __init__(self, power: float = 2.0, threshold: float = 0.0) -> None:
        if not 2 <= power < float("inf"):
            raise UsageError(f"power: found {power}, expected at least 2.")
        if not 0 <= threshold < 1:
            raise UsageError(f"threshold: found {threshold}, expected at least 0 and below 1.")
        self.power = power
        self.threshold = threshold

    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None = None, proper: bool = False
    ) -> Poses:
        """The poses; arguments as in `AbstractFrame`, of which types are not made use of."""
        found, rank = self._levels(Beginnings.none_yet(x, clouds))
        return _with_signs(found, rank, proper)

    def drawn(
        self,
        x: Tensor,
        clouds: Segments,
        types: Tensor | None,
        proper: bool,
        draws: int,
        uniform: Uniform,
    ) -> Poses:
        """Poses drawn axis by axis, at the cost of `n` points a draw; arguments as above."""
        u = uniform((clouds.count, draws, x.shape[1])).flatten(0, 1)
        found, rank = self._levels(Beginnings.none_yet(x, clouds, draws), u)
        signs = _signs(x, proper)
        which = (u[:, -1] * len(signs)).long()
        rotation = pose(found.axes, x.new_ones(len(which))) * signs[which].unsqueeze(1)
        return of_equal_weight(rotation, draws, rank)

    def _levels(self, found: Beginnings, u: Tensor | None = None) -> tuple[Beginnings, Tensor]:
        """Poses but for their signs, and the rank of each cloud (B,).

        All of them, or of each beginning one drawn by uniform numbers `u`, shape (P, d).
        """
        d = found.x.shape[1]
        with torch.no_grad():
            radius = found.clouds.max(found.x.detach().norm(dim=-1)).clamp(min=0)
        rank = torch.full_like(found.clouds.lengths, d)
        for level in range(d - 1):
            found, spans = self._extended(found, radius, None if u is None else u[:, level])
            rank = torch.where(~spans & (rank > level), level, rank)
        return found, rank

    def _extended(
        self, found: Beginnings, radius: Tensor, u: Tensor | None
    ) -> tuple[Beginnings, Tensor]:
        """Beginnings with one axis more, and the clouds (B,) whose points gave it.

        Where one beginning finds all points in its span, none of the cloud goes on: those that
        could, by points near the origin, would have the weight of the others too.
        """
        tolerance = torch.finfo(found.x.dtype).eps ** 0.75
        square = found.rest.square().sum(-1)
        with torch.no_grad():
            least = (tolerance * radius)[found.cloud][found.extensions.ids]
            usable = square > least.square()
            goes = found.extensions.max(usable.to(square.dtype)) > 0
            spans = found.owners.max((~goes).to(square.dtype)) == 0
            usable &= spans[found.cloud][found.extensions.ids]
        distance = torch.where(usable, square, torch.ones_like(square)).sqrt()
        distance = torch.where(usable, distance, torch.zeros_like(distance))
        reach = found.extensions.expand(_lehmer_mean(distance, found.extensions))
        weight = (distance / reach - self.threshold).clamp(min=0) ** self.power
        total = found.extensions.sum(weight)
        share = weight / found.extensions.expand(torch.where(total > 0, total, 1.0))
        weight = share * found.weight[found.extensions.ids]
        if u is None:
            chosen = (weight.detach() > 0).nonzero().squeeze(1)
        else:
            going = (total.detach() > 0).nonzero().squeeze(1)
            rows, places = found.extensions.select(going)
            chosen = places[drawn(share[places], rows, u[going].unsqueeze(1))]
        on = found.extended(chosen, distance[chosen], weight[chosen])
        return on.beside(found.filled((~spans[found.cloud]).nonzero().squeeze(1))), spans


def _lehmer_mean(distance: Tensor, rows: Segments) -> Tensor:
    """`Σ ρ^8 / Σ ρ^7` of each segment, (M,) to (S,); 1 where all distances are zero."""
    with torch.no_grad():
        largest = rows.max(distance).clamp(min=0)
        largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    powers = (distance / rows.expand(largest)) ** (LEHMER - 1)
    below = rows.sum(powers)
    mean = rows.sum(powers * distance) / torch.where(below > 0, below, torch.ones_like(below))
    return torch.where(below > 0, mean, torch.ones_like(mean))


def _with_signs(found: Beginnings, rank: Tensor, proper: bool) -> Poses:
    """Poses with both signs of every axis but the first, as far as the group has them.

    Those of a line in space are quarter turns about it: a cloud that leaves it bends in a plane, so
    its second axis is either free one, with either sign, and nothing counts along the third.
    """
    d, count = found.x.shape[1], len(found.cloud)
    signs = torch.diag_embed(_signs(found.x, proper))
    line = found.x.new_tensor(QUARTER_TURNS) if d == 3 else signs[:1]
    is_line = (rank == 1) & (d == 3)
    signed = (rank > 1) | (rank == d)  # else no axis but the first is determined
    copies = torch.where(signed, len(signs), torch.where(is_line, len(line), 1))[found.cloud]
    owner = torch.arange(count, device=rank.device).repeat_interleave(copies)
    which = Segments.of_lengths(copies).place + len(signs) * is_line[found.cloud][owner]
    plain = pose(found.axes, found.x.new_ones(count))
    rotation = plain[owner] @ torch.cat([signs, line])[which]
    weight = (found.weight / copies)[owner]
    owners = Segments.of_lengths(torch.bincount(found.cloud[owner], minlength=len(rank)))
    return Poses(rotation, weight / owners.expand(owners.sum(weight)), owners, rank, is_line)


def _signs(x: Tensor, proper: bool) -> Tensor:
    """Signs of the axes of a pose, those of all but the first both ways, shape (S, d)."""
    d = x.shape[1]
    free = max(d - 1, 1)
    options = itertools.product((1.0, -1.0), repeat=free)
    kept = [signs for signs in options if not proper or math.prod(signs) > 0]
    return torch.cat([x.new_ones(len(kept), d - free), x.new_tensor(kept)], 1)
