"""SMILES: embedded as RDKit does, the same every time; bad lines by their number."""

import pytest
import torch
from rdkit import Chem

from eqflow.chem.embedding import embedded
from eqflow.data import read, read_report
from eqflow.errors import DataError, EmptyData, MalformedRecord

MOLECULES = ["CCO", "C[N+](C)(C)CC(=O)[O-]", "[NH4+]", "c1ccccc1", "[He]", "C[C@H](O)F", "[CH3]"]


@pytest.fixture
def file(tmp_path):
    def make(text: str, name: str = "a.smi"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def test_each_line_is_a_molecule_with_hydrogens_charges_and_its_own_geometry(file):
    clouds = read(file("SMILES name\n# a comment\n\n" + "".join(f"{s}\tx y\n" for s in MOLECULES)))
    assert [source.rsplit(":", 1)[1] for source in clouds.source] == [str(4 + i) for i in range(7)]
    for cloud, smiles in zip(clouds, MOLECULES, strict=True):
        drawn = Chem.AddHs(Chem.MolFromSmiles(smiles))
        assert cloud.numbers.tolist() == [atom.GetAtomicNum() for atom in drawn.GetAtoms()]
        assert cloud.charges.tolist() == [atom.GetFormalCharge() for atom in drawn.GetAtoms()]
        for bond in drawn.GetBonds():
            one, other = cloud.x[[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()]]
            assert 0.9 < float((one - other).norm()) < 1.7
    assert float(clouds.x.norm(dim=1).max()) < 10


def test_the_stereochemistry_is_that_of_the_text(file):
    texts = ("C[C@H](O)F", "C[C@@H](O)F", "C/C=C/C", "C/C=C\\C")
    for smiles, cloud in zip(texts, read(file("\n".join(texts))), strict=True):
        drawn = Chem.AddHs(Chem.MolFromSmiles(smiles))
        molecule = Chem.RWMol(drawn)
        conformer = Chem.Conformer(molecule.GetNumAtoms())
        conformer.SetPositions(cloud.x.numpy())
        molecule.AddConformer(conformer)
        Chem.RemoveStereochemistry(molecule)
        Chem.AssignStereochemistryFrom3D(molecule)
        assert Chem.MolToSmiles(molecule) == Chem.MolToSmiles(drawn)


def test_a_structure_is_a_function_of_its_text_alone(file):
    among = read(file("CCO\nOCCC\nCCCO\nCCCO name\n"))
    alone = torch.tensor(embedded("CCCO")["positions"], dtype=torch.float64).reshape(-1, 3)
    assert torch.equal(among[2].x, alone)
    assert torch.equal(among[3].x, alone)
    assert not torch.equal(among[1].x, alone)


BAD = {
    "no SMILES": ("ethanol", "that RDKit reads"),
    "valence": ("C(C)(C)(C)(C)C", "that RDKit reads"),
    "ring not closed": ("C1CC", "that RDKit reads"),
    "a group": ("*CC", "an element for each atom"),
    "fragments": ("[Na+].[Cl-]", "one molecule, not 2"),
    "strained beyond geometry": ("C12C3C4C1C5C2C3C45C6(C7)CC67C#CC#C1CC1", "RDKit"),
}


def test_bad_lines_are_named_by_their_numbers_and_can_be_left_out(file):
    path = file("CCO\n" + "".join(f"{smiles} name\n" for smiles, _ in BAD.values()) + "CO\n")
    clouds, skipped = read_report(path, on_problem="skip")
    assert clouds.sizes.tolist() == [9, 6]
    for line, message, (smiles, words) in zip(range(2, 9), skipped, BAD.values(), strict=False):
        assert message.startswith(f"{path}:{line}: found {smiles!r}, expected ")
        assert words in message
    assert len(skipped) == len(BAD)
    with pytest.raises(MalformedRecord, match=r"a\.smi:2: found 'ethanol', expected a SMILES"):
        read(path)


def test_what_takes_too_long_is_given_up(file, monkeypatch):
    monkeypatch.setattr("eqflow.data.smi.SECONDS", 1e-3)
    with pytest.raises(
        MalformedRecord, match=r":1: found 'C+', expected .*did not end within 0\.001"
    ):
        read(file("C" * 30))


def test_nothing_to_read_is_empty_data_and_binary_is_a_data_error(file, tmp_path):
    with pytest.raises(EmptyData):
        read(file("\n# nothing\n"))
    (tmp_path / "b.smi").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(DataError):
        read(tmp_path / "b.smi")


def test_elements_without_parameters_are_embedded_and_not_relaxed():
    found = embedded("C[Se]C")
    assert sorted(found["numbers"]) == [1] * 6 + [6, 6, 34]
