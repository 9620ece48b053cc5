"""Element symbols and atomic numbers, from ASE's table; 0 stands for a point without an element."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache, lru_cache

import numpy as np

from eqflow.errors import UnknownElement

LARGEST = 118
ISOTOPES = {"D": "H", "T": "H"}
# What a molfile has room for.
LARGEST_CHARGE = 15


@cache
def _table() -> tuple[tuple[str, ...], dict[str, int]]:
    from ase.data import chemical_symbols

    symbols = tuple(chemical_symbols[: LARGEST + 1])
    numbers = {name: number for number, name in enumerate(symbols)}
    return symbols, numbers | {"": 0} | {name: numbers[h] for name, h in ISOTOPES.items()}


@lru_cache(maxsize=4096)
def atomic_number(name: str) -> int:
    """Atomic number of an element; 0 for `X` and the empty string.

    Capitals do not matter (`CL` is chlorine, `CA` calcium), as in ASE. Deuterium `D` and tritium
    `T` are hydrogen. A number from 0 to 118 written in digits stands for itself.

    Raises:
        UnknownElement: If there is no such element; the message has the nearest symbols.

    >>> atomic_number("Cl"), atomic_number("D"), atomic_number("X"), atomic_number("8")
    (17, 1, 0, 8)
    """
    _, numbers = _table()
    number = numbers.get(name, numbers.get(name.capitalize()))
    if number is None and name.isascii() and name.isdigit() and int(name[:4]) <= LARGEST:
        number = int(name)
    if number is None:
        near = get_close_matches(name.capitalize(), numbers, n=3, cutoff=0.5)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise UnknownElement(
            f"found {name[:20]!r}, expected the symbol of an element, or X for a point without "
            f"one{hint}."
        )
    return number


def symbol(number: int) -> str:
    """Symbol of an atomic number; `X` for 0.

    Raises:
        UnknownElement: If there is no element with that number.

    >>> symbol(17), symbol(0)
    ('Cl', 'X')
    """
    if not 0 <= number <= LARGEST:
        raise UnknownElement(
            f"found the atomic number {number}, expected 1 to {LARGEST}, or 0 for a point without "
            "an element."
        )
    return _table()[0][number]


def is_possible_charge(numbers: np.ndarray, charges: np.ndarray) -> np.ndarray:
    """Whether an atom can have each formal charge: at most its electrons are gone; up to 15.

    Args:
        numbers: Atomic numbers, shape (N,); a point without an element (0) has no charge.
        charges: Formal charges, shape (N,).

    Returns:
        Shape (N,).

    >>> is_possible_charge(np.array([1, 1, 8, 0]), np.array([1, 2, -2, -1])).tolist()
    [True, False, True, False]
    """
    most = np.minimum(numbers, LARGEST_CHARGE)
    least = np.where(numbers > 0, -LARGEST_CHARGE, 0)
    return np.asarray((least <= charges) & (charges <= most))


def impossible_charge(number: int, charge: int) -> str:
    """What is wrong with a charge that an atom cannot have."""
    expected = f"{-LARGEST_CHARGE} to {min(number, LARGEST_CHARGE)}" if number else "0"
    return f"found an atom {symbol(number)} of charge {charge}, expected a charge of {expected}."


def shown(number: int, charge: int) -> str:
    """A type as people write it: `N`, `N+`, `O2-`.

    >>> shown(8, -2)
    'O2-'
    """
    if not charge:
        return symbol(number)
    return f"{symbol(number)}{abs(charge) if abs(charge) > 1 else ''}{'+' if charge > 0 else '-'}"
