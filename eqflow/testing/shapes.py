"""The clouds every symmetry is tried on: nine shapes, the degenerate ones and two large groups.

A frame, a sign rule or an eigendecomposition that works for a generic cloud may fail for one that
is its own mirror image, planar, collinear or of high symmetry, and a distance has no gradient where
points coincide. Coordinates are in Å, and symmetric to the last digit of the dtype or the one
before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from eqflow import rng
from eqflow.geometry import Clouds, Segments
from eqflow.testing.tolerances import tolerance_of

Points = list[tuple[float, ...]]

GOLDEN = (1 + math.sqrt(5)) / 2


def _ring(count: int, radius: float, *height: float) -> Points:
    angles = [2 * math.pi * k / count for k in range(count)]
    return [(radius * math.cos(a), radius * math.sin(a), *height) for a in angles]


def _scaled(points: Points, radius: float) -> Points:
    return [tuple(radius * c / math.hypot(*point) for c in point) for point in points]


# The corners of an icosahedron whose edges are 2 long.
ICOSAHEDRON: Points = [
    p
    for a in (1.0, -1.0)
    for b in (GOLDEN, -GOLDEN)
    for p in ((0.0, a, b), (a, b, 0.0), (b, 0.0, a))
]


def _truncated(corners: Points, edge: float, within: float, between: float) -> Points:
    """A corner becomes a pentagon with sides `within`; what is left of an edge is `between` long.

    Each edge from a to b gives the point `a + (b − a) within / (2 within + between)`.
    """
    share = within / (2 * within + between)
    size = (2 * within + between) / edge
    return [
        tuple(size * (c + share * (e - c)) for c, e in zip(a, b, strict=True))
        for a in corners
        for b in corners
        if 0 < math.dist(a, b) < 1.2 * edge
    ]


# Atomic numbers and positions. A shape is given in as few coordinates as it spans.
SHAPES: dict[str, tuple[list[int], Points]] = {
    # The published geometry with its misprinted N coordinate, 1.2901835, corrected.
    "pyridine": (
        [6, 6, 6, 7, 6, 6, 1, 1, 1, 1, 1],
        [
            (0.0, -1.12030497),
            (1.198347, -0.40786097),
            (1.142246, 0.98693503),
            (0.0, 1.6901835),
            (-1.142246, 0.98693503),
            (-1.198347, -0.40786097),
            (0.0, -2.20654697),
            (2.157005, -0.91707797),
            (2.060344, 1.57209903),
            (-2.060344, 1.57209903),
            (-2.157005, -0.91707797),
        ],
    ),
    "water": ([8, 1, 1], [(0.0, 0.0), (0.7572, 0.5865), (-0.7572, 0.5865)]),
    "ammonia": ([7, 1, 1, 1], [(0.0, 0.0, 0.0), *_ring(3, 0.9375, -0.3811)]),
    "benzene": ([6] * 6 + [1] * 6, [*_ring(6, 1.397), *_ring(6, 2.481)]),
    "square": ([6] * 4, [(0.72, 0.72), (-0.72, 0.72), (-0.72, -0.72), (0.72, -0.72)]),
    "methane": (
        [6, 1, 1, 1, 1],
        [(0.0, 0.0, 0.0), *_scaled([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)], 1.087)],
    ),
    "sf6": (
        [16] + [9] * 6,
        [
            (0.0, 0.0, 0.0),
            *[tuple(s * 1.561 * (a == b) for b in range(3)) for a in range(3) for s in (1, -1)],
        ],
    ),
    "co2": ([6, 8, 8], [(0.0,), (1.16,), (-1.16,)]),
    "icosahedron": (
        [18] * 13,
        [
            (0.0, 0.0, 0.0),
            *_scaled(ICOSAHEDRON, 3.68),
        ],
    ),
    # Buckminsterfullerene: 1.45 Å around the pentagons, 1.40 Å between two hexagons.
    "c60": ([6] * 60, _truncated(ICOSAHEDRON, edge=2.0, within=1.45, between=1.40)),
    "one_point": ([2], [(0.3,)]),
    "two_points": ([1, 9], [(-0.1,), (0.82,)]),
}

ELEMENTS = (1, 6, 7, 8)


def clouds(dimension: int = 3, dtype: torch.dtype = torch.float64) -> Iterator[tuple[str, Clouds]]:
    """The shapes that exist in `dimension`, each by name as a batch of its own, with elements.

    Generic (two clouds of different sizes), pyridine and benzene (planar), water, ammonia, square,
    methane, SF6 and CO2 (collinear); then the degenerate ones: one point, two points, coincident
    points, the centred icosahedron of LJ13, C60, a generic cloud far from the origin, a large one.

    Args:
        dimension: Number of coordinates; below 3 the shapes that need more are left out.
        dtype: Type of the positions. "far" is as far as it can be while differences of positions
            keep the digits that `TOLERANCE` counts; squares of positions lose them.

    >>> [name for name, batch in clouds(dimension=2)][:4]
    ['generic', 'pyridine', 'water', 'benzene']
    """
    yield "generic", _generic(dimension, dtype)
    for name, (numbers, points) in SHAPES.items():
        spanned = len(points[0])
        if spanned <= dimension:
            x = torch.zeros(1, len(points), dimension, dtype=torch.float64)
            x[0, :, :spanned] = torch.tensor(points, dtype=torch.float64)
            yield name, Clouds.from_dense(x.to(dtype), torch.tensor(numbers))
    yield "coincident", _coincident(dimension, dtype)
    yield "far", _far(dimension, dtype)
    yield "large", _drawn("large", [200], dimension, dtype)


def _drawn(name: str, sizes: list[int], dimension: int, dtype: torch.dtype) -> Clouds:
    """Normal positions, at about the density of a molecule, with elements at random."""
    source = rng.generator(0, "testing", name, dimension)
    like = torch.zeros((), dtype=torch.float64)
    segments = Segments.of_lengths(torch.tensor(sizes))
    width = segments.expand(segments.lengths.double() ** (1 / dimension)).unsqueeze(-1)
    x = 0.8 * width * rng.normal((segments.rows, dimension), like, source)
    which = rng.uniform((segments.rows,), like, source).mul(len(ELEMENTS)).long()
    return Clouds(x.to(dtype), segments.ptr, torch.tensor(ELEMENTS)[which])


def _generic(dimension: int, dtype: torch.dtype) -> Clouds:
    return _drawn("generic", [7, 5], dimension, dtype)


def _coincident(dimension: int, dtype: torch.dtype) -> Clouds:
    """Six points in four places: two alike in everything, two that differ in their element."""
    x = _drawn("coincident", [6], dimension, dtype).x
    x = x[torch.tensor([0, 0, 1, 1, 2, 3])]
    return Clouds.from_dense(x.unsqueeze(0), torch.tensor([6, 6, 1, 8, 7, 1]))


def _far(dimension: int, dtype: torch.dtype) -> Clouds:
    near = _generic(dimension, dtype)
    offset = 0.02 * tolerance_of(dtype) / torch.finfo(dtype).eps
    return near.with_positions(near.x + _along_diagonal(dimension, offset).to(dtype))


def _along_diagonal(dimension: int, length: float) -> Tensor:
    return torch.full((dimension,), length / math.sqrt(dimension), dtype=torch.float64)
