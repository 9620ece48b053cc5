"""RDKit's perception of bonds: molecules whose answer is known, and one that takes too long."""

import pytest
import torch
from known_molecules import apart, embedded, g2, nowhere

from eqflow.errors import ShapeError, UnknownElement
from eqflow.evaluate.perception import perceive
from eqflow.geometry import Clouds

KNOWN = {
    "benzene": (g2("C6H6"), 0, "c1ccccc1"),
    "nitromethane": (g2("CH3NO2"), 0, "C[N+](=O)[O-]"),
    "nitrobenzene": (embedded("[O-][N+](=O)c1ccccc1"), 0, "O=[N+]([O-])c1ccccc1"),
    "ammonium": (embedded("[NH4+]"), 1, "[NH4+]"),
    "formate": (embedded("[O-]C=O"), -1, "O=C[O-]"),
    "acetate": (embedded("CC(=O)[O-]"), -1, "CC(=O)[O-]"),
    "zwitterionic glycine": (embedded("[NH3+]CC(=O)[O-]"), 0, "[NH3+]CC(=O)[O-]"),
    "carbon monoxide": (g2("CO"), 0, "[C-]#[O+]"),
    "nitrogen": (g2("N2"), 0, "N#N"),
    "hydrogen cyanide": (g2("HCN"), 0, "C#N"),
    "methane": (g2("CH4"), 0, "C"),
    "water": (g2("H2O"), 0, "O"),
    "two fragments": (apart(g2("CH4"), g2("H2O")), 0, "C.O"),
    "hydrogen": (g2("H2"), 0, "[H][H]"),
    "fluorine": (g2("F2"), 0, "FF"),
    "one atom": (nowhere([2], 0.0), 0, "[He]"),
}
# No bonds and charges fit these: radicals, and charges that are not those given.
REFUSED = {
    "methyl": (g2("CH3"), 0),
    "oxygen alone": (nowhere([8], 0.0), 0),
    "hydrogen alone": (nowhere([1], 0.0), 0),
    "neutral ammonium": (embedded("[NH4+]"), 0),
    "coincident atoms": (nowhere([6, 6, 1, 1], 0.0), 0),
}


def test_each_known_molecule_is_perceived_as_what_it_is():
    molecules, charges, smiles = zip(*KNOWN.values(), strict=True)
    found = perceive(Clouds.join(molecules), charges)
    assert tuple(one.smiles for one in found) == smiles
    assert [one.fragments for one in found] == [text.count(".") + 1 for text in smiles]
    assert all(one.molfile and not one.problem for one in found)


def test_molecules_that_no_bonds_fit_are_refused_and_what_is_no_molecule_is_not_judged():
    molecules, charges = zip(*REFUSED.values(), strict=True)
    odd = [nowhere([6, 1]), nowhere([0], 0.0), nowhere([900], 0.0), nowhere([])]
    found = perceive(Clouds.join([*molecules, *odd]), [*charges, *[0] * len(odd)])
    assert all(one.smiles is None and one.problem and not one.molfile for one in found)
    assert [one.refused for one in found] == [True] * len(molecules) + [False] * len(odd)


def test_a_molecule_that_takes_too_long_is_given_up_and_the_rest_goes_on():
    """Six nitro groups on a conjugated skeleton have millions of ways to place their charges."""
    hard = embedded(
        "O=[N+]([O-])c1cc([N+](=O)[O-])c2cc([N+](=O)[O-])cc([N+](=O)[O-])c2c1"
        "-c1c([N+](=O)[O-])cc([N+](=O)[O-])cc1[N+](=O)[O-]"
    )
    found = perceive(Clouds.join([g2("CH4"), hard, g2("H2O")]), seconds=1.0)
    assert [one.smiles for one in found] == ["C", None, "O"]
    assert found[1].problem == "did not end within 1 s"
    assert not found[1].refused


def test_three_hundred_atoms_are_answered():
    many = apart(*[g2("CH4")] * 60)
    assert len(many.x) == 300
    (found,) = perceive(many)
    assert found.fragments == 60
    assert found.smiles == ".".join(["C"] * 60)


def test_nothing_is_perceived_of_nothing_and_of_points():
    numbers = torch.zeros(0, dtype=torch.int64)
    assert perceive(Clouds(torch.zeros(0, 3), torch.tensor([0]), numbers)) == []
    with pytest.raises(UnknownElement):
        perceive(Clouds(torch.zeros(2, 3), torch.tensor([0, 2])))
    with pytest.raises(ShapeError, match="2 charges for 1"):
        perceive(g2("CH4"), [0, 0])
