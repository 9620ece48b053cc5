"""How an atom looks: colours that colour-blind readers tell apart, radii from ASE's table."""

from __future__ import annotations

from functools import cache

# The usual colour of an element, taken from the Okabe–Ito palette.
COLOURS = {
    1: "#F7F7F7",
    6: "#4D4D4D",
    7: "#0072B2",
    8: "#D55E00",
    9: "#009E73",
    15: "#E69F00",
    16: "#F0E442",
    17: "#56B4E9",
    35: "#CC79A7",
}


def colour_of(number: int) -> str:
    """Colour of an element: Okabe–Ito for the common ones, Jmol's for the others.

    >>> colour_of(8)
    '#D55E00'
    """
    return COLOURS.get(number) or _jmol(number)


@cache
def radius_of(number: int) -> float:
    """Covalent radius of an element in Å.

    >>> radius_of(6)
    0.76
    """
    from ase.data import covalent_radii

    return float(covalent_radii[number])


@cache
def _jmol(number: int) -> str:
    from ase.data.colors import jmol_colors

    red, green, blue = (round(255 * float(part)) for part in jmol_colors[number])
    return f"#{red:02X}{green:02X}{blue:02X}"
