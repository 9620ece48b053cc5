"""A bug ends with code 1, one line that names it, and a report to send."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
from processes import environment, eqflow

from eqflow.cli import crash
from eqflow.cli.main import main
from eqflow.errors import StorageError

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

BUG = """
import sys
from eqflow.train.run import Run

def broken(self, trainer):
    password = "swordfish"
    raise LookupError("an injected bug\\n\\x1b[2Jin two lines")

Run.describe = broken
from eqflow.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.particles(tmp_path / "data.npy")


def reports(folder: Path) -> list[Path]:
    return sorted(folder.glob("eqflow-crash-*"))


def injected(monkeypatch: Patch, error: BaseException, where: str = "describe") -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"eqflow.train.run.Run.{where}", broken)


def test_a_bug_is_told_in_two_lines_and_reported_in_the_run_folder(
    data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs here" / "α"
    words = tiny.words(data, folder)
    secret = environment(MY_TOKEN="a-secret-of-mine")
    program = ["-c", BUG]
    code, _, err = eqflow(words, program=program, env=secret, cwd=tmp_path)
    assert code == 1
    first, second = err.splitlines()
    assert first.startswith("eqflow train: this is a bug in eqflow: LookupError: an injected bug")
    assert "Traceback" not in err
    assert "\x1b" not in err
    (report,) = reports(folder)
    assert str(report) in second
    text = report.read_text("utf-8")
    for expected in (
        "LookupError: an injected bug",
        "Traceback (most recent call last)",
        "abstract_run.py",
        f"'run.dir={folder}'",
        "torch 2.",
        sys.platform,
    ):
        assert expected in text
    assert "a-secret-of-mine" not in text
    assert "MY_TOKEN" not in text
    assert "PYTHONPATH" not in text
    assert not reports(tmp_path)
    assert not list(folder.glob(".eqflow-*"))
    # The folder can be used as if nothing had happened.
    assert tiny.train(data, folder) == 0


def test_the_report_names_the_place_within_the_package(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    injected(monkeypatch, ZeroDivisionError("x"), "prepare")
    assert tiny.train(data, tmp_path / "run") == 1
    assert "ZeroDivisionError: x (eqflow/train/abstract_run.py:" in capsys.readouterr().err


def test_before_there_is_a_run_folder_it_goes_to_the_current_one(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    injected(monkeypatch, TypeError("early"), "prepare")
    assert tiny.train(data, tmp_path / "run") == 1
    (report,) = reports(here)
    assert report.name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_where_no_folder_can_be_written_the_traceback_is_printed(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    tried = []

    def full(path: Path, text: str) -> None:
        tried.append(path.parent)
        raise StorageError("full")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(crash.storage, "write_text", full)
    monkeypatch.setattr(crash.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    injected(monkeypatch, TypeError("lost"), "prepare")
    (tmp_path / "run").mkdir()
    assert tiny.train(data, tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert tried == [tmp_path / "run", Path(), tmp_path / "temporary"]
    assert "Traceback" in err
    assert "please report it with the lines above" in err


def test_a_bug_in_help_and_before_any_verb_is_reported_too(
    tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eqflow.cli.main.overview", broken)
    assert main(["--help"]) == 1
    assert "KeyError: 'x'" in capsys.readouterr().err
    assert len(reports(tmp_path)) == 1


def test_what_the_machine_refuses_is_no_bug(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    for error in (
        OSError(28, "No space left on device", "/tmp/some/file"),
        PermissionError(13, "Permission denied", "/tmp/some/file"),
    ):
        injected(monkeypatch, error, "prepare")
        assert tiny.train(data, tmp_path / "run") == 6
        assert f"/tmp/some/file: {error.strerror}" in capsys.readouterr().err
    injected(monkeypatch, FileNotFoundError(2, "No such file or directory", "x"), "prepare")
    assert tiny.train(data, tmp_path / "run") == 1
    assert len(reports(tmp_path)) == 1


def test_a_verb_without_a_name_is_reported_as_well(tmp_path: Path, monkeypatch: Patch) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("x")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eqflow.cli.import_enf.require_possible", broken)
    monkeypatch.setattr("eqflow.cli.import_enf._new_folder", broken)
    assert main(["import-enf", "weights=x.npz"]) == 1
    assert len(reports(tmp_path)) == 1
