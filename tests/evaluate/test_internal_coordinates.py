"""Lengths, angles and torsions: counted by hand, measured by RDKit, and their laws."""

import pytest
import torch
from known_molecules import apart, embedded, g2, nowhere
from rdkit.Chem import rdMolTransforms
from tolerances import TOLERANCE

from eqflow import rng
from eqflow.chem import load_g2
from eqflow.evaluate.bonds import bonds_of
from eqflow.evaluate.internal_coordinates import angles, bond_lengths, pair_distances, torsions
from eqflow.geometry import Clouds, random_orthogonal

MEASURES = {"angles": angles, "torsions": torsions, "pairs": pair_distances}


def test_bond_lengths_come_by_kind_the_most_frequent_first():
    found = bond_lengths(bonds_of(g2("CH3CHO")))
    assert {kind: len(spread.values) for kind, spread in found.items()} == {
        "C–H": 4,
        "C–C": 1,
        "C=O": 1,
    }
    assert float(found["C=O"].values) == pytest.approx(1.21, abs=0.02)


def test_a_methane_has_six_angles_and_no_torsions():
    bonds = bonds_of(g2("CH4"))
    assert torch.allclose(
        angles(bonds).values, torch.full((6,), 109.4712, dtype=torch.float64), atol=1e-3
    )
    assert torsions(bonds).values.numel() == 0


def test_the_torsions_of_ethane_and_butadiene_are_known():
    staggered = torsions(bonds_of(g2("C2H6"))).values.sort().values
    assert torch.allclose(staggered, torch.tensor([60.0] * 6 + [180.0] * 3).double(), atol=0.5)
    planar = torsions(bonds_of(g2("trans-butane"))).values
    assert float(planar.max()) == pytest.approx(180, abs=0.5)


def test_angles_and_torsions_agree_with_rdkit():
    molecule = embedded("NCC(=O)O")
    bonds = bonds_of(molecule)
    conformer = molecule.to_rdkit()[0].GetConformer()
    near = {atom: set() for atom in range(len(molecule.x))}
    for one, other in bonds.between.tolist():
        near[one].add(other)
        near[other].add(one)
    expected = [
        rdMolTransforms.GetAngleDeg(conformer, a, b, c)
        for b in near
        for a in near[b]
        for c in near[b]
        if a < c
    ]
    assert torch.allclose(
        angles(bonds).values.sort().values, torch.tensor(expected).double().sort().values, atol=1e-9
    )
    expected = [
        abs(rdMolTransforms.GetDihedralDeg(conformer, a, b, c, d))
        for b in near
        for c in near[b]
        if b < c
        for a in near[b] - {c}
        for d in near[c] - {b}
    ]
    assert torch.allclose(
        torsions(bonds).values.sort().values,
        torch.tensor(expected).double().sort().values,
        atol=1e-7,
    )


def test_linear_chains_have_angles_of_180_degrees_and_no_torsions():
    bonds = bonds_of(g2("C2H2"))
    assert angles(bonds).values.tolist() == pytest.approx([180, 180], abs=1e-6)
    assert torsions(bonds).values.numel() == 0


def test_a_triangle_has_no_torsion_back_to_itself():
    bonds = bonds_of(g2("C3H6_D3h"))
    ring = [len(torsions(bonds).values), len(angles(bonds).values)]
    # Each C–C bond has 4 × … ends: 2 hydrogens and the third carbon on either side, which is one.
    assert ring == [3 * (3 * 3 - 1), 3 * 6]


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_nothing_changes_when_molecules_are_moved_mirrored_or_batched(measure):
    molecules = load_g2(["H", "C", "N", "O"])
    plain = measure(bonds_of(molecules))
    source = rng.generator(3, "turn")
    turn = random_orthogonal(1, 3, molecules.x, source)[0]
    for motion in (turn, -turn):
        moved = measure(bonds_of(molecules.with_positions(molecules.x @ motion.T + 1)))
        # Degrees of an angle of 180 are the square root of the error of its cosine.
        assert torch.allclose(moved.values, plain.values, atol=1e-5)
    alone = [measure(bonds_of(one)).values for one in molecules]
    assert [len(values) for values in alone] == torch.bincount(
        plain.owner, minlength=len(molecules)
    ).tolist()
    together = [plain.values[plain.owner == place] for place in range(len(molecules))]
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(
            one.sort().values, other.sort().values, atol=180 * TOLERANCE[torch.float64]
        )


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_what_cannot_be_judged_is_left_out_and_counted(measure):
    odd = [nowhere([6, 1]), nowhere([26, 26], 0.0), nowhere([])]
    found = measure(bonds_of(Clouds.join([*odd, g2("CH3CH2OH")])))
    assert set(found.owner.tolist()) == {3}
    assert (found.count, found.not_computable) == (4, 3)
    assert found.values.isfinite().all()


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_atoms_alone_coincident_and_no_atoms_are_taken(measure):
    for clouds in (nowhere([6], 0.0), nowhere([6, 6, 6], 0.0), apart(g2("H"), g2("O"))):
        assert measure(bonds_of(clouds)).values.isfinite().all()
    empty = Clouds(torch.zeros(0, 3), torch.tensor([0]), torch.zeros(0, dtype=torch.int64))
    assert measure(bonds_of(empty)).values.shape == (0,)


def test_angles_of_a_collapsed_molecule_are_left_out():
    crowd = bonds_of(nowhere([6] * 300, 0.0))
    for measure in (angles, torsions):
        found = measure(crowd)
        assert found.values.numel() == 0
        assert found.not_computable == 1
