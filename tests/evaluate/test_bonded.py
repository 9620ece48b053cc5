"""Molecules with bonds: perceived, or of the tables; and what becomes of atoms and charges."""

from dataclasses import replace

import pytest
import torch
from known_molecules import apart, embedded, g2, nowhere
from rdkit import Chem

from eqflow.chem.workers import Worker
from eqflow.data import read, write_molecules
from eqflow.errors import ShapeError, UnknownElement
from eqflow.evaluate import bonds_of, perception, with_bonds
from eqflow.geometry import Clouds

KNOWN = {
    "benzene": (g2("C6H6"), "perceived", "c1ccccc1"),
    "nitromethane": (g2("CH3NO2"), "perceived", "C[N+](=O)[O-]"),
    "ammonium": (embedded("[NH4+]"), "perceived", "[NH4+]"),
    "acetate": (embedded("CC(=O)[O-]"), "perceived", "CC(=O)[O-]"),
    "chiral": (embedded("C[C@H](O)F"), "perceived", "CC(O)F"),
    "fragments": (apart(g2("CH4"), g2("H2O")), "perceived", "C.O"),
    "one atom": (nowhere([2], 0.0), "perceived", "[He]"),
    "methyl radical": (g2("CH3"), "distance table", "[CH3]"),
    "oxygen alone": (nowhere([8], 0.0), "distance table", "[O]"),
}


@pytest.fixture(scope="module")
def molecules():
    return Clouds.join([cloud for cloud, _, _ in KNOWN.values()])


def test_each_known_molecule_has_its_bonds_and_says_where_they_are_from(molecules):
    found = list(with_bonds(molecules))
    assert [one.GetProp("bonds") for one in found] == [origin for _, origin, _ in KNOWN.values()]
    for molecule, (_, _, smiles) in zip(found, KNOWN.values(), strict=True):
        Chem.SanitizeMol(molecule)
        assert Chem.MolToSmiles(Chem.RemoveHs(molecule), isomericSmiles=False) == smiles


def test_atoms_keep_their_order_and_their_positions_bit_by_bit(molecules):
    back = Clouds.from_rdkit(list(with_bonds(molecules)))
    assert torch.equal(back.x, molecules.x)
    assert torch.equal(back.numbers, molecules.numbers)
    assert torch.equal(back.total_charges, molecules.total_charges)


def test_what_is_written_is_read_by_rdkit_as_the_same_molecules(tmp_path, molecules):
    path = tmp_path / "a.sdf"
    single = molecules.to(torch.float32)
    write_molecules(with_bonds(single), path, single.x.dtype)
    for molecule, (_, origin, smiles) in zip(
        Chem.SDMolSupplier(str(path)), KNOWN.values(), strict=True
    ):
        assert Chem.MolToSmiles(molecule, isomericSmiles=False) == smiles
        assert molecule.GetPropsAsDict() == {"bonds": origin}
    back = read(path)
    torch.testing.assert_close(back.x, single.x.double(), rtol=0, atol=1e-14)
    assert torch.equal(back.total_charges, molecules.total_charges)


def test_a_charge_that_is_given_counts_instead_of_those_of_the_atoms():
    ammonium = replace(embedded("[NH4+]"), charges=None)
    (neutral,), (charged,) = with_bonds(ammonium), with_bonds(ammonium, charge=1)
    assert neutral.GetProp("bonds") == "distance table"
    assert charged.GetProp("bonds") == "perceived"
    assert charged.GetAtomWithIdx(0).GetFormalCharge() == 1


def test_known_charges_stay_where_the_table_says_the_bonds():
    methyl = replace(g2("CH3"), charges=torch.tensor([0, 0, 0, -2]))
    (molecule,) = with_bonds(methyl)
    assert molecule.GetProp("bonds") == "distance table"
    assert [atom.GetFormalCharge() for atom in molecule.GetAtoms()] == [0, 0, 0, -2]
    (impossible,) = with_bonds(replace(methyl, charges=torch.tensor([0, 0, 2, 99])))
    assert not any(atom.GetFormalCharge() for atom in impossible.GetAtoms())


def test_one_worker_perceives_them_all_and_only_what_is_asked_for(monkeypatch):
    started, asked = [], []

    class Counted(Worker):
        def __init__(self, *arguments):
            started.append(arguments)
            super().__init__(*arguments)

        def __call__(self, argument):
            asked.append(argument)
            return super().__call__(argument)

    monkeypatch.setattr(perception, "Worker", Counted)
    some = with_bonds(Clouds.join([g2("CH4"), g2("H2O"), g2("CH3")]))
    assert not started
    assert next(some).GetNumBonds() == 4
    assert len(asked) == 1
    assert [one.GetNumBonds() for one in some] == [2, 3]
    assert (len(started), len(asked)) == (1, 3)


def test_bonds_of_the_table_become_those_of_rdkit():
    bonds = bonds_of(Clouds.join([g2("CO2"), nowhere([6, 1]), g2("C2H2")]))
    found = list(bonds.to_rdkit())
    assert [one.GetNumBonds() for one in found] == [2, 0, 3]
    orders = [bond.GetBondTypeAsDouble() for one in found for bond in one.GetBonds()]
    assert orders == bonds.orders.tolist()


def test_points_and_charges_that_do_not_fit_are_refused_at_once():
    with pytest.raises(UnknownElement):
        with_bonds(Clouds(torch.zeros(2, 3), torch.tensor([0, 2])))
    with pytest.raises(ShapeError, match="2 charges for 1"):
        with_bonds(g2("CH4"), charge=[0, 0])


def test_atoms_known_to_be_neutral_keep_it_and_the_bonds_are_of_the_table():
    (nitro,) = with_bonds(g2("CH3NO2"), charges_are_known=True)
    assert nitro.GetProp("bonds") == "distance table"
    assert not any(atom.GetFormalCharge() for atom in nitro.GetAtoms())
    (acetate,) = with_bonds(embedded("CC(=O)[O-]"), charges_are_known=True)
    assert acetate.GetProp("bonds") == "perceived"
