"""The real command in a process of its own: signals, pipes, terminals, other folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from processes import ROOT, environment, finish, start, wait_for

LONG = [
    "train.steps=400",
    "train.checkpoint_every=7",
    "train.log_every=3",
    "train.validate_every=50",
]


def tensors(folder: Path) -> bytes:
    content = (folder / "weights.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.particles(tmp_path_factory.mktemp("data") / "data.npy")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert tiny.train(data, folder, *LONG) == 0
    return folder


def assert_same_run(folder: Path, whole: Path) -> None:
    assert tensors(folder) == tensors(whole)
    first, second = ((run / "metrics.csv").read_text() for run in (folder, whole))
    assert tiny.without_seconds(first) == tiny.without_seconds(second)
    assert not list(folder.rglob(".eqflow-*"))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_tells_how_to_go_on(
    data: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "run"
    words = tiny.words(data, folder, *LONG)
    program = (str(ROOT / "train.py"),) if code == 143 else ("-m", "eqflow")
    process = start(words[1:] if code == 143 else words, program=program)
    wait_for(folder / "metrics.csv", process)
    process.send_signal(number)
    found, out, err = finish(process)
    assert found == code
    assert f"eqflow train data.path={data}" in out.splitlines()[-1]
    assert err == "stopping after this step; once more leaves at once\n"
    assert tiny.train(data, folder, *LONG) == 0
    assert_same_run(folder, whole)


def test_a_closed_pipe_does_not_stop_a_run_and_is_no_error(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "eqflow", *tiny.words(data, folder)],
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    _, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert (folder / "summary.json").exists()


def test_help_into_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m eqflow train --help | head -1"
    result = subprocess.run(
        command, shell=True, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0
    assert result.stdout.startswith("eqflow train")
    assert result.stderr == ""


def test_the_scripts_at_the_top_work_from_another_folder(data: Path, tmp_path: Path) -> None:
    words = ["run=run", "n=2", "out=samples.npy"]
    assert tiny.train(data, tmp_path / "run") == 0
    code, out, err = finish(start(words, program=(str(ROOT / "sample.py"),), cwd=tmp_path))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith("samples.npy")


@pytest.mark.parametrize("options", [[], pytest.param(["-O"], marks=pytest.mark.slow)])
def test_without_a_terminal_lines_are_plain_also_under_minus_o(
    data: Path, tmp_path: Path, options: list[str]
) -> None:
    folder = tmp_path / "run"
    process = subprocess.run(
        [sys.executable, *options, "-m", "eqflow", *tiny.words(data, folder)],
        env=environment(NO_COLOR="1", TERM="dumb", HOME=str(tmp_path / "no home")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "\r" not in process.stdout
    assert "\x1b" not in process.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
