"""A folder of structures as the data of training and scoring."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tiny

from eqflow.cli.main import main
from eqflow.train.folder import fingerprint

Captured = pytest.CaptureFixture[str]
WORDS = ["data.dimension=3", "data.validation=0.2", "data.test=0.2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "molecules"
    place.mkdir()
    for name, count in (("a.xyz", 12), ("b.xyz", 18)):
        tiny.molecules(place / name, count)
    (place / "notes.txt").write_text("where they are from")
    return place


def test_a_folder_is_trained_on_recorded_resumed_and_scored(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    run, out = tmp_path / "run", tmp_path / "scores.csv"
    assert tiny.train(folder, run, *WORDS) == 0
    recorded = json.loads((run / "provenance.json").read_text())["data"]
    assert recorded == fingerprint(str(folder))
    assert len(recorded["sha256"]) == 64
    assert tiny.train(folder, run, *WORDS) == 0
    assert main(["score", f"run={run}", f"data.path={folder}", f"out={out}"]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert rows[-1]["source"].startswith(str(folder / "b.xyz"))
    assert "30 structures" in capsys.readouterr().out


def test_a_bad_file_in_a_folder_stops_or_is_listed(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    (folder / "c.sdf").write_text("cut off")
    assert tiny.train(folder, tmp_path / "run", *WORDS) == 3
    assert "c.sdf:1: found a record of 1 lines" in capsys.readouterr().err
    assert tiny.train(folder, tmp_path / "run", *WORDS, "data.on_problem=skip") == 7
    assert "skipped: " in capsys.readouterr().out


def test_a_folder_without_structures_is_refused(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "none").mkdir()
    assert tiny.train(tmp_path / "none", tmp_path / "run", *WORDS) == 3
    assert "at least one file that ends in .xyz" in capsys.readouterr().err
