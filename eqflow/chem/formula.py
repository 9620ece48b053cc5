"""Chemical formulas as atomic numbers."""

from __future__ import annotations

from eqflow.chem.elements import atomic_number
from eqflow.errors import UsageError

# Atoms and characters; no molecule has as many of the first whose pairs fit into memory.
MOST_ATOMS = 100_000
LONGEST = 1000


def numbers_of_formula(formula: str) -> list[int]:
    """Atomic numbers of a formula, rising.

    Raises:
        UsageError: If it is no formula, or of more than `MOST_ATOMS` atoms.
        UnknownElement: If a symbol is no element.

    >>> numbers_of_formula("C2H6O")
    [1, 1, 1, 1, 1, 1, 6, 6, 8]
    """
    from ase.formula import Formula

    shown = repr(formula if len(formula) <= 60 else formula[:59] + "…")
    try:
        if len(formula) > LONGEST or not formula.isascii():
            raise ValueError
        counts = Formula(formula).count()
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"formula: found {shown}, expected element symbols with counts, such as C2H6O."
        ) from error
    if not all(isinstance(count, int) for count in counts.values()):
        raise UsageError(f"formula: found {shown}, expected whole numbers of atoms.")
    if sum(counts.values()) > MOST_ATOMS:
        raise UsageError(
            f"formula: found {shown}, of {sum(counts.values()):,} atoms, expected at most "
            f"{MOST_ATOMS:,}."
        )
    numbers = [
        number for symbol, count in counts.items() for number in [atomic_number(symbol)] * count
    ]
    if not numbers:
        raise UsageError(f"formula: found {shown} without a single atom.")
    return sorted(numbers)
