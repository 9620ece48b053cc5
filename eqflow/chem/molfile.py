"""Molfiles, the records of an SDF, by RDKit: versions V2000 and V3000 read, V3000 written.

V3000 because it holds any number of atoms and of digits; V2000 has room for 999 and for four.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from eqflow.chem.convert import to_rdkit
from eqflow.geometry.clouds import Clouds

# Decimals that bring back each number above a few thousandths of an Ångström bit by bit.
DECIMALS = {torch.float64: 18, torch.float32: 14}


def read_molfile(block: str) -> tuple[list[int], np.ndarray] | None:
    """Atomic numbers (n,) and positions (n, 3) in Å of one molfile; None where it is malformed."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        try:
            molecule = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
        except RuntimeError:
            return None
    if molecule is None or (molecule.GetNumAtoms() and not molecule.GetNumConformers()):
        return None
    if not molecule.GetNumAtoms():
        return [], np.zeros((0, 3))
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    return numbers, molecule.GetConformer().GetPositions()


def molfiles(clouds: Clouds) -> Iterator[str]:
    """One V3000 molfile a cloud, without bonds; points without elements are `R`.

    Raises:
        UsageError: If the clouds have more than three dimensions.
    """
    from rdkit import Chem

    options = Chem.MolWriterParams()
    options.includeStereo = False
    options.kekulize = False
    options.forceV3000 = True
    options.precision = DECIMALS.get(clouds.x.dtype, 14)
    for molecule in to_rdkit(clouds):
        yield Chem.MolToMolBlock(molecule, options)
