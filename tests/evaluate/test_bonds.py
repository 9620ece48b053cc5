"""Bonds by distance: the published rule, its tables, and laws of a function of molecules."""

import itertools
from dataclasses import replace

import pytest
import torch
from known_molecules import apart, g2, nowhere
from tolerances import TOLERANCE

from eqflow import rng
from eqflow.chem import atomic_number, load_g2, symbol
from eqflow.errors import UnknownElement, UsageError
from eqflow.evaluate import bonds as module
from eqflow.evaluate.bond_tables import DOUBLE, PUBLISHED, SINGLE, TRIPLE, VALENCES, BondTable
from eqflow.evaluate.bonds import bonds_of
from eqflow.geometry import Clouds, random_orthogonal


def published_order(first: str, second: str, distance: float) -> int:
    """The rule as its authors state it, a pair at a time."""

    def length(table, a, b):
        return table.get(a, {}).get(b) or table.get(b, {}).get(a)

    single, double, triple = (length(table, first, second) for table in (SINGLE, DOUBLE, TRIPLE))
    if single is None or not 100 * distance < single + 10:
        return 0
    if double is None or not 100 * distance < double + 5:
        return 1
    if triple is None or not 100 * distance < triple + 3:
        return 2
    return 3


def rows(clouds):
    found = bonds_of(clouds)
    return {
        (*pair, order)
        for pair, order in zip(found.between.tolist(), found.orders.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("first", "second"),
    list(itertools.combinations_with_replacement(["H", "C", "N", "O", "P", "S"], 2)),
)
def test_the_order_at_each_distance_is_that_of_the_published_rule(first, second):
    distances = torch.arange(0, 2.6, 0.0073, dtype=torch.float64)
    x = torch.zeros(len(distances), 2, 3, dtype=torch.float64)
    x[:, 1, 2] = distances
    numbers = torch.tensor([atomic_number(first), atomic_number(second)])
    found = bonds_of(Clouds.from_dense(x, numbers))
    orders = torch.zeros(len(distances), dtype=torch.int64)
    orders[found.owner] = found.orders
    expected = [published_order(first, second, distance) for distance in distances.tolist()]
    assert orders.tolist() == expected


def test_a_length_is_that_of_both_orders_of_a_pair_and_each_pair_is_there_once():
    for table in (SINGLE, DOUBLE, TRIPLE):
        named = [frozenset((a, b)) for a, others in table.items() for b in others]
        assert len(set(named)) == len(named)
    assert torch.equal(PUBLISHED.limits, PUBLISHED.limits.mT)


def test_a_higher_order_is_shorter():
    single, double, triple = PUBLISHED.limits
    assert (double[double > 0] < single[double > 0]).all()
    assert (triple[triple > 0] < double[triple > 0]).all()


def test_valences_are_of_the_elements_named():
    known = [symbol(number) for number in PUBLISHED.known.nonzero().flatten().tolist()]
    assert set(known) == set(VALENCES)
    assert PUBLISHED.allowed[atomic_number("P")].nonzero().flatten().tolist() == [3, 5]
    assert not PUBLISHED.allowed[:, -1].any()


def test_thresholds_are_data():
    """Without margins the bonds of water, 0.97 Å, are too long."""
    water = g2("H2O")
    assert len(bonds_of(water, BondTable(margins=(0, 0, 0))).orders) == 0
    thiol = g2("CH3SH")
    lenient = BondTable(valences={**VALENCES, "S": (2, 4, 6)})
    assert lenient.allowed[16].nonzero().flatten().tolist() == [2, 4, 6]
    assert torch.equal(bonds_of(thiol).orders, bonds_of(thiol, lenient).orders)


def test_multiple_bonds_are_found():
    orders = {
        "C2H6": [1] * 7,
        "C2H4": [2] + [1] * 4,
        "C2H2": [3, 1, 1],
        "CO2": [2, 2],
        "HCN": [3, 1],
        "N2": [3],
    }
    for name, expected in orders.items():
        assert sorted(bonds_of(g2(name)).orders.tolist(), reverse=True) == expected, name


def test_bonds_do_not_change_when_molecules_are_moved():
    molecules = load_g2(["H", "C", "N", "O", "F", "S"])
    turn = random_orthogonal(1, 3, molecules.x, rng.generator(0, "turn"))[0]
    moved = molecules.with_positions(molecules.x @ turn.T - 2)
    assert rows(moved) == rows(molecules)
    assert torch.allclose(
        bonds_of(moved).lengths, bonds_of(molecules).lengths, atol=TOLERANCE[torch.float64]
    )


def test_valences_move_with_the_atoms():
    molecule = g2("CH3CH2OH")
    order = rng.permutation(len(molecule.x), rng.generator(0, "order"))
    shuffled = Clouds(molecule.x[order], molecule.ptr, molecule.numbers[order])
    assert torch.equal(bonds_of(shuffled).valences, bonds_of(molecule).valences[order])


def test_bonds_are_those_of_each_molecule_alone(monkeypatch):
    molecules = load_g2(["H", "C", "N", "O"])
    together = bonds_of(molecules).valences
    alone = torch.cat([bonds_of(molecule).valences for molecule in molecules])
    assert torch.equal(together, alone)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 20)
    assert torch.equal(bonds_of(molecules).valences, together)


