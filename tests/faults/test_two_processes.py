"""Two processes in one place: the second is refused, and neither spoils what the other writes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from processes import ROOT, environment, eqflow, finish, start, wait_for

from eqflow import storage
from eqflow.cli.main import main
from eqflow.errors import UsageError
from eqflow.train.checkpoint import WEIGHTS
from eqflow.train.folder import LOG, exclusive

STEPS = ["train.steps=60", "train.checkpoint_every=20", "train.validate_every=30"]


@pytest.mark.fault(
    16,
    "a second `eqflow train` in the folder of one that runs",
    "refused with exit 2, naming the first, which ends with the bytes of a run alone; the folder "
    "is free at its end",
)
def test_a_second_process_is_refused_and_the_first_ends_as_if_alone(
    tmp_path: Path, injected: Callable[[], None]
) -> None:
    data, run = tiny.particles(tmp_path / "data.npy"), tmp_path / "run"
    words = tiny.words(data, run, *STEPS)
    assert tiny.train(data, run, *STEPS) == 0
    alone = run.rename(tmp_path / "alone")
    first = start(words)
    wait_for(run / "metrics.csv", first)
    # It holds still in the midst of its steps, so that the second surely meets it.
    first.send_signal(signal.SIGSTOP)
    try:
        before = tiny.contents(run)
        code, _, err = eqflow(words)
        assert tiny.contents(run) == before
    finally:
        first.send_signal(signal.SIGCONT)
    assert code == 2
    assert re.search(rf"process {first.pid} on \S+ is training in this folder", err)
    assert "Traceback" not in err
    injected()
    code, _, err = finish(first)
    assert (code, err) == (0, "")
    assert (run / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes()
    assert sorted(tiny.contents(run)) == sorted(tiny.contents(alone))
    rows = [tiny.without_seconds((each / "metrics.csv").read_text()) for each in (run, alone)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 60
    # The log still says who held the folder; the lock of a process that is gone is no lock.
    assert f"process {first.pid}" in (run / LOG).read_text()
    assert tiny.train(data, run, *STEPS, "train.steps=61") == 0


def unexpected(line: str) -> None:
    raise AssertionError(line)


def test_a_lock_is_let_go_of_however_its_block_ends(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(tmp_path, unexpected):
            raise KeyError
    with (
        exclusive(tmp_path, unexpected),
        pytest.raises(UsageError, match=f"process {os.getpid()} on"),
        exclusive(tmp_path, unexpected),
    ):
        raise AssertionError


@pytest.mark.fault(
    16,
    "a file system that knows no locks (ENOLCK, ENOTSUP, ENOSYS)",
    "a warning says that nobody else is kept out, and the run goes on",
)
@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "ENOSYS"])
def test_without_locks_the_run_goes_on_with_a_warning(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = getattr(errno, name)

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    data, run = tiny.particles(tmp_path / "data.npy"), tmp_path / "run"
    assert tiny.train(data, run) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "no locks" in warnings[0]
    assert "warning" in (run / LOG).read_text()
    for words in (
        ["sample", "n=2", f"out={tmp_path / 's.npy'}"],
        ["score", f"data.path={data}", f"out={tmp_path / 's.csv'}"],
    ):
        assert main([*words, f"run={run}"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
        assert len(lines) == 1
        assert "no locks" in lines[0]
    assert not list(tmp_path.rglob(".eqflow-*"))


@pytest.mark.fault(
    16,
    "a process clears a folder in which another is writing a file",
    "what the living one writes stays and arrives, what a dead one left goes",
)
@pytest.mark.parametrize("locks", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_a_living_process_writes_is_not_cleared_and_what_a_dead_one_left_is(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from eqflow import storage\n"
        "def slow(file):\n"
        "    file.write(b'half'); file.flush(); print(flush=True); sys.stdin.readline()\n"
        "    file.write(b' and half')\n"
        "storage.write_atomically(Path(sys.argv[1]), slow)\n"
    )

    def writing(name: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / name)],
            env=environment(),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        return process

    alive, dead = writing("alive"), writing("dead")
    dead.kill()
    dead.communicate()
    assert len(list(tmp_path.glob(".eqflow-*"))) == 2
    if not locks:

        def flock(*_: object) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
    storage.remove_strays(tmp_path)
    strays = list(tmp_path.glob(".eqflow-*"))
    assert len(strays) == (1 if locks else 2)
    alive.communicate("go on\n")
    assert alive.returncode == 0
    assert (tmp_path / "alive").read_text() == "half and half"
    if not locks:
        (left,) = tmp_path.glob(".eqflow-*")
        yesterday = time.time() - 2 * storage.LEFT_FOR
        os.utime(left, (yesterday, yesterday))
        storage.remove_strays(tmp_path)
        assert not list(tmp_path.glob(".eqflow-*"))


@pytest.mark.slow
def test_many_processes_that_write_and_clear_one_folder_lose_nothing(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from eqflow import storage\n"
        "folder, name = Path(sys.argv[1]), sys.argv[2]\n"
        "for turn in range(150):\n"
        "    storage.write_text(folder / name, f'{name} {turn}')\n"
        "    storage.remove_strays(folder)\n"
        "    assert (folder / name).read_text() == f'{name} {turn}'\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), f"file{number}"],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    ends = [finish(process) for process in processes]
    assert [(code, err) for code, _, err in ends] == [(0, "")] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file0", "file1", "file2"]
