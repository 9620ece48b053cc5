"""Chemical formulas as atomic numbers."""

from __future__ import annotations

from eqflow.chem.elements import atomic_number
from eqflow.errors import UsageError


def numbers_of_formula(formula: str) -> list[int]:
    """Atomic numbers of a formula, rising.

    Raises:
        UsageError: If it is no formula.
        UnknownElement: If a symbol is no element.

    >>> numbers_of_formula("C2H6O")
    [1, 1, 1, 1, 1, 1, 6, 6, 8]
    """
    from ase.formula import Formula

    try:
        counts = Formula(formula).count()
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"formula: found {formula!r}, expected element symbols with counts, such as C2H6O."
        ) from error
    numbers = [
        number for symbol, count in counts.items() for number in [atomic_number(symbol)] * count
    ]
    if not numbers:
        raise UsageError(f"formula: found {formula!r} without a single atom.")
    return sorted(numbers)
