"""The one atomic writer: a file is either its old self or its new self, never something between.

New content goes to a temporary file in the same folder, is flushed to the disk and renamed over
the old one; then the folder entry itself is flushed. A process that is killed at any moment leaves
at most a stray temporary file, which `remove_strays` clears.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from eqflow.errors import StorageError

# Letters follow it, without a dot: no output, which has an ending, and no journal looks like that.
STRAY_PREFIX = ".eqflow-"
HELD_BY_ANOTHER = (BlockingIOError, PermissionError)  # of flock; the latter of network drives
APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT
LEFT_FOR = 86_400  # seconds that a temporary file is left for where nothing can be locked


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Replace `path` by what `write` puts into the binary file it is handed.

    Raises:
        StorageError: If the folder cannot be written or the disk is full; `path` is then unchanged.
            If it was replaced and only the folder cannot be flushed, the message says so.
    """
    path = Path(path)
    temporary: str | None = None
    is_new = False
    try:
        _make_folder(path.parent)
        descriptor, temporary = _temporary(path.parent)
        # Renamed while it is open, and so locked: nobody takes it for what a dead process left.
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            temporary, is_new = None, True
        _flush_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        if is_new:
            raise StorageError(
                f"{path}: is written, but its folder cannot be flushed to the disk ({reason}): a "
                "power cut may bring back what was there. Look after the disk, then try again."
            ) from error
        raise StorageError(
            f"{path}: cannot be written ({reason}). "
            "Nothing was changed; free some space or choose a folder you may write to."
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically."""

    def write(file: IO[bytes]) -> None:
        file.write(content)

    write_atomically(path, write)


def write_text(path: Path, content: str) -> None:
    """Replace `path` by `content` in UTF-8, atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_at(path: Path, content: bytes, place: int) -> None:
    """Cut a file off after `place` bytes, add `content` there, and flush it to the disk.

    For files of records that grow: what stands before `place` is not touched, whatever happens.

    Raises:
        StorageError: If the disk is full or the file cannot be written. It is then cut off at
            `place` where that is still possible. If there is a link or a pipe.
    """
    try:
        # Nothing is left in a buffer, which would be written after all when the file is closed.
        with os.fdopen(_file_itself(path, os.O_RDWR), "r+b", buffering=0) as file:
            file.truncate(place)
            file.seek(place)
            try:
                _write_all(file, content)
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), place)
                raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). Its first {place:,} bytes are "
            "as they were; free some space, or choose a folder you may write to."
        ) from error


def append(path: Path, content: bytes) -> None:
    """Add `content` to the end of a file, which is made where there is none.

    Raises:
        OSError: If the disk is full or the file cannot be written.
        StorageError: If there is a link or a pipe.
    """
    with os.fdopen(_file_itself(path, APPENDING), "ab", buffering=0) as file:
        _write_all(file, content)


@contextmanager
def held(path: Path, unlocked: Callable[[str], None] = lambda reason: None) -> Iterator[bool]:
    """Hold a file for this process, which is made where there is none; False if another holds it.

    The system lets go of it however the process ends. Where the file system knows no locks, as some
    network drives, nobody is kept out: whole clusters have no other, and one process is the rule.

    Args:
        path: The file.
        unlocked: Called with the reason if the file system cannot lock.

    Raises:
        StorageError: If it cannot be opened, or is a link or a pipe.
    """
    while True:
        try:
            file = os.fdopen(_file_itself(path, APPENDING), "ab")
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror or error}). Choose a folder you may "
                "write to."
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except HELD_BY_ANOTHER:
                yield False
                return
            except OSError as error:
                unlocked(error.strerror or str(error))
                yield True
                return
            if os.fstat(file.fileno()).st_nlink:
                yield True
                return
            # Whoever held it deleted it before we had it: hold the next one of that name.


def flush(path: Path) -> None:
    """Wait until the content of a file that grew is on the disk.

    Raises:
        StorageError: If the disk cannot take it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). The last checkpoint is "
            "intact: free some space, then resume by the same command."
        ) from error


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_strays(folder: Path) -> None:
    """Delete temporary files that dead processes left behind in `folder`.

    A process that lives holds a lock on its own. Where the file system knows no locks, what is
    younger than a day is left.
    """
    for stray in Path(folder).glob(f"{STRAY_PREFIX}*"):
        if "." in stray.name[1:]:
            continue  # an output of that name, or its journal
        with suppress(OSError):  # gone meanwhile, a folder, or not ours to delete
            _remove_abandoned(stray)


def set_aside(path: Path) -> Path:
    """Give what is at `path` another name beside it, which is returned.

    Raises:
        StorageError: If it cannot be renamed.
    """
    names = (path.with_name(f"{path.name}.aside{number or ''}") for number in itertools.count())
    new = next(name for name in names if not name.exists())
    try:
        os.rename(path, new)
    except OSError as error:
        raise StorageError(
            f"{path}: is in the way and cannot be renamed ({error.strerror or error})."
        ) from error
    return new


def require_writable(folder: Path) -> None:
    """Make `folder` and prove that a file can be written there.

    What dead processes left there is cleared, so that it does not pile up.

    Raises:
        StorageError: If it cannot.
    """
    remove_strays(folder)
    probe = Path(folder) / f"{STRAY_PREFIX}probe"
    write_bytes(probe, b"")
    with suppress(OSError):
        probe.unlink()


def _file_itself(path: Path, flags: int) -> int:
    """A descriptor of the file at `path`, and of nothing that it leads to.

    A folder from someone else may hold a link to a file of ours, to have us write to it, or a pipe,
    to have us wait for ever.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError:
        with suppress(FileNotFoundError):
            _require_file(path, os.lstat(path).st_mode)
        raise
    try:
        _require_file(path, os.fstat(descriptor).st_mode)
    except StorageError:
        os.close(descriptor)
        raise
    return descriptor


def _require_file(path: Path, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise StorageError(
            f"{path}: found a symbolic link, expected a file: nothing is written through links. "
            "Delete it, or put the file itself there."
        )
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # of a folder the system says so
        raise StorageError(f"{path}: found a pipe or a device, expected a file. Delete it.")


def _write_all(file: IO[bytes], content: bytes) -> None:
    """Write to a file without a buffer, which may take less at a time."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _temporary(folder: Path) -> tuple[int, str]:
    """A new temporary file, open and locked."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=STRAY_PREFIX, dir=folder)
        with suppress(OSError):  # without locks, its age protects it
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # another process cleared it before it was locked


def _remove_abandoned(stray: Path) -> None:
    """Delete a temporary file that no process holds, while it is held here."""
    descriptor = os.open(stray, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_abandoned = True
    except HELD_BY_ANOTHER:
        is_abandoned = False
    except OSError:
        is_abandoned = time.time() - os.fstat(descriptor).st_mtime > LEFT_FOR
    try:
        if is_abandoned:
            stray.unlink()
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; their entries are flushed to the disk as well."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _flush_folder(each.parent)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
