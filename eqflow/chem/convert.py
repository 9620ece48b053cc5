"""Clouds to and from ASE `Atoms` and RDKit molecules, one structure each.

Both libraries know three dimensions only: clouds in fewer get zeros for the missing coordinates.
Going to either and back keeps positions bit by bit in float64, atomic numbers, formal charges and
the order of the atoms, and properties: what is a number in ASE's `info`, or a property of an RDKit
molecule. Whatever else those objects hold (boxes, bonds) has no place in `Clouds`.
ASE's place for formal charges is the initial charges. Partial charges are kept there too: those of
a structure are taken as formal where all are whole numbers, else left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from eqflow.chem.elements import LARGEST, impossible_charge, is_possible_charge
from eqflow.errors import DataError, EmptyData, UsageError
from eqflow.geometry.clouds import Clouds

if TYPE_CHECKING:
    import ase
    import rdkit.Chem


class Atoms(NamedTuple):
    """The atoms of one cloud.

    Attributes:
        x: Positions, shape (n, 3), float64.
        numbers: Atomic numbers, shape (n,); 0 where there is no element.
        charges: Formal charges, shape (n,); 0 where none is known.
    """

    x: np.ndarray
    numbers: np.ndarray
    charges: np.ndarray


def to_ase(clouds: Clouds) -> list[ase.Atoms]:
    """One `ase.Atoms` a cloud, with element X where the clouds have none.

    Raises:
        UsageError: If the clouds have more than three dimensions.
    """
    import ase

    known = clouds.charges is not None
    return [
        ase.Atoms(
            numbers=atoms.numbers,
            positions=atoms.x,
            charges=atoms.charges if known else None,
            info=dict(properties),
        )
        for atoms, properties in zip(spatial(clouds), known_properties(clouds), strict=True)
    ]


def from_ase(atoms: ase.Atoms | Sequence[ase.Atoms]) -> Clouds:
    """Clouds from one or several `ase.Atoms`, in float64; periodic boxes are left out.

    Raises:
        EmptyData: If the sequence is empty.
    """
    import ase

    structures = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms)
    return _packed(
        [
            Atoms(
                np.asarray(one.get_positions()),
                np.asarray(one.get_atomic_numbers()),
                whole_charges(np.asarray(one.get_initial_charges())),
            )
            for one in structures
        ],
        [one.info for one in structures],
    )


def to_rdkit(clouds: Clouds) -> list[rdkit.Chem.Mol]:
    """One RDKit molecule a cloud: its atoms with their charges and one conformer, without bonds.

    Distances alone do not say which atoms are bonded, so no bond is made up here, and RDKit adds no
    hydrogen to these atoms; `eqflow.evaluate.with_bonds` has the bonds RDKit perceives.

    Raises:
        UsageError: If the clouds have more than three dimensions.
        DataError: If a charge is none an atom can have.
    """
    from rdkit import Chem

    molecules, known = [], known_properties(clouds)
    for index, (x, numbers, charges) in enumerate(spatial(clouds)):
        for atom in np.flatnonzero(~is_possible_charge(numbers, charges)).tolist():
            found = impossible_charge(int(numbers[atom]), int(charges[atom]))
            raise DataError(f"structure {index}, atom {atom}: {found} Correct it.")
        molecule = Chem.RWMol()
        for number, charge in zip(numbers.tolist(), charges.tolist(), strict=True):
            atom = Chem.Atom(number)
            atom.SetFormalCharge(charge)
            atom.SetNoImplicit(True)
            molecule.AddAtom(atom)
        conformer = Chem.Conformer(len(numbers))
        conformer.SetPositions(x)
        conformer.Set3D(True)
        molecule.AddConformer(conformer)
        for name, value in known[index].items():
            molecule.SetDoubleProp(name, value)
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
        [atoms_of_molecule(molecule) for molecule in structures],
        [molecule.GetPropsAsDict() for molecule in structures],
    )


def atoms_of_molecule(molecule: rdkit.Chem.Mol) -> Atoms:
    """The atoms of an RDKit molecule at the positions of its first conformer."""
    labels = [(atom.GetAtomicNum(), atom.GetFormalCharge()) for atom in molecule.GetAtoms()]
    numbers, charges = np.array(labels, np.int64).reshape(-1, 2).T
    return Atoms(molecule.GetConformer().GetPositions(), numbers, charges)


def whole_charges(values: np.ndarray) -> np.ndarray:
    """Formal charges, shape (n,), int64: the values where all are whole, else zeros.

    >>> whole_charges(np.array([1.0, -1.0])).tolist(), whole_charges(np.array([1.0, 0.4])).tolist()
    ([1, -1], [0, 0])
    """
    whole = (np.abs(values) <= LARGEST) & (values == np.rint(values))
    return (values if whole.all() else np.zeros(values.shape)).astype(np.int64)


def spatial(clouds: Clouds) -> Iterator[Atoms]:
    """The atoms of each cloud in three dimensions, zeros where something is missing.

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
    numbers, charges = (
        np.zeros(len(x), np.int64) if labels is None else labels.cpu().numpy()
        for labels in (clouds.numbers, clouds.charges)
    )
    ptr = clouds.ptr.tolist()
    return (Atoms(x[a:b], numbers[a:b], charges[a:b]) for a, b in pairwise(ptr))


def known_properties(clouds: Clouds) -> list[dict[str, float]]:
    """The properties that are known of each cloud."""
    columns = {name: values.tolist() for name, values in clouds.properties.items()}
    return [
        {name: values[i] for name, values in columns.items() if math.isfinite(values[i])}
        for i in range(len(clouds))
    ]


def _packed(structures: list[Atoms], infos: Sequence[Mapping[str, Any]]) -> Clouds:
    if not structures:
        raise EmptyData("found 0 structures to convert, expected at least 1.")
    x = np.concatenate([one.x for one in structures])
    ptr = np.cumsum([0, *(len(one.x) for one in structures)])
    numbers = torch.from_numpy(np.concatenate([one.numbers for one in structures]).astype(np.int64))
    charges = torch.from_numpy(np.concatenate([one.charges for one in structures]).astype(np.int64))
    return Clouds(
        torch.from_numpy(x.astype(np.float64)),
        torch.from_numpy(ptr.astype(np.int64)),
        numbers if numbers.any() else None,
        charges=charges if charges.any() else None,
        properties=_properties(infos),
    )


def _properties(infos: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Whatever is a single number in any of them, NaN where it is not."""
    numbers = [
        {
            name: float(value)
            for name, value in info.items()
            if isinstance(value, Real) and not isinstance(value, bool)
        }
        for info in infos
    ]
    names = dict.fromkeys(name for each in numbers for name in each)
    return {
        name: torch.tensor([each.get(name, math.nan) for each in numbers], dtype=torch.float64)
        for name in names
    }
