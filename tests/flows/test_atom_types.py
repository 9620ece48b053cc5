"""Kinds of atoms: elements, or elements with their charges."""

import pytest
import torch

from eqflow.chem.elements import shown
from eqflow.errors import UnknownElement, UsageError
from eqflow.flows import AtomTypes
from eqflow.geometry import Clouds

CHARGED = Clouds(
    torch.zeros(5, 3),
    torch.tensor([0, 2, 5]),
    torch.tensor([7, 6, 8, 7, 8]),
    ("a.sdf:1", "a.sdf:9"),
    charges=torch.tensor([1, 0, -1, 0, 0]),
)


def test_types_are_those_that_occur_and_those_asked_for() -> None:
    types = AtomTypes.of(CHARGED, elements=(9,))
    assert types == AtomTypes((6, 7, 7, 8, 8, 9), (0, 0, 1, -1, 0, 0))
    assert (len(types), types.elements, str(types)) == (6, (6, 7, 8, 9), "C, N, N+, O-, O, F")
    plain = Clouds(CHARGED.x, CHARGED.ptr, CHARGED.numbers)
    assert AtomTypes.of(plain, elements=(1,)) == AtomTypes((1, 6, 7, 8))


def test_kinds_and_labels_are_inverse() -> None:
    types = AtomTypes.of(CHARGED)
    numbers, charges = types.labels(types.kinds(CHARGED))
    assert torch.equal(numbers, CHARGED.numbers)
    assert torch.equal(charges, CHARGED.charges)
    elements = AtomTypes((6, 7, 8))
    assert elements.kinds(CHARGED).tolist() == [1, 0, 2, 1, 2]
    assert elements.labels(torch.tensor([2]))[1] is None


def test_atoms_without_charges_are_neutral() -> None:
    neutral = Clouds(torch.zeros(1, 3), torch.tensor([0, 1]), torch.tensor([7]))
    assert AtomTypes((7, 7), (-1, 0)).kinds(neutral).tolist() == [1]


@pytest.mark.parametrize(
    ("types", "found"),
    [(AtomTypes((6, 7)), "a.sdf:9: found O,"), (AtomTypes((6, 7, 8), (0, 1, 0)), "found O-,")],
    ids=str,
)
def test_an_unknown_atom_is_named_with_its_place(types: AtomTypes, found: str) -> None:
    with pytest.raises(UnknownElement, match=found):
        types.kinds(CHARGED)


def test_structures_without_elements_are_refused() -> None:
    bare = Clouds(torch.zeros(1, 3), torch.tensor([0, 1]))
    with pytest.raises(UnknownElement, match="without elements"):
        AtomTypes.of(bare)
    with pytest.raises(UnknownElement, match="without elements"):
        AtomTypes((6,)).kinds(bare)


@pytest.mark.parametrize(
    ("numbers", "charges"), [((), None), ((7, 6), None), ((6, 6), None), ((6,), (0, 1))]
)
def test_types_rise_and_have_a_charge_each(numbers, charges) -> None:
    with pytest.raises(UsageError, match="atom types"):
        AtomTypes(numbers, charges)


def test_charges_are_written_as_people_do() -> None:
    assert [shown(7, charge) for charge in (-2, -1, 0, 1, 2)] == ["N2-", "N-", "N", "N+", "N2+"]