def test_float32_and_float64_give_the_same_bonds():
    molecules = load_g2(["H", "C", "N", "O"])
    assert rows(molecules.to(torch.float32)) == rows(molecules)


def test_nothing_has_no_bonds():
    nothing = Clouds(torch.zeros(0, 3), torch.tensor([0]), torch.zeros(0, dtype=torch.int64))
    empty = replace(nothing, ptr=torch.tensor([0, 0, 0]))
    for clouds, judged in ((nothing, []), (empty, [False, False])):
        found = bonds_of(clouds)
        assert found.between.shape == (0, 2)
        assert found.judged.tolist() == judged


@pytest.mark.parametrize(
    ("clouds", "judged"),
    [
        (nowhere([6], 0.0), True),
        (nowhere([6, 1]), False),
        (nowhere([6, 1], float("inf")), False),
        (nowhere([6, 26], 0.0), False),
        (nowhere([0, 6], 0.0), False),
        (nowhere([-3, 500], 0.0), False),
        (nowhere([6, 6], 0.0), True),
    ],
)
def test_molecules_the_table_has_no_word_on_are_known(clouds, judged):
    found = bonds_of(clouds)
    assert found.judged.tolist() == [judged]
    assert found.lengths.isfinite().all()


def test_a_molecule_that_cannot_be_judged_leaves_the_others_alone():
    both = Clouds.join([g2("H2O"), nowhere([6, 1]), g2("CH4")])
    assert bonds_of(both).valences.tolist() == [2, 1, 1, 0, 0, 4, 1, 1, 1, 1]


def test_fragments_have_no_bonds_between_them():
    both = apart(g2("CH4"), g2("H2O"))
    assert bonds_of(both).valences.tolist() == [4, 1, 1, 1, 1, 2, 1, 1]


def test_points_without_elements_and_in_four_dimensions_are_refused():
    ptr = torch.tensor([0, 2])
    with pytest.raises(UnknownElement, match="without elements"):
        bonds_of(Clouds(torch.zeros(2, 3), ptr))
    with pytest.raises(UsageError, match="4 dimensions"):
        bonds_of(Clouds(torch.zeros(2, 4), ptr, torch.tensor([6, 6])))


def test_a_flat_molecule_is_one():
    flat = g2("H2O")
    assert bonds_of(replace(flat, x=flat.x[:, 1:])).valences.tolist() == [2, 1, 1]


def test_three_hundred_atoms_in_one_place_have_bonds():
    crowd = nowhere([6] * 300, 0.0)
    assert bonds_of(crowd).valences.tolist() == [3 * 299] * 300
