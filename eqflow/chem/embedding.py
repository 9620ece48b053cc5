"""Positions for molecules that are only drawn: RDKit's distance geometry, then MMFF94.

Reference: Better Informed Distance Geometry: Using What We Know To Improve Conformation Generation
(Riniker, Landrum, 2015), doi:10.1021/acs.jcim.5b00654; ETKDG version 3.
"""

from __future__ import annotations

from typing import Any

from eqflow import rng
from eqflow.chem.convert import atoms_of_molecule

ITERATIONS = 2000
# The bounds of all distances, of which RDKit keeps a matrix, are 200 MB of so many atoms.
MOST_ATOMS = 5000


def embedded(smiles: str) -> dict[str, Any]:
    """One 3-D structure of a SMILES with all its hydrogens: what a worker runs.

    It is a function of the text: the seed of the embedding is made of it. Atoms come in the order
    of the text, then the hydrogens. Elements MMFF94 has no parameters for leave it unrelaxed.

    Returns:
        `numbers` and `charges` (n,) and `positions` (3n,) in Å, as plain lists.

    Raises:
        ValueError: If RDKit cannot read or embed it; the message says found and expected.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    if not smiles.isascii():
        raise ValueError("expected a SMILES, which is ASCII")  # RDKit passes over all else
    drawn = Chem.MolFromSmiles(smiles)
    if drawn is None or not drawn.GetNumAtoms():
        raise ValueError("expected a SMILES that RDKit reads")
    if any(atom.GetAtomicNum() == 0 for atom in drawn.GetAtoms()):
        raise ValueError("expected an element for each atom, not *")
    fragments = len(Chem.GetMolFrags(drawn))
    if fragments > 1:
        raise ValueError(
            f"expected one molecule, not {fragments}: nothing says where they are to each other"
        )
    atoms = sum(1 + atom.GetTotalNumHs() for atom in drawn.GetAtoms())
    if atoms > MOST_ATOMS:
        raise ValueError(f"expected at most {MOST_ATOMS:,} atoms to embed, not {atoms:,}")
    molecule = Chem.AddHs(drawn)
    options = rdDistGeom.ETKDGv3()
    options.randomSeed = rng.derived_seed(0, "embedding", smiles) % 2**31
    if rdDistGeom.EmbedMolecule(molecule, options) < 0:
        options.useRandomCoords = True
        if rdDistGeom.EmbedMolecule(molecule, options) < 0:
            raise ValueError("expected a molecule that RDKit can embed in 3-D")
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        rdForceFieldHelpers.MMFFOptimizeMolecule(molecule, maxIters=ITERATIONS)
    found = atoms_of_molecule(molecule)
    return {
        "numbers": found.numbers.tolist(),
        "charges": found.charges.tolist(),
        "positions": found.x.ravel().tolist(),
    }
