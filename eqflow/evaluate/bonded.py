"""Molecules with bonds: those RDKit perceives, or else those of the distance tables.

A perceived molecule is a whole: its bonds have a meaning only with the formal charges that RDKit
gave its atoms, so that a nitro group has one of each sign where no charges were known. Where they
are known and RDKit gives others, what it perceived is another molecule, and not taken; only among
atoms of one element, as in a carboxylate, may they change places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eqflow.chem.convert import to_rdkit
from eqflow.chem.workers import Worker
from eqflow.evaluate.bonds import atoms_of, bonds_of
from eqflow.evaluate.perception import SECONDS, Perceived, perceive_each
from eqflow.geometry import Clouds

if TYPE_CHECKING:
    import rdkit.Chem

# The property of a molecule, and data field of its SDF record, that says where its bonds are from.
ORIGIN = "bonds"
PERCEIVED = "perceived"
TABLE = "distance table"


def with_bonds(
    clouds: Clouds,
    charge: int | Sequence[int] | None = None,
    seconds: float = SECONDS,
    worker: Worker | None = None,
    *,
    charges_are_known: bool = False,
) -> Iterator[rdkit.Chem.Mol]:
    """RDKit molecules with bonds, atoms in their order and at their positions.

    Where RDKit finds no bonds that fit, as for a radical or a broken molecule, or only with other
    charges than those of the atoms, the bonds are those of the published distance tables, with the
    charges of the clouds. The property `bonds` of a molecule says which: `perceived` or `distance
    table`. Perceived molecules have Kekulé bonds; none is sanitized.

    Args:
        clouds: Molecules, positions in Å.
        charge: Total charge of each molecule, in units of the elementary charge; where None, the
            sum of the formal charges of its atoms, 0 where these are not known.
        seconds: How long the perception of one molecule may take.
        worker: Of `read_bonds`, with a deadline of its own, where it serves several calls; else one
            is started for this call.
        charges_are_known: Whether molecules without charges are neutral atom by atom. Else atoms
            may get those that their bonds imply, as in a nitro group.

    Returns:
        One molecule a cloud, each made when it is asked for.

    Raises:
        UnknownElement: If the clouds have no elements at all.
        ShapeError: If there are not as many charges as molecules.
        EqflowError: If the worker that perceives cannot be started.
    """
    bonded = partial(_bonded, charges_are_known=charges_are_known)
    return map(bonded, clouds, perceive_each(clouds, charge, seconds, worker))


def _bonded(cloud: Clouds, read: Perceived, *, charges_are_known: bool) -> rdkit.Chem.Mol:
    molecule = _as_read(cloud, read.molfile, charges_are_known) if read.molfile else None
    origin = TABLE if molecule is None else PERCEIVED
    if molecule is None:
        (molecule,) = bonds_of(cloud).to_rdkit()
    molecule.SetProp(ORIGIN, origin)
    return molecule


def _as_read(cloud: Clouds, molfile: str, charges_are_known: bool) -> rdkit.Chem.Mol | None:
    """The atoms of a cloud with the bonds and charges of a molfile, whose positions are rounded.

    None where the cloud has other charges.
    """
    from rdkit import Chem

    read = Chem.MolFromMolBlock(molfile, sanitize=False, removeHs=False)
    charges = torch.tensor([atom.GetFormalCharge() for atom in read.GetAtoms()])
    stated = cloud.charges
    if charges_are_known:
        stated = torch.zeros_like(charges) if stated is None else stated
        if _types(cloud, charges) != _types(cloud, stated):
            return None
    elif stated is not None and not _agree(cloud, stated, charges):
        return None
    molecule = Chem.RWMol(to_rdkit(replace(cloud, charges=charges))[0])
    for bond in read.GetBonds():
        molecule.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType())
    return molecule.GetMol()


def _agree(cloud: Clouds, stated: Tensor, perceived: Tensor) -> bool:
    """Whether perceived charges may stand for those that a molecule has.

    Charges that are all 0 may be unknown: then those of a nitro group, of 1 each, are taken.
    """
    if not stated.any():
        return int(perceived.abs().max()) <= 1
    return _types(cloud, perceived) == _types(cloud, stated)


def _types(cloud: Clouds, charges: Tensor) -> list[list[int]]:
    """Elements of a molecule with some charges, in an order of their own."""
    return sorted(torch.stack([atoms_of(cloud).cpu(), charges.cpu()], 1).tolist())
