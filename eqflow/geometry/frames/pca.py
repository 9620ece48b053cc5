r"""Principal axes: the frame of the eigenvectors of a cloud's second moments, with all signs.

:math:`C = \sum_i x_i x_i^\top = V Λ V^\top`, poses :math:`V\,\mathrm{diag}(±1, …, ±1)`, of which
SO(d) takes those of determinant 1: `2^d` and `2^{d−1}`. Where two moments are equal the axes are
whatever the eigensolver returns, and an average over them is not equivariant; its derivative grows
like one over the gap. Reference: Frame Averaging (Puny et al., 2021), arXiv:2110.03336, section 3.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from eqflow.errors import DegenerateFrame, UsageError
from eqflow.geometry.frames.abstract import AbstractFrame
from eqflow.geometry.frames.orbit import OrbitFrame
from eqflow.geometry.frames.poses import Poses
from eqflow.geometry.segments import Segments

# A gap so small that what is within it is as good as a set of codimension 2.
NEGLIGIBLE = 1e-6

Policy = Literal["error", "warn", "orbit"]


class PCAFrame(AbstractFrame):
    """Principal axes with all signs, for clouds whose principal moments differ.

    A cloud that spans at most `d − 2` dimensions, such as a linear molecule, has fewer principal
    axes than poses need, and is given those of `OrbitFrame`.

    Args:
        gap: Smallest step between neighbouring moments, as a part of the largest, that counts as a
            difference.
        on_degenerate: What to do with a cloud that has a smaller one: `"error"`; `"warn"` and use
            what the eigensolver returns, which is not equivariant and has no derivatives; or take
            `"orbit"` frames of it.

    Raises:
        UsageError: If an argument is out of range.
    """

    def __init__(self, gap: float = 1e-4, on_degenerate: Policy = "error") -> None:
        if not 0 < gap < 1:
            raise UsageError(f"gap: found {gap}, expected between 0 and 1.")
        if on_degenerate not in get_args(Policy):
            raise UsageError(
                f"on_degenerate: found {on_degenerate!r}, expected one of "
                f"{', '.join(map(repr, get_args(Policy)))}."
            )
        self.gap = gap
        self.on_degenerate = on_degenerate

    @property
    def jump_codimension(self) -> int:  # type: ignore[override]
        """1 where another rule takes over within a tube that is not negligible, else 2."""
        return 1 if self.on_degenerate != "warn" and self.gap > NEGLIGIBLE else 2

    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None = None, proper: bool = False
    ) -> Poses:
        """The poses; arguments as in `AbstractFrame`.

        Raises:
            DegenerateFrame: If moments of a cloud are equal and the policy is `"error"`.
        """
        d = x.shape[1]
        moments = second_moments(x, clouds)
        values, axes = eigenvectors(moments)
        with torch.no_grad():
            values = values.detach()
            largest = values[:, -1:]
            rounding = torch.finfo(x.dtype).eps * 16
            spans = (values > rounding * largest).sum(-1) * (largest[:, 0] > 0)
            flat = spans <= max(d - 2, 0) if d > 1 else torch.zeros_like(spans, dtype=torch.bool)
            gaps = relative_gaps(values)
            degenerate = ~flat & (gaps < self.gap)
            elsewhere = flat | (degenerate if self.on_degenerate == "orbit" else False)
        self._report(degenerate, gaps)
        own, others = (~elsewhere).nonzero().squeeze(1), elsewhere.nonzero().squeeze(1)
        if not len(others):
            return _principal(axes, proper)
        picked, rows = clouds.select(others)
        kinds = None if types is None else types[rows]
        # Once more of these alone: that of equal moments has no derivative, not even times zero.
        axes = eigenvectors(moments[own])[1]
        parts = [
            (own, _principal(axes, proper)),
            (others, OrbitFrame()(x[rows], picked, kinds, proper)),
        ]
        return Poses.joined(parts, clouds.count)

    def _report(self, degenerate: Tensor, gaps: Tensor) -> None:
        if self.on_degenerate == "orbit" or not degenerate.any():
            return
        clouds = degenerate.nonzero().squeeze(1)
        worst = int(clouds[gaps[clouds].argmin()])
        message = (
            f"PCAFrame: {len(clouds)} of {len(degenerate)} clouds have no unique principal axes; "
            f"cloud {worst} has moments {float(gaps[worst]):.1e} of the largest apart, expected at "
            f"least gap={self.gap:g}."
        )
        if self.on_degenerate == "error":
            raise DegenerateFrame(
                f"{message} Use frame='orbit' or 'weighted', or PCAFrame(on_degenerate='orbit')."
            )
        warnings.warn(f"{message} Averages over them are not equivariant.", stacklevel=4)


def second_moments(x: Tensor, clouds: Segments) -> Tensor:
    """`Σ_i x_i x_iᵀ` of each cloud, shape (B, d, d)."""
    if clouds.uniform:
        dense = clouds.to_dense(x)
        return dense.mT @ dense
    return clouds.sum(x.unsqueeze(-1) * x.unsqueeze(-2))


def eigenvectors(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Rising eigenvalues (B, d) and eigenvectors (B, d, d); of half precision by way of single."""
    if moments.dtype not in (torch.float16, torch.bfloat16):
        values, axes = torch.linalg.eigh(moments)
        return values, axes
    values, axes = torch.linalg.eigh(moments.float())
    return values.to(moments.dtype), axes.to(moments.dtype)


def relative_gaps(values: Tensor) -> Tensor:
    """Smallest step between neighbours of rising moments (B, d), as a part of the largest, (B,)."""
    if values.shape[1] < 2:
        return values.new_ones(len(values))
    largest = torch.where(values[:, -1] > 0, values[:, -1], 1.0)
    return (values[:, 1:] - values[:, :-1]).amin(-1) / largest


def _principal(axes: Tensor, proper: bool) -> Poses:
    """Poses of orthonormal axes (B, d, d) in the order of rising moments, with all signs."""
    count, d = axes.shape[:2]
    axes = axes.flip(-1)  # the largest moment first
    signs = axes.new_tensor(list(itertools.product((1.0, -1.0), repeat=d))).reshape(-1, d)
    each = len(signs)
    rotation = axes.unsqueeze(1) * signs.reshape(1, each, 1, d)
    if proper:
        with torch.no_grad():
            kept = torch.linalg.det(axes.detach().double()).unsqueeze(1) * signs.prod(1) > 0
        each = each // 2
        rotation = rotation[kept].reshape(count, each, d, d)
    owners = Segments.of_lengths(torch.full((count,), each, device=axes.device))
    rank = torch.full((count,), d, device=axes.device)
    return Poses(
        rotation.reshape(count * each, d, d),
        axes.new_full((count * each,), 1 / each),
        owners,
        rank,
    )
