"""Molfiles, the records of an SDF, by RDKit: versions V2000 and V3000 read, V3000 written.

V3000 because it holds any number of atoms and of digits; V2000 has room for 999 and for four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from eqflow.chem.bare_molfile import bare_molfile
from eqflow.chem.convert import Atoms, atoms_of_molecule

if TYPE_CHECKING:
    import rdkit.Chem

# Decimals that bring back each number above a few thousandths of an Ångström bit by bit.
DECIMALS = {torch.float64: 18, torch.float32: 14}

# What RDKit makes of the errors of its C++.
UNREADABLE = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError)


def read_molfile(block: str) -> Atoms | None:
    """The atoms of one molfile, positions in Å; None where it is malformed.

    RDKit is handed the lines about atoms alone, see `eqflow.chem.bare_molfile`.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        try:
            bare = "\n".join(bare_molfile(block.split("\n"))) + "\n"
            molecule = Chem.MolFromMolBlock(bare, sanitize=False, removeHs=False)
        except UNREADABLE:
            return None
    if molecule is None or (molecule.GetNumAtoms() and not molecule.GetNumConformers()):
        return None
    if not molecule.GetNumAtoms():
        nothing = np.zeros(0, np.int64)
        return Atoms(np.zeros((0, 3)), nothing, nothing)
    return atoms_of_molecule(molecule)


def molfile(molecule: rdkit.Chem.Mol, dtype: torch.dtype = torch.float64) -> str:
    """The V3000 molfile of a molecule; atoms without elements are `R`.

    Args:
        molecule: One with a conformer.
        dtype: Float type of the positions, which decides how many decimals bring them back.
    """
    from rdkit import Chem

    options = Chem.MolWriterParams()
    options.includeStereo = False
    options.kekulize = False
    options.forceV3000 = True
    options.precision = DECIMALS.get(dtype, 14)
    return str(Chem.MolToMolBlock(molecule, options))


def data_fields(molecule: rdkit.Chem.Mol) -> str:
    """The properties of a molecule as the data fields of an SDF record."""
    values = molecule.GetPropsAsDict(includePrivate=False, includeComputed=False)
    return "".join(f"> <{name}>\n{value}\n\n" for name, value in values.items())
