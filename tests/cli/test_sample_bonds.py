"""`eqflow sample` to SDF: bonds where there are elements, and where they are from."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from rdkit import Chem

from eqflow.cli.main import main
from eqflow.data import read

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint model of molecules."""
    return tiny.joint_run(tmp_path_factory.mktemp("joint") / "run")


@pytest.fixture(scope="module")
def positions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the positions of known elements."""
    base = tmp_path_factory.mktemp("positions")
    words = ["data.dimension=3", "data.elements=H,O,F", "data.validation=0.1", "data.test=0.1"]
    assert tiny.train(tiny.molecules(base / "molecules.xyz"), base / "run", *words) == 0
    return base / "run"


def origins(path: Path) -> list[str]:
    text = path.read_text().split("> <bonds>\n")[1:]
    return [part.splitlines()[0] for part in text]


@pytest.mark.parametrize("model", ["joint", "positions"])
def test_molecules_have_bonds_and_the_summary_counts_them(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: Captured
) -> None:
    run, out = request.getfixturevalue(model), tmp_path / "s.sdf"
    words = ["sample", f"run={run}", "n=6", "batch=4"]
    assert main([*words, f"out={out}"]) == 0
    found = origins(out)
    perceived, table = found.count("perceived"), found.count("distance table")
    assert perceived + table == 6
    said = f"bonds: {perceived} molecules as RDKit perceives them, {table} by the distance table"
    assert said in capsys.readouterr().out
    assert main([*words, f"out={tmp_path / 's.npz'}"]) == 0
    drawn, back = read(tmp_path / "s.npz"), read(out)
    torch.testing.assert_close(back.x, drawn.x.double(), rtol=0, atol=1e-14)
    assert torch.equal(back.numbers, drawn.numbers)
    assert not list(tmp_path.glob(".eqflow-*"))


def test_hydrogen_fluoride_of_any_length_near_its_own_is_bonded(
    positions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.sdf"
    assert main(["sample", f"run={positions}", "n=40", "formula=HF", f"out={out}"]) == 0
    near = [
        molecule.GetNumBonds()
        for molecule in Chem.SDMolSupplier(str(out), sanitize=False, removeHs=False)
        if abs(Chem.Get3DDistanceMatrix(molecule)[0, 1] - 0.92) < 0.05
    ]
    assert near
    assert near == [1] * len(near)


def test_no_bonds_where_none_are_wanted_or_nothing_has_an_element(
    joint: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "s.sdf"
    assert main(["sample", f"run={joint}", "n=2", f"out={out}", "bonds=false"]) == 0
    assert "bonds:" not in capsys.readouterr().out
    assert not origins(out)
    assert "BEGIN BOND" not in out.read_text()
    data = tiny.particles(tmp_path / "points.npy")
    assert tiny.train(data, tmp_path / "run") == 0
    capsys.readouterr()
    assert main(["sample", f"run={tmp_path / 'run'}", "n=2", f"out={out}"]) == 0
    assert "bonds:" not in capsys.readouterr().out
    assert read(out, dimension=2).sizes.tolist() == [3, 3]
