"""Validity, uniqueness and novelty on molecules whose answer is known."""

import math

import pytest
import torch
from known_molecules import apart, embedded, g2, nowhere

from eqflow import rng
from eqflow.chem import load_g2
from eqflow.evaluate.bonds import bonds_of
from eqflow.evaluate.validity import (
    canonical_smiles,
    check_molecules,
    novelty,
    uniqueness,
    valid_and_unique,
)
from eqflow.geometry import Clouds, random_orthogonal

# What RDKit makes of the bonds of the tables. An atom short of bonds is a radical, and accepted.
ACCEPTED = {
    "methane": (g2("CH4"), "C"),
    "water": (g2("H2O"), "O"),
    "nitrogen": (g2("N2"), "N#N"),
    "hydrogen cyanide": (g2("HCN"), "C#N"),
    "methyl": (g2("CH3"), "[CH3]"),
    "benzene": (g2("C6H6"), "[CH]1[CH][CH][CH][CH][CH]1"),
    # Five bonds of a nitro group are known to RDKit, which writes them with charges.
    "nitromethane": (g2("CH3NO2"), "C[N+](=O)[O-]"),
    "nitrobenzene": (
        embedded("[O-][N+](=O)c1ccccc1"),
        "O=[N+]([O-])[C]1[CH][CH][CH][CH][CH]1",
    ),
    "formate": (embedded("[O-]C=O"), "[O][CH][O]"),
    "acetate": (embedded("CC(=O)[O-]"), "C[C]([O])[O]"),
    "one atom": (nowhere([8], 0.0), "[O]"),
}
# Charges are not in the tables, so four bonds of nitrogen and three of oxygen are too many.
REFUSED = {
    "ammonium": embedded("[NH4+]"),
    "zwitterionic glycine": embedded("[NH3+]CC(=O)[O-]"),
    "carbon monoxide": g2("CO"),
    "coincident atoms": nowhere([6, 6, 1, 1], 0.0),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_rdkit_accepts_and_as_what(name):
    molecule, smiles = ACCEPTED[name]
    (found,) = check_molecules(bonds_of(molecule))
    assert found == (True, True, 1, smiles, "")


@pytest.mark.parametrize("name", REFUSED)
def test_what_rdkit_refuses(name):
    (found,) = check_molecules(bonds_of(REFUSED[name]))
    assert found == (False, False, 1, None, "")


def test_fragments_are_counted_and_the_largest_is_judged_on_its_own():
    (both,) = check_molecules(bonds_of(apart(g2("CH4"), g2("H2O"))))
    assert both == (True, True, 2, "C.O", "")
    (good_one,) = check_molecules(bonds_of(apart(g2("C2H6"), embedded("[NH4+]"))))
    assert good_one == (False, True, 2, None, "")
    (bad_one,) = check_molecules(bonds_of(apart(embedded("[NH3+]CC(=O)[O-]"), g2("H2O"))))
    assert bad_one == (False, False, 2, None, "")


def test_what_cannot_be_judged_says_so_and_leaves_the_others_alone():
    odd = [nowhere([6, 1]), nowhere([26], 0.0), nowhere([0], 0.0), nowhere([])]
    odd.append(nowhere([6] * 300, 0.0))
    found = check_molecules(bonds_of(Clouds.join([g2("CH4"), *odd, g2("H2O")])))
    assert [one.smiles for one in found] == ["C", *[None] * len(odd), "O"]
    assert all(one.problem and one.fragments == 0 for one in found[1:-1])


def test_nothing_is_checked_where_there_is_nothing():
    empty = Clouds(torch.zeros(0, 3), torch.tensor([0]), torch.zeros(0, dtype=torch.int64))
    assert check_molecules(bonds_of(empty)) == []


def test_smiles_do_not_depend_on_motion_order_of_atoms_or_batch():
    molecules = load_g2(["H", "C", "N", "O"])
    plain = check_molecules(bonds_of(molecules))
    turn = random_orthogonal(1, 3, molecules.x, rng.generator(0, "turn"))[0]
    assert check_molecules(bonds_of(molecules.with_positions(molecules.x @ turn.T + 1))) == plain
    assert [check_molecules(bonds_of(one))[0] for one in molecules] == plain
    shuffled = []
    for place, one in enumerate(molecules):
        order = rng.permutation(len(one.x), rng.generator(place, "order"))
        shuffled.append(Clouds(one.x[order], one.ptr, one.numbers[order]))
    assert check_molecules(bonds_of(Clouds.join(shuffled))) == plain


def test_uniqueness_is_of_those_that_have_smiles():
    found = uniqueness(["C", "C", "O", None])
    assert (found.value, found.count, found.not_computable) == (pytest.approx(2 / 3), 3, 1)
    assert found.low <= found.value <= found.high
    assert uniqueness(["C", "O", "N"])[:3] == (1, pytest.approx(0.025 ** (1 / 3)), 1)
    assert math.isnan(uniqueness([None, None]).value)
    assert uniqueness([]).count == 0


def test_novelty_is_of_distinct_molecules():
    found = novelty(["C", "C", "O", "N", None], {"C", "F"})
    assert (found.value, found.count, found.not_computable) == (pytest.approx(2 / 3), 4, 1)
    assert novelty(["C", "C"], {"C"}).value == 0
    assert math.isnan(novelty([], {"C"}).value)


def test_valid_and_unique_is_of_all():
    assert valid_and_unique(["C", "C", "O", None]).value == pytest.approx(0.5)
    assert valid_and_unique([None]).value == 0
    assert math.isnan(valid_and_unique([]).value)


def test_smiles_of_a_training_set_are_written_the_same_way():
    training, refused = canonical_smiles(["OC", "N#N", "[H]O[H]", "not one", "F[C@](Cl)(Br)I"])
    assert refused == 1
    assert training == {"CO", "N#N", "O", "FC(Cl)(Br)I"}
    smiles = [one.smiles for one in check_molecules(bonds_of(g2("CH3OH", "N2", "CH4")))]
    assert novelty(smiles, training).value == pytest.approx(1 / 3)
