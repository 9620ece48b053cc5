"""The one atomic writer: a file is either its old self or its new self, never something between.

New content goes to a temporary file in the same folder, is flushed to the disk and renamed over
the old one; then the folder entry itself is flushed. A process that is killed at any moment leaves
at most a stray temporary file, which `remove_strays` clears.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from eqflow.errors import StorageError

STRAY_PREFIX = ".eqflow-"


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Replace `path` by what `write` puts into the binary file it is handed.

    Raises:
        StorageError: If the folder cannot be written or the disk is full; `path` is then unchanged.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=STRAY_PREFIX, dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). "
            "Nothing was changed; free some space or choose a folder you may write to."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically."""

    def write(file: IO[bytes]) -> None:
        file.write(content)

    write_atomically(path, write)


def write_text(path: Path, content: str) -> None:
    """Replace `path` by `content` in UTF-8, atomically."""
    write_bytes(path, content.encode("utf-8"))


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_strays(folder: Path) -> None:
    """Delete temporary files that a killed process left behind in `folder`."""
    for stray in Path(folder).glob(f"{STRAY_PREFIX}*"):
        stray.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Make `folder` and prove that a file can be written there.

    Raises:
        StorageError: If it cannot.
    """
    probe = Path(folder) / f"{STRAY_PREFIX}probe"
    write_bytes(probe, b"")
    probe.unlink(missing_ok=True)


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
