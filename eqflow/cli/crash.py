"""A crash report: what a bug in eqflow was, in a file to send, instead of a flood of lines.

It holds versions, the platform, the command and the traceback. No environment variable is in it, no
value of a variable, and nothing of a file but what the command or the error itself says of it.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eqflow import storage
from eqflow.errors import StorageError
from eqflow.train.folder import provenance

PREFIX = "eqflow-crash-"


def told(words: Sequence[str], error: BaseException, config: Any = None) -> str:
    """Write a report of a bug, and what people are told of both.

    Args:
        words: The command, from its verb on.
        error: What was raised.
        config: Of the verb, where it was composed before.

    Returns:
        A line or two with the path of the report; the report itself where nothing can be written.
    """
    text = report(words, error)
    name = f"{PREFIX}{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    what = f"this is a bug in eqflow: {_shortly(error)}"
    for folder in _folders(config):
        try:
            storage.write_text(folder / name, text)
        except (StorageError, ValueError):  # a ValueError: no path can be that
            continue
        return (
            f"{what}\nplease report it with {folder / name}: versions, the command and where it "
            "happened, to be read before it is sent"
        )
    return f"{text}\n{what}\nplease report it with the lines above; no folder could be written"


def report(words: Sequence[str], error: BaseException) -> str:
    """What a crash report says."""
    made = provenance()
    lines = [
        "Crash report of eqflow: please read it before you send it.",
        "",
        f"when      {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        f"command   {' '.join(map(repr, ['eqflow', *words]))}",
        f"python    {platform.python_version()} ({sys.platform}), optimised: {not __debug__}",
        f"platform  {made['platform']}",
        f"threads   {made['threads']}",
        "packages  " + ", ".join(f"{name} {found}" for name, found in made["packages"].items()),
        "",
        *traceback.format_exception(error),
    ]
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


def _shortly(error: BaseException) -> str:
    """The kind of an error, what it says and the last line of the package that it passed."""
    said = str(error).strip().splitlines()
    kind = type(error).__name__ + (f": {said[0][:200]}" if said else "")
    package = Path(__file__).resolve().parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if package in path.parents:
            return f"{kind} (eqflow/{path.relative_to(package).as_posix()}:{frame.lineno})"
    return kind


def _folders(config: Any) -> Iterator[Path]:
    """Where a report may go: the folder that the verb made, the current one, that of the system."""
    run = getattr(config, "run", None)
    folder = getattr(run, "dir", None) or getattr(config, "dir", None)
    if folder is None and run is not None and not isinstance(run, str):
        folder = f"runs/{getattr(config, 'name', '')}"  # as of train
    if folder is not None and os.path.isdir(str(folder)):
        yield Path(str(folder))
    yield Path()
    yield Path(tempfile.gettempdir())
