"""The real command in a process of its own, for tests of what happens to it there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ("-m", "eqflow")
PATIENCE = 600  # seconds: how long a process may take on a busy machine


def environment(**more: str) -> dict[str, str]:
    """That of the tests, with this checkout found from any folder and one thread."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def start(
    words: Sequence[str],
    *,
    program: Sequence[str] = COMMAND,
    interpreter: Sequence[str] = (),
    **options: Any,
) -> subprocess.Popen[str]:
    """`eqflow words…` under way.

    Args:
        words: Of the command.
        program: What Python runs.
        interpreter: Options of Python itself, such as -O.
        options: Those of `Popen`.
    """
    chosen: dict[str, Any] = {
        "env": environment(),
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    return subprocess.Popen([sys.executable, *interpreter, *program, *words], **(chosen | options))


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code and what it printed on standard output and error, at its end."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def eqflow(words: Sequence[str], **options: Any) -> tuple[int, str, str]:
    """`eqflow words…` from start to end."""
    return finish(start(words, **options))


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there; the process must not end before."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
