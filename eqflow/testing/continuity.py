r"""Continuity: how far the output jumps where a cloud is perturbed a little.

For each size ε every point is moved by ε times the width of its cloud in random directions `δ`. The
change is the largest of :math:`\lVert f(x + ε δ_a) - f(x) \rVert` and
:math:`\lVert f(x + ε δ_a) - f(x + ε δ_b) \rVert` over draws and pairs of draws, in units of the
output's size. That of a continuous function falls with ε, as ε where it is Lipschitz; the sign of
an eigenvector, an order of points or an arg max has another value on each side of a surface, and
what changes stays the same however small ε is.

A symmetric cloud often lies on such surfaces, or a little away from them, where ties are broken
with a tolerance. So the steepest stretch of any ray `x + s δ_a` between two sizes is halved, always
towards the larger change, until it is as short as the dtype allows: what is left is a jump, and is
said with its distance `s`. No finite step tells a jump from a slope that is steeper still.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.geometry import Clouds
from eqflow.geometry.representations import Representation, representation
from eqflow.testing.motions import spread
from eqflow.testing.outputs import CloudFunction, Output, evaluate, scale
from eqflow.testing.rays import LEAST_ORDER, SHORTEST, Rays, random_directions
from eqflow.testing.tolerances import tolerance_of

if TYPE_CHECKING:
    import e3nn.o3

SIZES = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
# Over this ratio of the smallest sizes the change must fall, at least as the size to this power.
RATIO = 1e3
# A perturbation below this many units of rounding of the positions moves them by rounding.
RESOLVED = 16


@dataclass(frozen=True)
class Continuity:
    """The changes of one cloud: the one that jumps farthest, or else changes most.

    Attributes:
        sizes: Sizes ε that the dtype resolves, rising, in units of the cloud's width.
        changes: Largest relative change at each; infinite where an output was not finite.
        tolerance: What rounding may cause.
        cloud: The cloud of the batch.
        step: Jump found by halving a ray away from the cloud; 0 where there is none.
        distance: Where on the ray it is, in units of the cloud's width.
    """

    sizes: tuple[float, ...]
    changes: tuple[float, ...]
    tolerance: float
    cloud: int = 0
    step: float = 0.0
    distance: float = 0.0

    @property
    def order(self) -> float:
        """The power of ε by which the smallest changes fall: 1 if Lipschitz, 0 at a jump."""
        near = [i for i, size in enumerate(self.sizes) if size <= 1.01 * RATIO * self.sizes[0]]
        top = max(1, near[-1])
        if not 0 < self.changes[0] < math.inf or not 0 < self.changes[top] < math.inf:
            return math.nan
        return math.log(self.changes[top] / self.changes[0]) / math.log(
            self.sizes[top] / self.sizes[0]
        )

    @property
    def verdict(self) -> str:
        """`"continuous"`, `"jumps"`, or `"not finite"`."""
        if not all(map(math.isfinite, self.changes)):
            return "not finite"
        return "jumps" if self.step > 0 or self._is_torn else "continuous"

    @property
    def _is_torn(self) -> bool:
        """Whether the change does not fall with the smallest sizes: the cloud is on a surface."""
        return not (self.changes[0] <= self.tolerance or self.order >= LEAST_ORDER)

    @property
    def jump(self) -> float:
        """The relative change that no smaller step makes smaller; 0 where it is continuous."""
        if self.verdict == "not finite":
            return math.inf
        return max(self.step, self.changes[0] if self._is_torn else 0.0)

    def __str__(self) -> str:
        if self.verdict == "continuous":
            return "continuous"
        if self.verdict == "not finite":
            return "not finite where perturbed"
        where = self.sizes[0] if self._is_torn else self.distance
        return f"jumps by {self.jump:.2g}, perturbed by {where:.0e}"


def continuity(
    fn: CloudFunction,
    batch: Clouds,
    output: str | e3nn.o3.Irreps = "scalar",
    sizes: tuple[float, ...] = SIZES,
    draws: int = 8,
    seed: int = 0,
    tolerance: float | None = None,
) -> Continuity:
    """How far the output of `fn` jumps where clouds are perturbed.

    Args:
        fn, batch, output: As in `equivariance_error`.
        sizes: Sizes ε of a perturbation, in units of a cloud's width, at least two; those that the
            dtype of the positions does not resolve are left out.
        draws: Perturbations of each size, at least 2; in the same directions for all sizes.
        seed: The directions are a function of it.
        tolerance: Largest change that counts for none; by default that of the dtype in `TOLERANCE`.

    Returns:
        The cloud that jumps farthest, or else changes most.

    Raises:
        UsageError: If there is no such output, fewer than two draws or sizes that count.
        ShapeError: If `fn` returns another shape.

    >>> from eqflow.testing import clouds
    >>> batch = dict(clouds())["square"]
    >>> continuity(lambda x, ptr, h: x.square().sum(-1), batch).verdict
    'continuous'
    >>> continuity(lambda x, ptr, h: x.norm(dim=-1).argmax()[None], batch).verdict
    'jumps'
    """
    kind = representation(output, batch.dimension)
    bound = tolerance_of(batch.x.dtype) if tolerance is None else tolerance
    still = evaluate(fn, batch, kind)
    return continuity_of(fn, still, kind, scale(fn, still, kind), bound, sizes, draws, seed)


def continuity_of(
    fn: CloudFunction,
    still: Output,
    kind: Representation,
    size: Tensor,
    tolerance: float,
    sizes: tuple[float, ...] = SIZES,
    draws: int = 8,
    seed: int = 0,
) -> Continuity:
    """As `continuity`, of a function whose output for the clouds, and its size (B,), are known."""
    batch = still.batch
    if draws < 2:
        raise UsageError(f"draws: found {draws}, expected at least 2: pairs are compared.")
    if not len(batch):
        raise UsageError("batch: found no clouds, expected at least one to perturb.")
    width = spread(batch)
    width = torch.where(width > 0, width, torch.ones_like(width))
    reach = batch.segments.max(batch.x.detach().double().abs().amax(-1)).clamp(min=0)
    least = RESOLVED * torch.finfo(batch.x.dtype).eps * float((reach / width).max())
    resolved = tuple(each for each in sorted(sizes) if each > 0 and each >= least)
    if len(resolved) < 2:
        raise UsageError(
            f"sizes: found {sizes}, expected at least two above {least:.1e}: {batch.x.dtype} "
            "does not resolve smaller perturbations of these clouds."
        )
    directions = random_directions(batch, width, draws, seed)
    rays = Rays(fn, still, kind, size, directions)
    values = [rays.at_all(epsilon) for epsilon in resolved]
    changes = torch.stack([rays.largest_change(each) for each in values])
    steps, distances = rays.halved(resolved, values, max(SHORTEST, least), tolerance)
    found = [
        Continuity(resolved, tuple(column), tolerance, cloud, step, distance)
        for cloud, (column, step, distance) in enumerate(
            zip(changes.T.tolist(), steps.tolist(), distances.tolist(), strict=True)
        )
    ]
    return max(found, key=lambda each: (each.jump, max(each.changes)))


def assert_continuous(
    fn: CloudFunction,
    batch: Clouds,
    output: str | e3nn.o3.Irreps = "scalar",
    sizes: tuple[float, ...] = SIZES,
    draws: int = 8,
    seed: int = 0,
    tolerance: float | None = None,
) -> None:
    """Fail where the output of `fn` jumps; arguments as in `continuity`.

    Raises:
        AssertionError: If it jumps or is not finite; names the cloud and the change at each size.
    """
    found = continuity(fn, batch, output, sizes, draws, seed, tolerance)
    if found.verdict == "continuous":
        return
    source = f", from {batch.source[found.cloud]}" if batch.source else ""
    lines = [
        f"continuity of a {str(output)!r} output: {found}, tolerance {found.tolerance:.2g} for "
        f"{batch.x.dtype}",
        *(
            f"  perturbed by {size:.0e}: {change:.2g}"
            for size, change in zip(found.sizes, found.changes, strict=True)
        ),
        f"  worst: cloud {found.cloud} ({int(batch.sizes[found.cloud])} points{source}), "
        f"seed {seed}",
    ]
    raise AssertionError("\n".join(lines))
