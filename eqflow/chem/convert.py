"""Clouds to and from ASE `Atoms` and RDKit molecules, one structure each.

Both libraries know three dimensions only: clouds in fewer get zeros for the missing coordinates.
Going to either and back keeps positions bit by bit in float64, atomic numbers and the order of the
atoms; whatever else those objects hold (boxes, bonds, charges) has no place in `Clouds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from eqflow.errors import DataError, EmptyData, UsageError
from eqflow.geometry.clouds import Clouds

if TYPE_CHECKING:
    import ase
    import rdkit.Chem


def to_ase(clouds: Clouds) -> list[ase.Atoms]:
    """One `ase.Atoms` a cloud, with element X where the clouds have none.

    Raises:
        UsageError: If the clouds have more than three dimensions.
    """
    from ase import Atoms

    return [Atoms(numbers=numbers, positions=x) for x, numbers in spatial(clouds)]


def from_ase(atoms: ase.Atoms | Sequence[ase.Atoms]) -> Clouds:
    """Clouds from one or several `ase.Atoms`, in float64; periodic boxes are left out.

    Raises:
        EmptyData: If the sequence is empty.
    """
    from ase import Atoms

    structures = [atoms] if isinstance(atoms, Atoms) else list(atoms)
    return _packed(
        [np.asarray(one.get_positions()) for one in structures],
        [np.asarray(one.get_atomic_numbers()) for one in structures],
    )


def to_rdkit(clouds: Clouds) -> list[rdkit.Chem.Mol]:
    """One RDKit molecule a cloud: its atoms and one conformer, without bonds.

    Distances alone do not say which atoms are bonded, so no bond is made up here, and RDKit adds no
    hydrogen to these atoms.

    Raises:
        UsageError: If the clouds have more than three dimensions.
    """
    from rdkit import Chem

    molecules = []
    for x, numbers in spatial(clouds):
        molecule = Chem.RWMol()
        for number in numbers.tolist():
            atom = Chem.Atom(number)
            atom.SetNoImplicit(True)
            molecule.AddAtom(atom)
        conformer = Chem.Conformer(len(numbers))
        conformer.SetPositions(x)
        conformer.Set3D(True)
        molecule.AddConformer(conformer)
        molecules.append(molecule.GetMol())
    return molecules


def from_rdkit(molecules: rdkit.Chem.Mol | Sequence[rdkit.Chem.Mol]) -> Clouds:
    """Clouds from the first conformer of each RDKit molecule, in float64.

    Only atoms that are in the molecule count: call `Chem.AddHs(…, addCoords=True)` first where
    hydrogens are implicit.

    Raises:
        DataError: If a molecule has no 3-D conformer.
        EmptyData: If the sequence is empty.
    """
    from rdkit import Chem

    structures = [molecules] if isinstance(molecules, Chem.Mol) else list(molecules)
    for index, molecule in enumerate(structures):
        if molecule is None or not molecule.GetNumConformers():
            raise DataError(
                f"molecule {index}: found no conformer, expected 3-D positions. "
                "Embed it first: AllChem.EmbedMolecule(Chem.AddHs(molecule))."
            )
        if not molecule.GetConformer().Is3D():
            raise DataError(
                f"molecule {index}: found a 2-D depiction, expected a 3-D conformer. "
                "Embed it first: AllChem.EmbedMolecule(Chem.AddHs(molecule))."
            )
    return _packed(
        [molecule.GetConformer().GetPositions() for molecule in structures],
        [np.array([a.GetAtomicNum() for a in one.GetAtoms()], np.int64) for one in structures],
    )


def spatial(clouds: Clouds) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (n, 3) in float64 and atomic numbers (n,) of each cloud, zeros where missing.

    Raises:
        UsageError: If the clouds have more than three dimensions.
    """
    if clouds.dimension > 3:
        raise UsageError(
            f"found clouds in {clouds.dimension} dimensions, expected at most 3: ASE, RDKit and "
            "their formats know no more. Write them as .npz or .npy."
        )
    x = clouds.x.detach().cpu().double().numpy()
    x = np.pad(x, ((0, 0), (0, 3 - clouds.dimension)))
    numbers = np.zeros(len(x), np.int64) if clouds.numbers is None else clouds.numbers.cpu().numpy()
    ptr = clouds.ptr.tolist()
    return ((x[a:b], numbers[a:b]) for a, b in pairwise(ptr))


def _packed(positions: list[np.ndarray], numbers: list[np.ndarray]) -> Clouds:
    if not positions:
        raise EmptyData("found 0 structures to convert, expected at least 1.")
    ptr = np.cumsum([0, *map(len, positions)])
    packed = torch.from_numpy(np.concatenate(numbers).astype(np.int64))
    return Clouds(
        torch.from_numpy(np.concatenate(positions).astype(np.float64)),
        torch.from_numpy(ptr.astype(np.int64)),
        packed if packed.any() else None,
    )
