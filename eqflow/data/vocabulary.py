"""Structures of elements that a model knows, and what to do with the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqflow.chem.elements import symbol
from eqflow.errors import EmptyData, UnknownElement
from eqflow.geometry import Clouds


def with_known_elements(
    clouds: Clouds, elements: Sequence[int], on_problem: str
) -> tuple[Clouds, list[str]]:
    """The structures whose elements are all among `elements`, and a line for each of the others.

    Args:
        clouds: Structures; points without elements are kept where `elements` is empty.
        elements: Atomic numbers; all structures are kept where there are none.
        on_problem: `stop` raises at the first unknown element, `skip` leaves its structure out.

    Raises:
        UnknownElement: If there is one, or there are no elements at all, and `on_problem` is stop.
        EmptyData: If no structure is left.
    """
    if not elements:
        return clouds, []
    vocabulary = ", ".join(symbol(number) for number in sorted(elements))
    if clouds.numbers is None:
        raise UnknownElement(
            f"data: the structures have no elements; expected each to be one of {vocabulary}. "
            "Give a format with elements, or a model without data.elements."
        )
    unknown = ~torch.isin(clouds.numbers, torch.tensor(elements, device=clouds.numbers.device))
    wrong = ~has_known_elements(clouds, elements)
    lines = []
    for cloud in wrong.nonzero().squeeze(1).tolist():
        start, end = clouds.ptr[cloud : cloud + 2].tolist()
        first = clouds.numbers[start:end][unknown[start:end]][0]
        where = clouds.source[cloud] if clouds.source else f"structure {cloud}"
        lines.append(
            f"{where}: element {symbol(int(first))} is not one of the model's ({vocabulary})"
        )
    if lines and on_problem == "stop":
        raise UnknownElement(
            f"{lines[0]}. Train with it in data.elements, or pass data.on_problem=skip to leave "
            "such structures out."
        )
    if bool(wrong.all()):
        raise EmptyData(f"data: none of {len(clouds)} structures is left. {lines[0]}.")
    return (clouds[~wrong], lines) if lines else (clouds, [])


def has_known_elements(clouds: Clouds, elements: Sequence[int]) -> Tensor:
    """Whether all elements of a structure are among `elements`, shape (B,); so where none are."""
    if not elements or clouds.numbers is None:
        return torch.ones(len(clouds), dtype=torch.bool, device=clouds.ptr.device)
    known = torch.isin(clouds.numbers, torch.tensor(elements, device=clouds.numbers.device))
    return clouds.segments.sum((~known).to(torch.int64)) == 0
