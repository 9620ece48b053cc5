"""Strain: the energy that relaxation in the MMFF94 force field sets free.

Reference: Merck molecular force field (Halgren, 1996), doi:10.1002/(SICI)1096-987X(199604)17:5/6;
RDKit's implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eqflow.chem.workers import Worker
from eqflow.evaluate.perception import SECONDS, Perceived

STEPS = 2000


def strain_energies(perceived: Sequence[Perceived], seconds: float = SECONDS) -> Tensor:
    """Energy before minus after relaxation in kcal/mol, shape (B,).

    NaN where there are no bonds, no parameters for the atoms, no end of the relaxation, or no end
    of it in time.

    Args:
        perceived: Molecules with bonds, from `perceive`.
        seconds: How long one molecule may take.

    Raises:
        EqflowError: If the worker cannot be started.
    """
    found = torch.full((len(perceived),), math.nan, dtype=torch.float64)
    with Worker(relaxation, seconds) as worker:
        for index, molecule in enumerate(perceived):
            energy = worker(molecule.molfile).value if molecule.molfile else None
            if energy is not None:
                found[index] = energy
    return found


def relaxation(molfile: str) -> float:
    """Energy in kcal/mol that relaxing one molecule sets free: what a worker runs.

    Raises:
        ValueError: If MMFF94 has no parameters for it, or the relaxation does not end.
    """
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers

    molecule = Chem.MolFromMolBlock(molfile, removeHs=False)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule)
    if properties is None:
        raise ValueError("MMFF94 has no parameters for the molecule")
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(molecule, properties)
    before = field.CalcEnergy()
    if field.Minimize(maxIts=STEPS):
        raise ValueError(f"the relaxation did not end within {STEPS} steps")
    return float(before - field.CalcEnergy())
