r"""Finite groups by their names: point groups in Schoenflies' notation, and permutations.

The main axis is `z`, the first mirror holds the `x` axis, and so does the first half-turn. Cubic
groups have their fourfold (twofold for T) axes along the coordinates, icosahedral ones three of
their twofold axes, as `eqflow.testing.clouds` has its icosahedron.

=====================  =========  =======  ====================================================
name                   dimension  order    elements
=====================  =========  =======  ====================================================
`C(n)`                 2, 3       n        rotations by parts of a turn, in 3-D about z
`D(n)`                 2          2 n      and reflections: the symmetries of a polygon
`D(n)`                 3          2 n      and half-turns about horizontal axes
`C(n)v`                3          2 n      C(n), mirrors that hold z: ammonia C(3)v, water C(2)v
`C(n)h`                3          2 n      C(n), the mirror z ↦ −z
`D(n)h`                3          4 n      D(n), the mirror z ↦ −z: benzene D(6)h
`D(n)d`                3          4 n      D(n), mirrors half-way between its half-turns
`Ci`                   any        2        x ↦ −x
`Cs`                   any        2        the last coordinate mirrored
`T`, `Td`, `Th`        3          12, 24   the tetrahedron: methane Td
`O`, `Oh`              3          24, 48   the octahedron and the cube: SF6 Oh
`I`, `Ih`              3          60, 120  the icosahedron: C60 Ih
`S(n)`, `A(n)`         any        n!, n!/2 all and even permutations of n points, n ≤ 6
`Z(n)`                 any        n        cyclic shifts of n points
=====================  =========  =======  ====================================================

Brackets may be left out of `C(3)v`, as in `C3v`, and not of `S(n)`, as `S4` is another group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from itertools import permutations

import torch
from torch import Tensor

from eqflow.errors import ShapeError, UsageError
from eqflow.nn.arguments import require_counts
from eqflow.nn.averaging.groups import FiniteGroup, generated

LARGEST_PERMUTED = 6
LARGEST_AXIS = 1000
EXAMPLES: tuple[str, ...] = (
    "C(4)",
    "D(4)",
    "C(3)v",
    "C(2)h",
    "D(6)h",
    "D(3)d",
    "Ci",
    "Cs",
    "T",
    "Td",
    "Th",
    "O",
)
EXAMPLES += ("Oh", "I", "Ih", "S(4)", "A(4)", "Z(4)")


def finite_group(name: str, dimension: int) -> FiniteGroup:
    """The group called `name` that acts on clouds of `dimension` d.

    Raises:
        UsageError: If there is none of that name; the message holds the nearest names.
        ShapeError: If it acts in another dimension.

    >>> [finite_group(name, 3).order for name in ("C(3)v", "D(6)h", "Td", "Ih", "S(4)")]
    [6, 24, 24, 120, 24]
    """
    require_counts("finite_group", dimension=dimension)
    match = re.fullmatch(r"([SAZ])\((\d+)\)", name) if isinstance(name, str) else None
    if match is not None:
        return FiniteGroup(name, None, _permutations(name, match[1], int(match[2])))
    if name in ("Ci", "Cs"):
        mirror = torch.ones(dimension, dtype=torch.float64)
        mirror[slice(None) if name == "Ci" else slice(-1, None)] = -1
        unit = torch.eye(dimension, dtype=torch.float64)
        return FiniteGroup(name, torch.stack([unit, torch.diag(mirror)]))
    if name in POLYHEDRAL:
        _require(name, dimension, (3,))
        return POLYHEDRAL[name](name)
    match = re.fullmatch(r"([CD])\(?([1-9]\d*)\)?([vhd]?)", name) if isinstance(name, str) else None
    if match is None or match[1] + match[3] == "Cd" or match[1] + match[3] == "Dv":
        raise UsageError(_unknown(name))
    _require(name, dimension, (3,) if match[3] else (2, 3))
    if int(match[2]) > LARGEST_AXIS:
        raise UsageError(
            f"group: found {name!r}, expected at most {LARGEST_AXIS} parts of a turn. HaarAverage "
            "samples all of them."
        )
    return FiniteGroup(name, _axial(match[1], int(match[2]), match[3], dimension))


def _require(name: str, dimension: int, possible: tuple[int, ...]) -> None:
    if dimension not in possible:
        raise ShapeError(
            f"group: {name} acts in {' or '.join(map(str, possible))} dimensions, but the clouds "
            f"have {dimension}. Pass dimension={possible[-1]} or another group."
        )


def _unknown(name: object) -> str:
    lower = {example.lower(): example for example in EXAMPLES}
    near = [lower[each] for each in get_close_matches(str(name).lower(), lower, n=2, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    if re.fullmatch(r"(E|SE|O|SO)\(.*\)", str(name)):
        hint = " Averages over all of it are those of FrameAverage, and HaarAverage samples it."
    return (
        f"group: found {name!r}, expected a finite group such as "
        f"{', '.join(EXAMPLES)}, or a FiniteGroup.{hint}"
    )


def _axial(family: str, n: int, plane: str, dimension: int) -> Tensor:
    """Elements of `C(n)` or `D(n)`, then their products with one more."""
    elements = torch.stack([turn(k, n, dimension) for k in range(n)])
    diagonal = {
        ("D", 2): (1.0, -1.0),
        ("D", 3): (1.0, -1.0, -1.0),
    }
    more = [torch.tensor(diagonal[family, dimension])] if family == "D" else []
    if plane == "h":
        more.append(torch.tensor((1.0, 1.0, -1.0)))
    if plane == "v":
        more.append(torch.tensor((1.0, -1.0, 1.0)))
    others = [torch.diag(entries).double() for entries in more]
    if plane == "d":
        # A turn by half a part, and a mirror: the improper rotation that D(n)d is known by.
        others.append(turn(1, 2 * n, 3) @ torch.diag(torch.tensor((1.0, 1.0, -1.0))).double())
    for other in others:
        elements = torch.cat([elements, elements @ other])
    return elements


def turn(k: int, n: int, dimension: int) -> Tensor:
    """The rotation of the first two axes by `k` n-th parts of a turn, float64.

    From an angle of less than a quarter of a turn, so that quarter turns are exact.
    """
    quarters, rest = divmod(4 * (k % n), n)
    angle = math.pi / 2 * rest / n
    c, s = math.cos(angle), math.sin(angle)
    for _ in range(quarters):
        c, s = -s, c
    matrix = torch.eye(dimension, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64) + 0.0
    return matrix


def _permutations(name: str, family: str, n: int) -> Tensor:
    largest = LARGEST_AXIS if family == "Z" else LARGEST_PERMUTED
    if not 1 <= n <= largest:
        raise UsageError(
            f"group: found {name!r}, expected from 1 to {largest} points. More "
            "permutations than that are for a backbone that is symmetric under them by itself."
        )
    if family == "Z":
        return (torch.arange(n).unsqueeze(0) + torch.arange(n).unsqueeze(1)) % n
    every = torch.tensor(list(permutations(range(n))))
    if family == "S":
        return every
    inversions = (every.unsqueeze(2) > every.unsqueeze(1)).triu(1).sum((1, 2))
    return every[inversions % 2 == 0]


CYCLE = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
HALF_TURN = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
QUARTER_TURN = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
QUARTER_TURN_INVERTED = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
INVERSION = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))


def _fifth_turn() -> tuple[tuple[float, ...], ...]:
    """A fifth of a turn about (0, 1, φ), an edge-sharing neighbour of twofold coordinate axes."""
    golden = (1 + math.sqrt(5)) / 2
    a, b = golden / 2, (golden - 1) / 2
    return ((b, -a, 0.5), (a, 0.5, b), (-0.5, b, a))


def _of(*generators: tuple[tuple[float, ...], ...]) -> Callable[[str], FiniteGroup]:
    def make(name: str) -> FiniteGroup:
        return generated(torch.tensor(generators, dtype=torch.float64), name)

    return make


POLYHEDRAL = {
    "T": _of(CYCLE, HALF_TURN),
    "Td": _of(CYCLE, QUARTER_TURN_INVERTED),
    "Th": _of(CYCLE, HALF_TURN, INVERSION),
    "O": _of(CYCLE, QUARTER_TURN),
    "Oh": _of(CYCLE, QUARTER_TURN, INVERSION),
    "I": _of(CYCLE, HALF_TURN, _fifth_turn()),
    "Ih": _of(CYCLE, HALF_TURN, _fifth_turn(), INVERSION),
}
