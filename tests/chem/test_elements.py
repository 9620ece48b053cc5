"""Symbols and atomic numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqflow.chem import LARGEST, atomic_number, symbol
from eqflow.errors import UnknownElement


@given(st.integers(0, LARGEST))
def test_symbol_and_number_are_inverse(number):
    assert atomic_number(symbol(number)) == number


@pytest.mark.parametrize(
    ("name", "number"),
    [("CL", 17), ("cl", 17), ("D", 1), ("T", 1), ("X", 0), ("", 0), ("6", 6), ("Og", 118)],
)
def test_spellings_of_an_element_are_understood(name, number):
    assert atomic_number(name) == number


def test_an_unknown_element_names_the_nearest():
    with pytest.raises(UnknownElement, match=r"'Clx'.*expected.*nearest.*Cl"):
        atomic_number("Clx")


@pytest.mark.parametrize("name", ["119", "-1", "6.0", "²", "C1", "9" * 5000, "\0", "٣"])
def test_what_is_no_element_is_refused(name):
    with pytest.raises(UnknownElement):
        atomic_number(name)


@pytest.mark.parametrize("number", [-1, 119])
def test_a_number_without_an_element_is_refused(number):
    with pytest.raises(UnknownElement, match=str(number)):
        symbol(number)
