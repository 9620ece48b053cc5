"""Surfaces of simple bodies as 3-D clouds: point clouds for machines without data.

Points are uniform by area on a sphere, torus, cube or cylinder of about unit size, which is then
stretched along its axes by factors of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.geometry.clouds import Clouds

Surface = Callable[[int, Tensor, torch.Generator], Tensor]


def surfaces(
    count: int,
    points: int,
    seed: int,
    kinds: Sequence[str] = ("sphere", "torus", "cube", "cylinder"),
    stretch: float = 1.5,
    dtype: torch.dtype = torch.float64,
) -> Clouds:
    """Random clouds on stretched surfaces, of the given kinds in turn.

    Args:
        count: Number of clouds.
        points: Points of each cloud.
        seed: Cloud `i` is a function of this seed, `i` and the other arguments but `count`.
        kinds: Names out of `sphere`, `torus`, `cube`, `cylinder`.
        stretch: Largest factor along an axis, at least 1; factors are log-uniform between its
            reciprocal and it.
        dtype: Type of the positions.

    Returns:
        Clouds with `source` `kind#index`.

    Raises:
        UsageError: If a kind is unknown or a number out of range.

    >>> surfaces(2, 100, seed=0).source
    ('sphere#0', 'torus#1')
    """
    unknown = [kind for kind in kinds if kind not in SURFACES]
    if unknown or not kinds:
        raise UsageError(
            f"surfaces: found the kinds {list(kinds)}, expected some of {', '.join(SURFACES)}."
        )
    if count < 1 or points < 1 or stretch < 1:
        raise UsageError(
            f"surfaces: found count={count}, points={points}, stretch={stretch}, expected 1 or "
            "more."
        )
    like = torch.empty(0, dtype=dtype)
    drawn, source = [], []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        generator = rng.generator(seed, "surfaces", index)
        factors = stretch ** (2 * rng.uniform((3,), like, generator) - 1)
        drawn.append(SURFACES[kind](points, like, generator) * factors)
        source.append(f"{kind}#{index}")
    dense = Clouds.from_dense(torch.stack(drawn))
    return Clouds(dense.x, dense.ptr, None, tuple(source))


def _sphere(points: int, like: Tensor, source: torch.Generator) -> Tensor:
    x = rng.normal((points, 3), like, source)
    return x / x.norm(dim=1, keepdim=True)


def _torus(points: int, like: Tensor, source: torch.Generator) -> Tensor:
    """Radii 0.75 and 0.25; the area at the angle φ of the tube is as `1 + cos φ / 3`."""
    u, v, accepted = rng.uniform((3, 2 * points + 64), like, source)
    phi = 2 * math.pi * v
    kept = torch.nonzero(accepted * (4 / 3) <= 1 + torch.cos(phi) / 3).flatten()
    # Three quarters are kept on average; in the rare case of too few, they are used again.
    kept = kept[torch.arange(points) % len(kept)]
    theta, phi = 2 * math.pi * u[kept], phi[kept]
    radius = 0.75 + 0.25 * torch.cos(phi)
    return torch.stack(
        [radius * torch.cos(theta), radius * torch.sin(theta), 0.25 * torch.sin(phi)], 1
    )


def _cube(points: int, like: Tensor, source: torch.Generator) -> Tensor:
    x = 2 * rng.uniform((points, 3), like, source) - 1
    face = (6 * rng.uniform((points,), like, source)).long()
    x[torch.arange(points), face % 3] = torch.where(face < 3, 1.0, -1.0).to(like.dtype)
    return x


def _cylinder(points: int, like: Tensor, source: torch.Generator) -> Tensor:
    """Radius 1 and height 2: two thirds of the area are the side, one sixth each lid."""
    part, angle, along = rng.uniform((3, points), like, source)
    theta = 2 * math.pi * angle
    side = part < 2 / 3
    radius = torch.where(side, torch.ones_like(along), along.sqrt())
    lid = torch.where(part < 5 / 6, 1.0, -1.0).to(like.dtype)
    height = torch.where(side, 2 * along - 1, lid)
    return torch.stack([radius * torch.cos(theta), radius * torch.sin(theta), height], 1)


SURFACES: dict[str, Surface] = {
    "sphere": _sphere,
    "torus": _torus,
    "cube": _cube,
    "cylinder": _cylinder,
}
