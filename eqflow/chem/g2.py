"""The G2/97 molecules that ship inside ASE: real geometries on a machine without any download.

Reference: Assessment of Gaussian-2 and density functional theories for the computation of
enthalpies of formation (Curtiss, Raghavachari, Redfern, Pople, 1997), doi:10.1063/1.473182.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from eqflow.chem.convert import from_ase
from eqflow.chem.elements import atomic_number
from eqflow.errors import EmptyData
from eqflow.geometry.clouds import Clouds


def load_g2(
    elements: Iterable[str] | None = None, min_atoms: int = 1, max_atoms: int | None = None
) -> Clouds:
    """The G2 molecules, radicals and atoms, positions in Å, ordered by name.

    Args:
        elements: Symbols a molecule may consist of; all where None.
        min_atoms: Fewest atoms of a molecule.
        max_atoms: Most atoms of a molecule; no limit where None.

    Raises:
        EmptyData: If no molecule is left.
        UnknownElement: If `elements` has a symbol that is none.

    >>> molecules = load_g2(elements=["H", "O"], min_atoms=3)
    >>> molecules.source
    ('g2#H2O', 'g2#H2O2', 'g2#O3')
    """
    from ase.collections import g2

    allowed = None if elements is None else {atomic_number(name) for name in elements}
    chosen = {}
    for name in sorted(g2.names):
        atoms = g2[name]
        fits = min_atoms <= len(atoms) and (max_atoms is None or len(atoms) <= max_atoms)
        if fits and (allowed is None or allowed.issuperset(atoms.get_atomic_numbers().tolist())):
            chosen[name] = atoms
    if not chosen:
        raise EmptyData(
            f"g2: found 0 of {len(g2.names)} molecules with the elements and sizes asked for. "
            "Allow more elements or other sizes."
        )
    return replace(from_ase(list(chosen.values())), source=tuple(f"g2#{name}" for name in chosen))
