"""Structures of elements that a model knows, and what to do with the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqflow.chem.elements import shown, symbol
from eqflow.errors import EmptyData, UnknownElement
from eqflow.geometry import Clouds


def with_known_elements(
    clouds: Clouds,
    elements: Sequence[int],
    on_problem: str,
    charges: Sequence[int] | None = None,
) -> tuple[Clouds, list[str]]:
    """The structures whose elements are all among `elements`, and a line for each of the others.

    Args:
        clouds: Structures; points without elements are kept where `elements` is empty.
        elements: Atomic numbers; all structures are kept where there are none.
        on_problem: `stop` raises at the first unknown element, `skip` leaves its structure out.
        charges: Of each of `elements`, which may then be there repeatedly, the formal charge that
            an atom of it has; any where None.

    Raises:
        UnknownElement: If there is one, or there are no elements at all, and `on_problem` is stop.
        EmptyData: If no structure is left.
    """
    if not elements:
        return clouds, []
    if charges is None:
        vocabulary = ", ".join(symbol(number) for number in sorted(elements))
    else:
        vocabulary = ", ".join(map(shown, elements, charges))
    if clouds.numbers is None:
        raise UnknownElement(
            f"data: the structures have no elements; expected each to be one of {vocabulary}. "
            "Give a format with elements, or a model without data.elements."
        )
    unknown = ~_is_known(clouds.numbers, clouds.charges, elements, charges)
    wrong = ~has_known_elements(clouds, elements, charges)
    lines = []
    for cloud in wrong.nonzero().squeeze(1).tolist():
        start, end = clouds.ptr[cloud : cloud + 2].tolist()
        first = int(unknown[start:end].nonzero()[0]) + start
        charge = 0 if charges is None or clouds.charges is None else int(clouds.charges[first])
        where = clouds.source[cloud] if clouds.source else f"structure {cloud}"
        lines.append(
            f"{where}: {'element' if charges is None else 'atom'} "
            f"{shown(int(clouds.numbers[first]), charge)} is not one of the model's ({vocabulary})"
        )
    if lines and on_problem == "stop":
        raise UnknownElement(
            f"{lines[0]}. Train with it{' in data.elements' if charges is None else ''}, or pass "
            "data.on_problem=skip to leave such structures out."
        )
    if bool(wrong.all()):
        raise EmptyData(f"data: none of {len(clouds)} structures is left. {lines[0]}.")
    return (clouds[~wrong], lines) if lines else (clouds, [])


def has_known_elements(
    clouds: Clouds, elements: Sequence[int], charges: Sequence[int] | None = None
) -> Tensor:
    """Whether all atoms of a structure are among `elements`, shape (B,); so where none are."""
    if not elements or clouds.numbers is None:
        return torch.ones(len(clouds), dtype=torch.bool, device=clouds.ptr.device)
    unknown = ~_is_known(clouds.numbers, clouds.charges, elements, charges)
    return clouds.segments.sum(unknown.to(torch.int64)) == 0


def _is_known(
    numbers: Tensor, own: Tensor | None, elements: Sequence[int], charges: Sequence[int] | None
) -> Tensor:
    """Whether each of N atoms is known, by its number and `own` charge, which is 0 where None."""
    alike = numbers.unsqueeze(1) == torch.tensor(elements, device=numbers.device)
    if charges is not None:
        own = torch.zeros_like(numbers) if own is None else own
        alike &= own.unsqueeze(1) == torch.tensor(charges, device=numbers.device)
    return alike.any(1)
