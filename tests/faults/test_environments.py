"""Wherever a command is started: no terminal, closed descriptors, strange names, no home."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from processes import COMMAND, PATIENCE, environment, finish, start, wait_for

from eqflow.cli.main import main

PYTHON = shlex.join([sys.executable, *COMMAND])
NAMES = [
    "with spaces, 'quotes\"",
    "-ünï ☃ 日本",
    "new\nline",
    " around ",
    "tab\tand\x1b[31mred",
    "quote\"s and 'more'",
    "-dash",
    "--help",
    "a=b",
    "{brace}",
    "$HOME",
    "~",
    "[1,2]",
    "a,b",
    "null",
    "1e5",
    "back\\slash",
    "100%",
    "#hash",
    "a:b",
    "x" * 200,
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.particles(tmp_path_factory.mktemp("data") / "data.npy")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert tiny.train(data, run) == 0
    return run


def shell(command: str, cwd: Path | None = None, **variables: str) -> tuple[int, str, str]:
    """A command line, in an environment with some variables; those that are empty are unset."""
    env = {key: value for key, value in environment(**variables).items() if value}
    done = subprocess.run(
        ["bash", "-c", command],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.fault(
    17,
    "folders and files with spaces, quotes, line breaks, a leading dash, 200 letters",
    "training, resuming, sampling and scoring work, and write what was named",
)
@pytest.mark.parametrize(
    "name",
    [*NAMES[:3], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[3:])],
)
def test_any_name_is_a_name(
    data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name
    place.mkdir()
    own = Path(shutil.copy(data, place / f"{name[:190]}.npy"))
    run, drawn, scores = place / name, place / f"{name[:190]} x.npy", place / f"{name[:190]}.csv"
    quick = ["train.steps=2", "train.validate_every=2", "train.tensorboard=false"]
    assert tiny.train(own, run, *quick) == 0, capsys.readouterr().err
    assert tiny.train(own, run, *quick, "train.steps=3") == 0, capsys.readouterr().err
    assert "resumed at step 2" in (run / "log.txt").read_text()
    assert main(["sample", f"run={run}", "n=2", f"out={drawn}"]) == 0, capsys.readouterr().err
    assert main(["score", f"run={run}", f"data.path={drawn}", f"out={scores}"]) == 0
    assert drawn.exists()
    assert scores.exists()
    assert (run / "weights.safetensors").exists()
    out = capsys.readouterr().out
    assert "\x1b" not in out
    expected = {own.name, run.name, drawn.name, scores.name}
    assert {path.name for path in place.iterdir()} >= expected
    assert not [path for path in place.rglob(".eqflow-*") if "journal" not in path.name]


def test_relative_names_are_names_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-dash", "a=b", "1e5"):
        shutil.copy(data, f"{name}.npy")
        words = tiny.words(Path(f"{name}.npy"), Path(name), "train.steps=2")
        assert main(words) == 0, name
        assert Path(name, "weights.safetensors").is_file(), name


@pytest.mark.fault(
    17,
    "a locale without letters beyond ASCII, no `HOME`, `TERM=dumb`, `COLUMNS=1`",
    "works, plain lines in ASCII",
)
def test_without_letters_home_or_columns_training_works(data: Path, tmp_path: Path) -> None:
    words = shlex.join(tiny.words(data, tmp_path / "rün"))
    code, out, err = shell(
        f"{PYTHON} {words}",
        LANG="C",
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
        HOME="",
        XDG_CACHE_HOME="",
        USER="",
        LOGNAME="",
        TERM="dumb",
        NO_COLOR="1",
        COLUMNS="1",
    )
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "\\xb7 loss" in out
    assert "\r" not in out
    assert (tmp_path / "rün" / "summary.json").exists()


CLOSED = {
    "standard output": ">&-",
    "standard error": "2>&-",
    "standard input": "<&-",
    "all three": "<&- >&- 2>&-",
    "output to a full disk": ">/dev/full",
    "output and errors to a full disk": ">/dev/full 2>&1",
    "output to a pipe nobody reads": "> >(exec true)",
}


@pytest.mark.slow
@pytest.mark.fault(
    17,
    "standard input, output or error closed, full or a pipe that nobody reads",
    "the work is done in silence, with its exit code",
)
@pytest.mark.parametrize("closed", CLOSED)
def test_work_is_done_though_nobody_can_be_told(
    data: Path, trained: Path, tmp_path: Path, closed: str, injected: Callable[[], None]
) -> None:
    how = CLOSED[closed]
    commands = {
        "train": tiny.words(data, tmp_path / "run"),
        "sample": ["sample", f"run={trained}", "n=3", f"out={tmp_path / 'x.npy'}"],
        "wrong": ["train", "no.such.key=1"],
    }
    codes = {}
    for name, words in commands.items():
        code, out, err = shell(f"{PYTHON} {shlex.join(words)} {how}")
        codes[name] = code
        assert "Traceback" not in out + err, (name, out, err)
        assert "Exception" not in out + err, (name, out, err)
        injected()
    assert codes == {"train": 0, "sample": 0, "wrong": 2}
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "x.npy").exists()
    weights = (tmp_path / "run" / "weights.safetensors").read_bytes()
    size = int.from_bytes(weights[:8], "little")
    assert json.loads(weights[8 : 8 + size])["__metadata__"]["format"] == "1"


@pytest.mark.slow
@pytest.mark.fault(
    17,
    "every verb prints into a pipe that is closed at once",
    "no traceback, and its exit code",
)
def test_every_verb_survives_a_closed_pipe(
    data: Path, trained: Path, tmp_path: Path, injected: Callable[[], None]
) -> None:
    verbs = [
        (["score", f"run={trained}", f"data.path={data}", f"out={tmp_path / 'x.csv'}"], 0),
        (["check", f"run={trained}"], 0),
        (["sample", f"run={data}", f"out={tmp_path / 'y.npy'}"], 3),
        (["--version"], 0),
        (["nonsense"], 2),
        ([], 2),
    ]
    for words, expected in verbs:
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.Popen(
            [sys.executable, *COMMAND, *words],
            env=environment(),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE if expected == 0 else writer,
            text=True,
        )
        os.close(writer)
        code, _, err = finish(process)
        assert (code, err or "") == (expected if words else code, ""), words
        injected()


@pytest.mark.slow
@pytest.mark.fault(
    17,
    "SIGTERM while standard error is a pipe that nobody reads any more",
    "saved, exit 143",
)
def test_a_signal_is_heeded_though_nobody_reads(data: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    words = tiny.words(data, tmp_path / "run", "train.steps=9000", "train.validate_every=900")
    process = start(words, stdout=writer, stderr=writer)
    os.close(writer)
    wait_for(tmp_path / "run" / "metrics.csv", process)
    os.close(reader)
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    assert process.returncode == 143
    assert list((tmp_path / "run" / "checkpoints").glob("*.pt"))


@pytest.mark.slow
@pytest.mark.fault(
    17,
    "a home, caches and a folder for temporary files that cannot be written or are not there",
    "training, sampling, scoring and checks work and print nothing more",
)
@pytest.mark.parametrize("place", ["/proc/1", "/nowhere"])
def test_a_home_that_cannot_be_written_is_not_needed(
    data: Path, trained: Path, tmp_path: Path, place: str, injected: Callable[[], None]
) -> None:
    names = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")
    for words in (
        tiny.words(data, tmp_path / "run"),
        ["sample", f"run={trained}", "n=3", f"out={tmp_path / 'x.npy'}"],
        ["score", f"run={trained}", f"data.path={data}", f"out={tmp_path / 'x.csv'}"],
        ["check", f"run={trained}"],
    ):
        command = f"{PYTHON} {shlex.join(words)}"
        code, _, err = shell(command, tmp_path, **dict.fromkeys(names, place))
        assert (code, err) == (0, ""), words
        injected()


@pytest.mark.fault(
    17,
    "the current folder was deleted",
    "said in a line, with exit 6",
)
def test_a_current_folder_that_is_gone(data: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    words = shlex.join(tiny.words(data, tmp_path / "run"))
    code, _, err = shell(f"cd {gone} && rmdir {gone} && {PYTHON} {words}")
    assert code == 6
    assert err == "eqflow: the current folder is gone; go to one that exists, and try again\n"
    assert not (tmp_path / "run").exists()
