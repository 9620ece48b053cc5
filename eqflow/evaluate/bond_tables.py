"""Bond lengths by pair of elements, with what makes bonds and valences of them: data alone.

Single, double and triple lengths are standard experimental ones, in pm. A pair nearer than the
single length and its margin is bonded; nearer than the double length and its margin, by a double
bond; and so on. The margins were tuned by their authors to the data of QM9.

Reference: wiredchemist.com, Common bond energies and lengths
(http://www.wiredchemist.com/chemistry/data/bond_energies_lengths.html), as used with these margins
and valences in E(n) equivariant normalizing flows (Satorras et al., 2021), arXiv:2105.09016, and
Equivariant diffusion for molecule generation in 3D (Hoogeboom et al., 2022), arXiv:2203.17003.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from eqflow.chem.elements import LARGEST, atomic_number

PM = 0.01  # Å

Lengths = Mapping[str, Mapping[str, float]]

# Each pair once.
SINGLE: Lengths = {
    "H": {"H": 74, "C": 109, "N": 101, "O": 96, "F": 92, "B": 119, "Si": 148, "P": 144}
    | {"As": 152, "S": 134, "Cl": 127, "Br": 141, "I": 161},
    "C": {"C": 154, "N": 147, "O": 143, "F": 135, "Si": 185, "P": 184, "S": 182, "Cl": 177}
    | {"Br": 194, "I": 214},
    "N": {"N": 145, "O": 140, "F": 136, "P": 177, "S": 168, "Cl": 175, "Br": 214, "I": 222},
    "O": {"O": 148, "F": 142, "Si": 163, "P": 163, "S": 151, "Cl": 164, "Br": 172, "I": 194},
    "F": {"F": 142, "Si": 160, "P": 156, "S": 158, "Cl": 166, "Br": 178, "I": 187},
    "B": {"Cl": 175},
    "Si": {"Si": 233, "S": 200, "Cl": 202, "Br": 215, "I": 243},
    "P": {"P": 221, "S": 210, "Cl": 203, "Br": 222},
    "S": {"S": 204, "Cl": 207, "Br": 225, "I": 234},
    "Cl": {"Cl": 199, "Br": 214},
    "Br": {"Br": 228},
    "I": {"I": 266},
}
DOUBLE: Lengths = {
    "C": {"C": 134, "N": 129, "O": 120, "S": 160},
    "N": {"N": 125, "O": 121},
    "O": {"O": 121, "P": 150},
    "P": {"S": 186},
}
TRIPLE: Lengths = {"C": {"C": 120, "N": 116, "O": 113}, "N": {"N": 110}}

VALENCES: Mapping[str, tuple[int, ...]] = {
    "H": (1,),
    "B": (3,),
    "C": (4,),
    "N": (3,),
    "O": (2,),
    "F": (1,),
    "Al": (3,),
    "Si": (4,),
    "P": (3, 5),
    "S": (4,),
    "Cl": (1,),
    "As": (3,),
    "Br": (1,),
    "I": (1,),
    "Hg": (1, 2),
    "Bi": (3, 5),
}


@dataclass(frozen=True, eq=False)
class BondTable:
    """Which distances are bonds of which order, and which valences an element may have.

    Attributes:
        lengths: Of single, double and triple bonds in pm, each pair of symbols once.
        margins: How much longer each of them may be, in pm.
        valences: Allowed sums of bond orders by symbol; another element is not known.
    """

    lengths: tuple[Lengths, ...] = (SINGLE, DOUBLE, TRIPLE)
    margins: tuple[float, ...] = (10, 5, 3)
    valences: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: VALENCES)

    @cached_property
    def limits(self) -> Tensor:
        """Å below which a pair has at least order 1, 2, 3; shape (3, 119, 119), −∞ for never."""
        limits = torch.full(
            (len(self.lengths), LARGEST + 1, LARGEST + 1), -math.inf, dtype=torch.float64
        )
        for order, (lengths, margin) in enumerate(zip(self.lengths, self.margins, strict=True)):
            for first, others in lengths.items():
                for second, length in others.items():
                    a, b = atomic_number(first), atomic_number(second)
                    limits[order, a, b] = limits[order, b, a] = PM * (length + margin)
        return limits

    @cached_property
    def allowed(self) -> Tensor:
        """Whether an element may have a valence, shape (119, highest + 2); the last never."""
        highest = max(max(valences) for valences in self.valences.values())
        allowed = torch.zeros(LARGEST + 1, highest + 2, dtype=torch.bool)
        for name, valences in self.valences.items():
            allowed[atomic_number(name), list(valences)] = True
        return allowed

    @cached_property
    def known(self) -> Tensor:
        """Whether the table has valences for an element, shape (119,)."""
        return self.allowed.any(1)


# The rule of the published tables, sulphur of valence 4 alone included.
PUBLISHED = BondTable()
