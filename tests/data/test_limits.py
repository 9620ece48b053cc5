"""What a file may ask for: its promises against what is there and against memory; its unit."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import finish, start
from rdkit import Chem
from rdkit.Chem import AllChem

from eqflow.chem.bare_molfile import bare_molfile
from eqflow.chem.molfile import read_molfile
from eqflow.data import limits, numpy_files, read
from eqflow.data.text import open_lines
from eqflow.data.units import charge_doubt, unit_doubt
from eqflow.errors import DataError, MalformedRecord
from eqflow.geometry import Clouds
from eqflow.train.config import ModelConfig
from eqflow.train.room import pairs_notice


def test_free_memory_is_no_more_than_the_machine_and_its_container_have() -> None:
    free = limits.free_memory()
    assert free is not None
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def container(folder: Path, version: int, limit: int | str, used: int, **figures: int) -> Path:
    """The files of control groups in which a container's limit and use stand."""
    if version == 2:
        names, total = ("memory.max", "memory.current", "memory.stat"), ""
    else:
        folder, total = folder / "memory", "total_"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    folder.mkdir(parents=True)
    lines = [f"{total}{name} {value}" for name, value in figures.items()]
    if total:  # what the group keeps itself, without those below it
        lines = [*(f"{name} 7" for name in figures), *lines]
    texts = (str(limit), str(used), "\n".join(lines))
    for name, text in zip(names, texts, strict=True):
        (folder / name).write_text(text + "\n")
    return folder if version == 2 else folder.parent


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_a_container_keeps_in_memory_do_not_count_as_taken(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 40_000  # so little that the machine has more
    np.save(tmp_path / "a.npy", np.zeros((10, 100, 3)))
    np.savez(tmp_path / "a.npz", x=np.zeros((1000, 3)), ptr=np.array([0, 1000]))
    kinds = {"anon": 9000, "inactive_file": 29_000, "active_file": 1500, "slab": 100}
    cases = {
        "full of files": (size, 39_900, kinds, 30_600),
        "full of a program's memory": (size, 39_900, {"anon": 39_000, "inactive_file": 400}, 500),
        "without figures": (size, 39_900, {}, 100),
        "more than its limit": (size, 50_000, {"anon": 50_000}, 0),
        "files of another moment": (size, 100, kinds, size),
    }
    for name, (limit, used, figures, left) in cases.items():
        folder = container(tmp_path / name, version, limit, used, **figures)
        monkeypatch.setattr(limits, "_GROUPS", folder)
        assert limits.free_memory() == left, name
        for file in ("a.npy", "a.npz"):
            if left > 25_000:
                assert len(read(tmp_path / file)) > 0
            else:
                with pytest.raises(DataError, match="of memory that are free"):
                    read(tmp_path / file)
    monkeypatch.setattr(limits, "_GROUPS", container(tmp_path / "none", version, "max", 9, anon=9))
    assert (limits.free_memory() or 0) > 10 * size


def test_addresses_that_a_process_has_taken_are_not_free_under_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, page = 10_000_000, os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (soft, soft))
    monkeypatch.setattr(limits, "_STATM", tmp_path / "statm")
    assert limits.free_memory() == soft  # the system does not say
    (tmp_path / "statm").write_text("1000 200 50 1 0 800 0\n")
    assert limits.free_memory() == soft - 1000 * page
    (tmp_path / "statm").write_text(f"{soft} 200 50 1 0 800 0\n")
    assert limits.free_memory() == 0


@pytest.mark.slow
def test_under_a_real_limit_of_addresses_a_process_may_take_what_is_said_to_be_free() -> None:
    program = (
        "import resource, numpy as np\n"
        "from eqflow.data.limits import _addresses, free_memory\n"
        "taken = _addresses()\n"
        "assert taken > 10_000_000, taken\n"
        "limit = taken + 300_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "free = free_memory()\n"
        "assert 200_000_000 < free <= 300_000_000, free\n"
        "np.ones(free - 20_000_000, np.uint8)\n"
        "try:\n"
        "    np.ones(free + 20_000_000, np.uint8)\n"
        "except MemoryError:\n"
        "    print('no more')\n"
    )
    code, out, err = finish(start([], program=["-c", program]))
    assert (code, out, err) == (0, "no more\n", "")


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


def test_structures_that_cannot_state_charges_are_told_beside_others() -> None:
    x, ptr, numbers = torch.eye(3), torch.tensor([0, 1, 2, 3]), torch.tensor([7, 8, 1])
    charges, sources = torch.tensor([1, 0, 0]), ("a.sdf:1", "b.xyz:1", "c.extxyz:3")
    mixed = Clouds(x, ptr, numbers, charges=charges, source=sources)
    assert charge_doubt(mixed).startswith("1 structures are of .xyz files")
    assert not charge_doubt(Clouds(x, ptr, numbers, source=sources))
    assert not charge_doubt(mixed[torch.tensor([0, 2])])
