"""What kinds of atoms a joint flow knows: elements, or elements with their formal charges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow.chem.elements import shown
from eqflow.errors import UnknownElement, UsageError
from eqflow.geometry import Clouds

# What an atom's integers may be, each a function of atomic numbers and charges (N,).
INTEGER_FEATURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "atomic_number": lambda numbers, charges: numbers,
    "formal_charge": lambda numbers, charges: charges,
}


@dataclass(frozen=True)
class AtomTypes:
    """The categories of atoms.

    Attributes:
        numbers: Atomic number of each category, rising.
        charges: Formal charge of each, rising among those of one element; None where charges are
            no part of the model and ignored in data.

    Raises:
        UsageError: If there is none, or they do not rise.

    Example:
        >>> types = AtomTypes((6, 7, 7), (0, 0, 1))
        >>> cation = Clouds(torch.zeros(2, 3), torch.tensor([0, 2]), torch.tensor([7, 6]),
        ...                 charges=torch.tensor([1, 0]))
        >>> types.kinds(cation)
        tensor([2, 0])
    """

    numbers: tuple[int, ...]
    charges: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        charges = self.charges if self.charges is not None else (0,) * len(self.numbers)
        if len(charges) != len(self.numbers):
            raise UsageError(
                f"atom types: found {len(self.numbers)} elements and {len(charges)} charges, "
                "expected one charge for each."
            )
        pairs = list(zip(self.numbers, charges, strict=True))
        if not pairs or pairs != sorted(set(pairs)):
            raise UsageError(f"atom types: found {pairs}, expected at least one, all rising.")

    @classmethod
    def of(cls, clouds: Clouds, elements: Sequence[int] = ()) -> AtomTypes:
        """The types that occur, and those of `elements` that do not, uncharged.

        Charges are part of the types where the clouds have them.

        Raises:
            UnknownElement: If the clouds have no elements.
        """
        numbers, charges = _labels(clouds)
        if charges is None:
            return cls(tuple(sorted({*elements, *numbers.unique().tolist()})))
        found = {tuple(pair) for pair in torch.stack([numbers, charges], 1).unique(dim=0).tolist()}
        pairs = sorted(found | {(element, 0) for element in elements})
        return cls(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, rising."""
        return tuple(sorted(set(self.numbers)))

    def kinds(self, clouds: Clouds) -> Tensor:
        """Place of each atom's type, shape (N,), int64.

        Raises:
            UnknownElement: If an atom is of none, or there are no elements.
        """
        numbers, charges = _labels(clouds)
        if charges is None:
            charges = torch.zeros_like(numbers)
        alike = numbers.unsqueeze(1) == torch.tensor(self.numbers, device=numbers.device)
        if self.charges is not None:
            alike &= charges.unsqueeze(1) == torch.tensor(self.charges, device=numbers.device)
        known = alike.any(1)
        if not known.all():
            row = int((~known).nonzero()[0])
            cloud = int(clouds.segments.ids[row])
            where = clouds.source[cloud] if clouds.source else f"structure {cloud}"
            charge = 0 if self.charges is None else int(charges[row])
            raise UnknownElement(
                f"{where}: found {shown(int(numbers[row]), charge)}, expected atoms of the model's "
                f"types ({self}). Train with such atoms, or leave "
                "such structures out (on the command line data.on_problem=skip)."
            )
        return alike.int().argmax(1)

    def labels(self, kinds: Tensor) -> tuple[Tensor, Tensor | None]:
        """Atomic numbers and formal charges of types, shape (N,) each."""
        numbers = torch.tensor(self.numbers, device=kinds.device)[kinds]
        if self.charges is None:
            return numbers, None
        return numbers, torch.tensor(self.charges, device=kinds.device)[kinds]

    def __str__(self) -> str:
        charges = self.charges or (0,) * len(self.numbers)
        return ", ".join(map(shown, self.numbers, charges))


def integers_of(clouds: Clouds, names: Sequence[str]) -> Tensor:
    """Integers of each atom by name, those of `INTEGER_FEATURES`, shape (N, I), int64."""
    none = torch.zeros(len(clouds.x), dtype=torch.int64, device=clouds.x.device)
    numbers = none if clouds.numbers is None else clouds.numbers
    charges = none if clouds.charges is None else clouds.charges
    columns = [INTEGER_FEATURES[name](numbers, charges) for name in names]
    return torch.stack(columns, 1) if columns else none.new_zeros(len(none), 0)


def _labels(clouds: Clouds) -> tuple[Tensor, Tensor | None]:
    if clouds.numbers is None:
        raise UnknownElement("found structures without elements, expected molecules.")
    return clouds.numbers, clouds.charges
