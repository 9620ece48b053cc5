"""How far the geometry and the make-up of molecules are from those of others, quantity by quantity.

Bond lengths by kind, angles, torsions and distances of all pairs by Wasserstein-1; kinds of bonds,
elements and sizes by Jensen–Shannon.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from eqflow.chem.elements import LARGEST
from eqflow.evaluate.bonds import Bonds
from eqflow.evaluate.discrepancies import jensen_shannon, wasserstein
from eqflow.evaluate.estimates import Estimate, nothing
from eqflow.evaluate.internal_coordinates import (
    angles,
    bond_lengths,
    kinds_of_bonds,
    pair_distances,
    torsions,
)

KINDS_OF_BONDS = 6
# By the first word of a name.
UNITS = {
    "length": "Å",
    "angles": "°",
    "torsions": "°",
    "pairs": "Å",
    "bonds": "bits",
    "elements": "bits",
    "sizes": "bits",
}


def distribution_distances(
    drawn: Bonds, reference: Bonds, kinds: list[str] | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """How far the geometry and the make-up of molecules are from those of others.

    Args:
        drawn, reference: Molecules and their bonds.
        kinds: Kinds of bonds whose lengths are compared; the most frequent of the reference where
            None.
        seed: Resamples are a function of it.

    Returns:
        Under `length C–H` and so on, `angles`, `torsions`, `pairs`, `bonds`, `elements`, `sizes`;
        `UNITS` has their units.
    """
    mine, theirs = bond_lengths(drawn), bond_lengths(reference)
    kinds = list(theirs)[:KINDS_OF_BONDS] if kinds is None else kinds
    missing = int((~drawn.judged).sum())
    found = {
        f"length {kind}": wasserstein(mine[kind], theirs[kind], seed)
        if kind in mine and kind in theirs
        else nothing(missing)
        for kind in kinds
    }
    for name, measure in (
        ("angles", angles),
        ("torsions", torsions),
        ("pairs", pair_distances),
    ):
        found[name] = wasserstein(measure(drawn), measure(reference), seed)
    for name, counts in (
        ("bonds", _bond_counts(drawn, reference)),
        ("elements", (_element_counts(drawn), _element_counts(reference))),
        ("sizes", _size_counts(drawn, reference)),
    ):
        found[name] = jensen_shannon(counts[0], counts[1], seed, missing)
    return found


def _element_counts(bonds: Bonds) -> Tensor:
    clouds = bonds.clouds
    place = clouds.segments.ids * (LARGEST + 1) + bonds.numbers
    return torch.bincount(place, minlength=len(clouds) * (LARGEST + 1)).reshape(-1, LARGEST + 1)


def _size_counts(drawn: Bonds, reference: Bonds) -> tuple[Tensor, ...]:
    highest = max(drawn.clouds.segments.longest, reference.clouds.segments.longest)
    return tuple(one_hot(bonds.clouds.sizes, highest + 1) for bonds in (drawn, reference))


def _bond_counts(drawn: Bonds, reference: Bonds) -> tuple[Tensor, ...]:
    kinds = [kinds_of_bonds(bonds) for bonds in (drawn, reference)]
    texts = sorted({text for kind in kinds for text in kind.texts})
    return tuple(
        _counts(bonds, torch.tensor([texts.index(text) for text in own.texts])[own.kind], texts)
        if own.texts
        else torch.zeros(len(bonds.clouds), len(texts))
        for bonds, own in zip((drawn, reference), kinds, strict=True)
    )


def _counts(bonds: Bonds, kind: Tensor, texts: list[str]) -> Tensor:
    place = bonds.owner * len(texts) + kind
    flat = torch.bincount(place, minlength=len(bonds.clouds) * len(texts))
    return flat.reshape(-1, len(texts))
