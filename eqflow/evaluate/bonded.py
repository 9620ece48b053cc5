"""Molecules with bonds: those RDKit perceives, or else those of the distance tables.

A perceived molecule is a whole: its bonds have a meaning only with the formal charges that RDKit
gave its atoms, so that a nitro group has one of each sign even where no charges were known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from eqflow.chem.convert import to_rdkit
from eqflow.evaluate.bonds import bonds_of
from eqflow.evaluate.perception import SECONDS, Perceived, perceive_each
from eqflow.geometry import Clouds

if TYPE_CHECKING:
    import rdkit.Chem

# The property of a molecule, and data field of its SDF record, that says where its bonds are from.
ORIGIN = "bonds"
PERCEIVED = "perceived"
TABLE = "distance table"


def with_bonds(
    clouds: Clouds, charge: int | Sequence[int] | None = None, seconds: float = SECONDS
) -> Iterator[rdkit.Chem.Mol]:
    """RDKit molecules with bonds, atoms in their order and at their positions.

    Where RDKit finds no bonds that fit, as for a radical or a broken molecule, the bonds are those
    of the published distance tables, with the charges of the clouds. The property `bonds` of a
    molecule says which: `perceived` or `distance table`. Perceived molecules have Kekulé bonds;
    none is sanitized.

    Args:
        clouds: Molecules, positions in Å.
        charge: Total charge of each molecule, in units of the elementary charge; where None, the
            sum of the formal charges of its atoms, 0 where these are not known.
        seconds: How long the perception of one molecule may take.

    Returns:
        One molecule a cloud, each made when it is asked for.

    Raises:
        UnknownElement: If the clouds have no elements at all.
        ShapeError: If there are not as many charges as molecules.
        EqflowError: If the worker that perceives cannot be started.
    """
    return map(_bonded, clouds, perceive_each(clouds, charge, seconds))


def _bonded(cloud: Clouds, read: Perceived) -> rdkit.Chem.Mol:
    if read.molfile:
        molecule = _as_read(cloud, read.molfile)
    else:
        (molecule,) = bonds_of(cloud).to_rdkit()
    molecule.SetProp(ORIGIN, PERCEIVED if read.molfile else TABLE)
    return molecule


def _as_read(cloud: Clouds, molfile: str) -> rdkit.Chem.Mol:
    """The atoms of a cloud with the bonds and charges of a molfile, whose positions are rounded."""
    from rdkit import Chem

    read = Chem.MolFromMolBlock(molfile, sanitize=False, removeHs=False)
    charges = torch.tensor([atom.GetFormalCharge() for atom in read.GetAtoms()])
    molecule = Chem.RWMol(to_rdkit(replace(cloud, charges=charges))[0])
    for bond in read.GetBonds():
        molecule.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType())
    return molecule.GetMol()
