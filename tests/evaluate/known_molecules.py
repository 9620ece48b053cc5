"""Molecules whose bonds anyone can name: from ASE's G2 set, or embedded and relaxed by RDKit."""

from __future__ import annotations

from functools import cache

import torch
from ase.build import molecule as g2_molecule
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from eqflow.chem import from_ase, from_rdkit
from eqflow.geometry import Clouds


def g2(*names: str) -> Clouds:
    """Molecules of the G2 set by ASE's names."""
    return from_ase([g2_molecule(name) for name in names])


@cache
def embedded(smiles: str) -> Clouds:
    """A molecule of a SMILES, embedded and relaxed with MMFF94."""
    found = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(found, randomSeed=7)
    rdForceFieldHelpers.MMFFOptimizeMolecule(found, maxIters=2000)
    return from_rdkit(found)


def apart(*molecules: Clouds) -> Clouds:
    """All molecules as one structure, 10 Å from each other."""
    return Clouds(
        torch.cat([one.x + 10 * place for place, one in enumerate(molecules)]),
        torch.tensor([0, sum(len(one.x) for one in molecules)]),
        torch.cat([one.numbers for one in molecules if one.numbers is not None]),
    )


def nowhere(numbers: list[int], position: float = float("nan")) -> Clouds:
    """Atoms that are all at one position."""
    x = torch.full((len(numbers), 3), position, dtype=torch.float64)
    return Clouds(x, torch.tensor([0, len(numbers)]), torch.tensor(numbers, dtype=torch.int64))
