"""Bond lengths, angles, torsions and pair distances of molecules, each with the molecule it is of.

Bonds are those of `bonds`. Molecules that are not judged there have none of these; where an atom
has more neighbours than any chemistry, angles and torsions are left out too, whose number grows
with the second and third power.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from eqflow.chem.elements import symbol
from eqflow.evaluate.bonds import Bonds
from eqflow.evaluate.distances import pairs
from eqflow.geometry import Clouds

MOST_NEIGHBOURS = 8
# A torsion about an axis this near to a neighbour's direction is an angle of nothing.
SMALLEST_SINE = 0.1
SIGNS = {1: "–", 2: "=", 3: "≡"}


class Spread(NamedTuple):
    """Numbers of which each molecule has any number.

    Attributes:
        values: The numbers, shape (V,).
        owner: Molecule of each, shape (V,).
        count: How many molecules there are, with and without numbers.
        not_computable: How many of them could not be measured.
    """

    values: Tensor
    owner: Tensor
    count: int
    not_computable: int = 0


def bond_lengths(bonds: Bonds) -> dict[str, Spread]:
    """Lengths in Å by elements and order, such as `C–H`, `C=O`, the most frequent kind first."""
    judged = bonds.judged[bonds.owner]
    names = kinds_of_bonds(bonds)
    found = {}
    for place, name in enumerate(names.texts):
        own = judged & (names.kind == place)
        found[name] = _spread(bonds, bonds.lengths[own], bonds.owner[own], bonds.judged)
    return dict(sorted(found.items(), key=lambda item: -item[1].values.numel()))


class Kinds(NamedTuple):
    """Categories, and the one of each thing.

    Attributes:
        texts: Name of each category.
        kind: Category of each thing, shape (V,).
    """

    texts: list[str]
    kind: Tensor


def kinds_of_bonds(bonds: Bonds) -> Kinds:
    """Elements and order of each bond."""
    if not len(bonds.orders):
        return Kinds([], bonds.orders)
    elements = bonds.numbers[bonds.between].sort(1).values
    rows = torch.cat([elements, bonds.orders.unsqueeze(1)], 1)
    kinds, kind = rows.unique(dim=0, return_inverse=True)
    return Kinds([_name(*row) for row in kinds.tolist()], kind)


def angles(bonds: Bonds) -> Spread:
    """Angle in degrees between any two bonds of an atom."""
    measured = _measured(bonds)
    around, other = bonds.edges.incoming, bonds.edges.sender
    arms = bonds.clouds.x[other] - around.expand(bonds.clouds.x)
    # The ends of an atom's bonds, seen from it, are a cloud of their own.
    kept = measured[bonds.clouds.segments.ids]
    stars = Clouds(arms, around.ptr)[kept.nonzero().flatten()]
    one, another = pairs(stars).unbind(1)
    centre = kept.nonzero().flatten()[stars.segments.ids[one]]
    found = _angle(stars.x[one], stars.x[another])
    return _spread(bonds, found, bonds.clouds.segments.ids[centre], measured)


def torsions(bonds: Bonds) -> Spread:
    """Torsion in degrees, 0 to 180, of any chain of four atoms: a mirror image has the same."""
    measured = _measured(bonds)
    around, other = bonds.edges.incoming, bonds.edges.sender
    axis = bonds.between[measured[bonds.owner]]
    b, c = axis.unbind(1)
    # Every neighbour of b with every neighbour of c.
    wide = around.lengths[c]
    count = around.lengths[b] * wide
    place = torch.arange(int(count.sum())) - (count.cumsum(0) - count).repeat_interleave(count)
    b, c, wide = (each.repeat_interleave(count) for each in (b, c, wide))
    a = other[around.ptr[b] + place.div(wide, rounding_mode="floor")]
    d = other[around.ptr[c] + place % wide]
    chain = (a != c) & (d != b) & (a != d)
    a, b, c, d = (each[chain] for each in (a, b, c, d))
    x = bonds.clouds.x
    first, middle, last = x[b] - x[a], x[c] - x[b], x[d] - x[c]
    one, another = torch.linalg.cross(first, middle), torch.linalg.cross(middle, last)
    length = middle.norm(dim=1)
    bent = (one.norm(dim=1) > SMALLEST_SINE * first.norm(dim=1) * length) & (
        another.norm(dim=1) > SMALLEST_SINE * last.norm(dim=1) * length
    )
    owner = bonds.clouds.segments.ids[b[bent]]
    return _spread(bonds, _angle(one[bent], another[bent]), owner, measured)


def pair_distances(bonds: Bonds) -> Spread:
    """Distance in Å of every pair of atoms of a molecule."""
    every = pairs(bonds.clouds)
    owner = bonds.clouds.segments.ids[every[:, 0]]
    kept = bonds.judged[owner]
    one, other = every[kept].unbind(1)
    found = (bonds.clouds.x[one] - bonds.clouds.x[other]).norm(dim=1)
    return _spread(bonds, found, owner[kept], bonds.judged)


def _measured(bonds: Bonds) -> Tensor:
    """Whether a molecule's angles are measured, shape (B,)."""
    degree = bonds.edges.incoming.lengths
    crowded = bonds.clouds.segments.sum((degree > MOST_NEIGHBOURS).long())
    return bonds.judged & (crowded == 0)


def _spread(bonds: Bonds, values: Tensor, owner: Tensor, measured: Tensor) -> Spread:
    return Spread(values, owner, len(bonds.clouds), int((~measured).sum()))


def _angle(one: Tensor, another: Tensor) -> Tensor:
    """Angle between vectors, (V, 3) and (V, 3) to (V,), exact near 0 and 180 degrees too."""
    sine = torch.linalg.cross(one, another).norm(dim=1)
    return torch.atan2(sine, (one * another).sum(1)).rad2deg()


def _name(first: int, second: int, order: int) -> str:
    names = sorted((symbol(first), symbol(second)), key=lambda name: (name == "H", name))
    return SIGNS[order].join(names)
