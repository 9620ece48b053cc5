"""Damaged and foreign files in the place of checkpoints, met by the real command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from processes import eqflow
from safetensors.torch import load_file, save_file

from eqflow.cli.main import main
from eqflow.train.checkpoint import read_weights

LOOP = ["train.steps=9", "train.checkpoint_every=2", "train.tensorboard=false"]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    """One bit, among the numbers."""
    content = bytearray(path.read_bytes())
    place = 3 * len(content) // 4
    content[place] ^= 16
    path.write_bytes(content)


def html(path: Path) -> None:
    path.write_text("\n<!DOCTYPE html><html><body>Sign in to download</body></html>")


def lfs(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")


def folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def zeros(path: Path) -> None:
    """What some file systems leave of a file that was not flushed."""
    path.write_bytes(bytes(path.stat().st_size))


def other_file(path: Path) -> None:
    """A whole file of another run: whole, and not the one listed."""
    content = path.read_bytes()
    path.write_bytes(content + b"\0")


def lost_digest_of_truncated(path: Path) -> None:
    truncated(path)
    path.with_name(f"{path.name}.sha256").unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "damaged"),
    "truncated without its SHA-256": (lost_digest_of_truncated, "damaged"),
    "empty": (empty, "an empty file"),
    "one bit flipped": (flipped, "damaged"),
    "all zeros": (zeros, "damaged"),
    "another file": (other_file, "damaged"),
    "an HTML page": (html, "an HTML page"),
    "a Git LFS pointer": (lfs, "a Git LFS pointer"),
    "a folder": (folder, "a folder"),
}
EACH = pytest.mark.parametrize("name", DAMAGES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.particles(tmp_path_factory.mktemp("data") / "data.npy")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert tiny.train(data, run, *LOOP) == 0
    return run


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped after step 5, with its states of steps 4 and 5."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    tiny.train_until(data, run, 5, *LOOP)
    names = sorted(path.name for path in (run / "checkpoints").glob("*.pt"))
    assert names == ["000000004.pt", "000000005.pt"]
    return run


def tensors(run: Path) -> bytes:
    content = (run / "weights.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def assert_same(run: Path, whole: Path) -> None:
    assert tensors(run) == tensors(whole)
    rows = [(each / "metrics.csv").read_text() for each in (run, whole)]
    assert tiny.without_seconds(rows[0]) == tiny.without_seconds(rows[1])


@pytest.mark.fault(
    3,
    "the newest state is damaged, or another file or a folder",
    "a warning names it, the state before goes on, the end is bitwise the same",
)
@EACH
def test_a_run_goes_on_from_the_state_before_a_damaged_one(
    data: Path,
    stopped: Path,
    whole: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    damage, found = DAMAGES[name]
    newest = run / "checkpoints" / "000000005.pt"
    damage(newest)
    capsys.readouterr()
    assert tiny.train(data, run, *LOOP) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert str(newest) in warnings[0]
    assert found in warnings[0]
    assert "resumed at step 4" in (run / "log.txt").read_text()
    assert_same(run, whole)


@pytest.mark.fault(
    3,
    "every state is damaged",
    "refused with exit 3, each named, nothing is changed",
)
def test_where_every_state_is_damaged_nothing_begins_anew_over_it(
    data: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in (run / "checkpoints").glob("*.pt"):
        flipped(path)
    before = {path: content for path, content in tiny.contents(run).items() if path != "log.txt"}
    assert tiny.train(data, run, *LOOP) == 3
    err = capsys.readouterr().err
    assert "000000004.pt" in err
    assert "000000005.pt" in err
    assert "another run.dir" in err
    now = tiny.contents(run)
    assert {path: now[path] for path in before} == before


@pytest.mark.fault(
    3,
    "the weights are damaged, or another file or a folder, for `sample` and `score`",
    "refused with exit 3 by what was found, nothing is written",
)
@EACH
def test_damaged_weights_are_refused_by_name(
    data: Path, whole: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    damage, found = DAMAGES[name]
    damage(run / "weights.safetensors")
    for verb, more in (("sample", ["n=2"]), ("score", [f"data.path={data}"])):
        out = tmp_path / f"{verb}.{'npy' if verb == 'sample' else 'csv'}"
        assert main([verb, f"run={run}", f"out={out}", *more]) == 3
        err = capsys.readouterr().err
        assert str(run / "weights.safetensors") in err
        assert found in err
        assert "Traceback" not in err
        assert not out.exists()


@pytest.mark.fault(
    3,
    "the weights of a stopped run are damaged or a folder",
    "the run goes on from its state and writes them anew, bitwise the same",
)
@pytest.mark.parametrize("name", ["one bit flipped", "empty", "a folder"])
def test_damaged_weights_do_not_hinder_the_run_that_writes_them(
    data: Path, stopped: Path, whole: Path, tmp_path: Path, name: str
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    DAMAGES[name][0](run / "weights.safetensors")
    assert tiny.train(data, run, *LOOP) == 0
    assert_same(run, whole)
    assert read_weights(run / "weights.safetensors")


@pytest.mark.fault(
    3,
    "the metrics are torn, not UTF-8 or full of zeros, as after a power cut",
    "rows up to the checkpoint stay, the end is the same",
)
@pytest.mark.parametrize(
    "tail", [b"6,0.1", b"\0" * 700, b"\xff\xfe\x81", b'6,0.1,,"', b"\n\n,,,\n"]
)
def test_a_torn_end_of_the_metrics_is_dropped(
    data: Path, stopped: Path, whole: Path, tmp_path: Path, tail: bytes
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    for name in ("metrics.csv", "log.txt"):
        with (run / name).open("ab") as file:
            file.write(tail)
    assert tiny.train(data, run, *LOOP) == 0
    assert_same(run, whole)


@pytest.mark.fault(
    5,
    "weights of another architecture",
    "refused with exit 3: missing, unexpected and mismatched keys with shapes",
)
def test_weights_of_another_architecture_are_refused_with_what_differs(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    _, config, statistics = read_weights(whole / "weights.safetensors")
    held = load_file(whole / "weights.safetensors")
    names = sorted(held)
    wide = held.pop(names[1])
    del held[names[0]]
    tensors_now = {**held, names[1]: torch.zeros(5, 7), "extra.weight": torch.zeros(2, 3)}
    metadata = {"format": "1", "config": json.dumps(config), "statistics": json.dumps(statistics)}
    save_file(tensors_now, path, metadata)
    assert main(["sample", f"run={path}", f"out={tmp_path / 'x.npy'}"]) == 3
    err = capsys.readouterr().err
    assert f"missing {names[0]}" in err
    assert "unexpected extra.weight" in err
    assert f"{names[1]} has shape (5, 7), expected {tuple(wide.shape)}" in err
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.slow
@pytest.mark.fault(
    5,
    "weights and states of a newer format",
    "refused with exit 3 and the version that is needed",
)
def test_a_newer_format_is_refused_with_the_version_that_is_needed(
    data: Path, stopped: Path, tmp_path: Path, injected: Callable[[], None]
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in (run / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        torch.save({**state, "format": 2, "eqflow": "9.1.0"}, path)
        path.with_name(f"{path.name}.sha256").unlink()
    path = run / "weights.safetensors"
    _, config, statistics = read_weights(path)
    metadata = {"config": json.dumps(config), "statistics": json.dumps(statistics)}
    save_file(load_file(path), path, {**metadata, "format": "2", "eqflow": "9.1.0"})
    path.with_name(f"{path.name}.sha256").unlink()
    for words in (
        tiny.words(data, run, *LOOP),
        ["sample", f"run={run}", f"out={tmp_path / 'x.npy'}"],
    ):
        code, _, err = eqflow(words)
        assert code == 3, err
        assert re.search(r"format 2, but this eqflow reads up to 1; install eqflow 9\.1\.0", err)
        assert "Traceback" not in err
        injected()
