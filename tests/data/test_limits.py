"""What a file may ask for: its promises against what is there and against memory; its unit."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from eqflow.chem.bare_molfile import bare_molfile
from eqflow.chem.molfile import read_molfile
from eqflow.data import limits, numpy_files, read
from eqflow.data.text import open_lines
from eqflow.data.units import unit_doubt
from eqflow.errors import DataError, MalformedRecord
from eqflow.geometry import Clouds
from eqflow.train.config import ModelConfig
from eqflow.train.room import pairs_notice


def test_free_memory_is_no_more_than_the_machine_and_its_container_have() -> None:
    free = limits.free_memory()
    assert free is not None
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_arrays_beyond_the_free_memory_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 3)), ptr=np.array([0, 1000]))
    np.save(tmp_path / "a.npy", np.zeros((10, 100, 3)))
    monkeypatch.setattr(limits, "free_memory", lambda: 5000)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(DataError, match=r"24\.\d kB, expected at most the 5 kB of memory"):
            read(tmp_path / name)
    assert set(numpy_files.load_arrays(tmp_path / "a.npz", ["ptr"])) == {"ptr"}


def test_an_archive_that_cannot_unpack_to_what_it_says_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(1000))
    with zipfile.ZipFile(path) as archive:
        (size,) = [member.file_size for member in archive.infolist()]
    content = path.read_bytes().replace(
        size.to_bytes(4, "little"), (4_000_000_000).to_bytes(4, "little")
    )
    path.write_bytes(content)
    with pytest.raises(DataError, match="said to unpack to 4 GB"):
        numpy_files.load_arrays(path)


def test_a_line_longer_than_the_limit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eqflow.data.text.LONGEST_LINE", 10)
    path = tmp_path / "a.xyz"
    path.write_text("012345678\n0123456789a\n")
    with open_lines(path) as lines, pytest.raises(MalformedRecord, match=r"a\.xyz:2: found a line"):
        lines.take(3)


@pytest.mark.parametrize(
    "smiles", ["CC(=O)[O-]", "c1ccccc1[N+](=O)[O-]", "[Na+].[Cl-]", "[2H]OC#N"]
)
@pytest.mark.parametrize("version", ["V2000", "V3000"])
def test_without_its_bonds_a_molfile_has_the_same_atoms(smiles: str, version: str) -> None:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    block = Chem.MolToMolBlock(molecule, forceV3000=version == "V3000")
    whole = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
    bare = "\n".join(bare_molfile(block.split("\n"))) + "\n"
    assert Chem.MolFromMolBlock(bare, sanitize=False, removeHs=False).GetNumBonds() == 0
    found = read_molfile(block)
    assert found is not None
    assert found.numbers.tolist() == [atom.GetAtomicNum() for atom in whole.GetAtoms()]
    assert found.charges.tolist() == [atom.GetFormalCharge() for atom in whole.GetAtoms()]
    assert (found.x == whole.GetConformer().GetPositions()).all()


def test_the_right_unit_raises_no_doubt_and_another_is_named() -> None:
    water = torch.tensor([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])
    for factor, says in ((1, ""), (0.1, "nanometres"), (1.8897, "bohr"), (100, "picometres")):
        clouds = Clouds(water * factor, torch.tensor([0, 3]), torch.tensor([8, 1, 1]))
        assert says in unit_doubt(clouds)
        assert bool(unit_doubt(clouds)) == bool(says)
        assert not unit_doubt(Clouds(clouds.x, clouds.ptr))
    argon = Clouds(
        torch.tensor([[0.0, 0, 0], [0, 0, 3.76]]), torch.tensor([0, 2]), torch.full((2,), 18)
    )
    assert not unit_doubt(argon)


def test_a_structure_whose_pairs_exceed_memory_is_named_unless_there_is_a_cutoff() -> None:
    clouds = Clouds(torch.zeros(3_000_001, 3), torch.tensor([0, 1, 3_000_001]), source=("a", "b"))
    cpu = torch.device("cpu")
    line = pairs_notice(clouds, ModelConfig(width=64), cpu)
    assert line.startswith("b has 3,000,000 points")
    assert "8,999,997,000,000 pairs" in line
    assert not pairs_notice(clouds, ModelConfig(width=64, cutoff=1.0), cpu)
    assert not pairs_notice(clouds, ModelConfig(width=64), torch.device("cuda"))
    assert not pairs_notice(clouds[0], ModelConfig(width=64), cpu)
