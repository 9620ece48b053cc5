"""Clouds to ASE and RDKit and back."""

from dataclasses import replace

import ase
import pytest
import torch
from ase.build import bulk, molecule
from rdkit import Chem

from eqflow.chem import from_ase, from_rdkit, load_g2
from eqflow.errors import DataError, EmptyData, UsageError
from eqflow.geometry import Clouds

RAGGED = Clouds(
    torch.linspace(-3, 3, 15, dtype=torch.float64).reshape(5, 3).sin(),
    torch.tensor([0, 2, 5]),
    torch.tensor([6, 8, 1, 0, 17]),
)


@pytest.mark.parametrize("through", ["ase", "rdkit"])
def test_going_to_a_library_and_back_changes_nothing(through):
    if through == "ase":
        back = Clouds.from_ase(RAGGED.to_ase())
    else:
        back = Clouds.from_rdkit(RAGGED.to_rdkit())
    assert torch.equal(back.x, RAGGED.x)
    assert torch.equal(back.ptr, RAGGED.ptr)
    assert torch.equal(back.numbers, RAGGED.numbers)


@pytest.mark.parametrize("through", ["ase", "rdkit"])
def test_planar_points_without_elements_get_z_zero_and_stay_without_elements(through):
    planar = Clouds(torch.randn(4, 2), torch.tensor([0, 4]))
    if through == "ase":
        back = Clouds.from_ase(planar.to_ase())
    else:
        back = Clouds.from_rdkit(planar.to_rdkit())
    assert back.numbers is None
    assert torch.equal(back.x[:, :2], planar.x.double())
    assert not back.x[:, 2].any()


CHARGED = replace(RAGGED, charges=torch.tensor([1, -1, 1, 0, -2]))


@pytest.mark.parametrize("through", ["ase", "rdkit"])
def test_formal_charges_go_through_a_library_and_back(through):
    if through == "ase":
        there = CHARGED.to_ase()
        back = Clouds.from_ase(there)
        assert there[1].get_initial_charges().tolist() == [1, 0, -2]
        assert not RAGGED.to_ase()[0].has("initial_charges")
    else:
        there = CHARGED.to_rdkit()
        back = Clouds.from_rdkit(there)
        assert [atom.GetFormalCharge() for atom in there[1].GetAtoms()] == [1, 0, -2]
    assert torch.equal(back.charges, CHARGED.charges)


def test_partial_charges_of_ase_are_no_formal_charges_and_zeros_are_none():
    partial, whole = CHARGED.to_ase()
    partial.set_initial_charges([0.4, -1.0])
    assert Clouds.from_ase([partial, whole]).charges.tolist() == [0, 0, 1, 0, -2]
    assert Clouds.from_ase(partial).charges is None
    whole.set_initial_charges([float("nan"), float("inf"), 0.0])
    assert Clouds.from_ase(whole).charges is None


@pytest.mark.parametrize("charge", [1, -16, 7, 256])
def test_a_charge_that_no_atom_of_the_element_has_is_refused(charge):
    number = 0 if charge == 1 else 6
    atom = Clouds(
        torch.zeros(1, 3),
        torch.tensor([0, 1]),
        torch.tensor([number]),
        charges=torch.tensor([charge]),
    )
    with pytest.raises(DataError, match=rf"structure 0, atom 0: .* charge {charge}, expected"):
        atom.to_rdkit()


def test_single_objects_are_taken_as_one_cloud():
    assert len(from_ase(molecule("H2O"))) == 1
    assert len(from_rdkit(RAGGED.to_rdkit()[0])) == 1


def test_a_periodic_box_is_left_out():
    assert from_ase(bulk("Cu")).x.shape == (1, 3)


def test_rdkit_molecules_have_no_bonds_and_no_added_hydrogens():
    methane_carbon = Clouds(torch.zeros(1, 3), torch.tensor([0, 1]), torch.tensor([6])).to_rdkit()[
        0
    ]
    assert methane_carbon.GetNumBonds() == 0
    methane_carbon.UpdatePropertyCache()
    assert Chem.AddHs(methane_carbon).GetNumAtoms() == 1


def test_a_molecule_without_a_conformer_is_refused():
    with pytest.raises(DataError, match=r"molecule 1: found no conformer.*Embed"):
        from_rdkit([RAGGED.to_rdkit()[0], Chem.MolFromSmiles("CCO")])


def test_a_drawing_is_refused():
    drawing = Chem.MolFromSmiles("CCO")
    from rdkit.Chem import rdDepictor

    rdDepictor.Compute2DCoords(drawing)
    with pytest.raises(DataError, match="2-D"):
        from_rdkit(drawing)


def test_nothing_to_convert_is_refused():
    with pytest.raises(EmptyData):
        from_ase([])
    with pytest.raises(EmptyData):
        from_rdkit([])


def test_four_dimensions_are_refused():
    with pytest.raises(UsageError, match="4 dimensions"):
        Clouds(torch.zeros(1, 4), torch.tensor([0, 1])).to_ase()


def test_g2_has_the_molecules_of_ase():
    every = load_g2()
    water = every.source.index("g2#H2O")
    assert torch.equal(every[water].x, torch.as_tensor(molecule("H2O").get_positions()))
    assert isinstance(every.to_ase()[water], ase.Atoms)


def test_g2_is_filtered_by_elements_and_sizes():
    chosen = load_g2(elements=["H", "C"], min_atoms=4, max_atoms=6)
    assert set(chosen.numbers.tolist()) == {1, 6}
    assert int(chosen.sizes.min()) >= 4
    assert int(chosen.sizes.max()) <= 6
    with pytest.raises(EmptyData, match="0 of"):
        load_g2(elements=["Fe"])
