"""Where runs, downloads and temporary files go: may they be written there, and is there room?"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from eqflow.cli.checkup.finding import FAIL, OK, WARN, Finding
from eqflow.data.qm9 import cache_folder
from eqflow.errors import ExitCode
from eqflow.train.folder import obstacle

CODE = ExitCode.STORAGE
NEEDED = 64 * 2**20  # bytes: a checkpoint or two of a small model
WISHED = 2**30


def look_at_places(runs: str) -> Iterator[Finding]:
    """The folder of runs, the current one, those of downloads and of temporary files, and home.

    Without the folder of runs or that of temporary files nothing goes on, so these fail; what
    cannot be kept elsewhere is a warning.

    Args:
        runs: Folder that run folders go into.
    """
    yield _place(FAIL, "folder of runs", Path(runs), "give another run.dir")
    yield _place(WARN, "current folder", Path(), "give out= and run.dir= in another one")
    yield _place(WARN, "cache", cache_folder(), "set EQFLOW_CACHE to a folder for downloads")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Finding(FAIL, "temporary files", f"{error.strerror}; set TMPDIR", CODE)
    else:
        yield _place(FAIL, "temporary files", temporary, "set TMPDIR")
    hint = "set MPLCONFIGDIR and TRITON_CACHE_DIR to folders you may write to"
    yield _place(WARN, "home", Path(os.path.expanduser("~")), hint, room=False)


def _place(worst: str, about: str, folder: Path, advice: str, room: bool = True) -> Finding:
    """One folder, which need not be there yet; nothing is left in it."""
    shown = folder.absolute()
    try:
        if problem := obstacle(folder):
            return Finding(worst, about, f"{problem}; {advice}", CODE)
        there = next(path for path in (shown, *shown.parents) if path.exists())
        locked = _can_lock(there)
        free = shutil.disk_usage(there).free
        entries = os.statvfs(there)
    except (OSError, RuntimeError) as error:
        return Finding(worst, about, f"{shown}: {error}; {advice}", CODE)
    text = f"{shown}, {free / 2**30:.1f} GiB free"
    full = entries.f_files and not entries.f_favail
    if room and (free < NEEDED or full):
        what = "no room for another file" if full else "too little room"
        return Finding(worst, about, f"{text}: {what}; free some, or {advice}", CODE)
    if not locked:
        text += ": its file system has no locks, so two processes could train in one folder"
        return Finding(WARN, about, text, CODE)
    if room and free < WISHED:
        return Finding(WARN, about, f"{text}: little room; {advice}", CODE)
    return Finding(OK, about, text, CODE)


def _can_lock(folder: Path) -> bool:
    """Whether files there can be locked, on one that has no name."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
