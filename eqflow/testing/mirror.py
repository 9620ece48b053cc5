r"""Chirality: whether a function tells a cloud from its mirror image.

A function that moves with rotations need not move with reflections: a signed volume changes its
sign, a cross product points the other way. That is a property and no fault. It is measured by the
error of `f(M x) = ρ(M) f(x)` for reflections `M`, beside that for rotations: only where rotations
hold does it speak of handedness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from eqflow.geometry import Clouds
from eqflow.geometry.representations import Representation, representation
from eqflow.testing.equivariance import missed
from eqflow.testing.motions import random_motions
from eqflow.testing.outputs import CloudFunction, Output, evaluate, scale
from eqflow.testing.tolerances import tolerance_of

if TYPE_CHECKING:
    import e3nn.o3


@dataclass(frozen=True)
class Chirality:
    """How a function takes reflections, on the cloud where it takes them worst.

    Attributes:
        mirrored: Relative error of reflections.
        turned: Relative error of rotations on the same cloud.
        tolerance: What rounding may cause.
        cloud: The cloud of the batch.
    """

    mirrored: float
    turned: float
    tolerance: float
    cloud: int = 0

    @property
    def verdict(self) -> str:
        """`"achiral"`, `"chiral"`, or `"undecided"` where rotations fail as well."""
        if self.mirrored <= self.tolerance:
            return "achiral"
        return "chiral" if self.turned <= self.tolerance else "undecided"

    def __str__(self) -> str:
        if self.verdict == "achiral":
            return "achiral"
        if self.verdict == "chiral":
            return f"chiral: mirror images differ by {self.mirrored:.2g}"
        return "undecided: rotations fail as well"


def chirality(
    fn: CloudFunction,
    batch: Clouds,
    output: str | e3nn.o3.Irreps = "scalar",
    seed: int = 0,
    motions: int = 3,
    tolerance: float | None = None,
) -> Chirality:
    """Whether `fn` tells clouds from their mirror images; arguments as in `equivariance_error`.

    >>> from eqflow.geometry import centred
    >>> from eqflow.testing import clouds
    >>> def volume(x, ptr, h):  # of the first three arms
    ...     return torch.stack([torch.linalg.det(y[:3]) for y in centred(x, ptr).tensor_split(
    ...         ptr[1:-1])])
    >>> shapes = dict(clouds())
    >>> chirality(volume, shapes["generic"]).verdict, chirality(volume, shapes["benzene"]).verdict
    ('chiral', 'achiral')
    """
    kind = representation(output, batch.dimension)
    bound = tolerance_of(batch.x.dtype) if tolerance is None else tolerance
    still = evaluate(fn, batch, kind)
    return chirality_of(fn, still, kind, scale(fn, still, kind), bound, seed, motions)


def chirality_of(
    fn: CloudFunction,
    still: Output,
    kind: Representation,
    size: torch.Tensor,
    tolerance: float,
    seed: int,
    motions: int,
) -> Chirality:
    """As `chirality`, of a function whose output for the clouds, and its size (B,), are known."""
    batch = still.batch
    if not len(batch):
        return Chirality(0.0, 0.0, tolerance)
    worst = {name: torch.zeros_like(size) for name in ("rotation", "reflection")}
    for motion in random_motions(batch, f"O({batch.dimension})", seed, motions):
        worst[motion.kind] = worst[motion.kind].maximum(missed(fn, still, kind, motion) / size)
    cloud = int(worst["reflection"].argmax())
    turned, mirrored = (float(errors[cloud]) for errors in worst.values())
    return Chirality(mirrored, turned, tolerance, cloud)
