"""Chemistry: elements, conversions to ASE and RDKit, and molecules that ship with ASE."""

from eqflow.chem.convert import from_ase, from_rdkit, to_ase, to_rdkit
from eqflow.chem.elements import LARGEST, atomic_number, symbol
from eqflow.chem.g2 import load_g2

__all__ = [
    "LARGEST",
    "atomic_number",
    "from_ase",
    "from_rdkit",
    "load_g2",
    "symbol",
    "to_ase",
    "to_rdkit",
]
