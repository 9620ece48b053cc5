"""Structures with atoms that a model does not know are refused, or left out and listed."""

import pytest
import torch

from eqflow.data import has_known_elements, with_known_elements
from eqflow.errors import UnknownElement
from eqflow.geometry import Clouds

# N+ and O, N and O-, F.
CLOUDS = Clouds(
    torch.randn(5, 3),
    torch.tensor([0, 2, 4, 5]),
    torch.tensor([7, 8, 7, 8, 9]),
    charges=torch.tensor([1, 0, 0, -1, 0]),
    source=("a", "b", "c"),
)
TYPES = {"elements": [7, 8, 8], "charges": [0, 0, -1]}


def test_atoms_are_known_by_their_charges_where_a_model_tells_them_apart() -> None:
    assert has_known_elements(CLOUDS, [7, 8]).tolist() == [True, True, False]
    assert has_known_elements(CLOUDS, **TYPES).tolist() == [False, True, False]
    kept, lines = with_known_elements(CLOUDS, **TYPES, on_problem="skip")
    assert kept.source == ("b",)
    assert lines == [
        "a: atom N+ is not one of the model's (N, O, O-)",
        "c: atom F is not one of the model's (N, O, O-)",
    ]


def test_where_they_are_not_left_out_the_first_is_named_with_what_to_do() -> None:
    with pytest.raises(UnknownElement, match=r"a: atom N\+.*Train with it, or.*on_problem=skip"):
        with_known_elements(CLOUDS, **TYPES, on_problem="stop")
    with pytest.raises(UnknownElement, match=r"c: element F.*data\.elements"):
        with_known_elements(CLOUDS, [7, 8], on_problem="stop")
