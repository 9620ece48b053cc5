"""The run folder: who may write it, lines appended to its files, and what its data were."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from eqflow import storage
from eqflow.data.files import WRITERS
from eqflow.errors import StorageError, UsageError

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
LOG = "log.txt"
OWNER = "process"
PACKAGES = ("eqflow", "torch", "torchdiffeq", "numpy", "scipy")


def require_possible(folder: Path, key: str = "run.dir") -> None:
    """Prove that a folder can be made and written, without making it.

    Args:
        folder: To be made.
        key: That named it.

    Raises:
        StorageError: If it cannot.
    """
    if problem := obstacle(folder):
        raise StorageError(f"{key}: found {problem}; expected a folder you may write to.")


def obstacle(folder: Path) -> str:
    """Why a folder cannot be made and written, after its name; nothing where it can be."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        storage.require_writable(nearest)
    except StorageError:
        reason = "it is a file" if nearest.is_file() else "it cannot be written"
        return f"{folder}, but {nearest}: {reason}"
    return ""


@contextmanager
def exclusive(
    folder: Path, warn: Callable[[str], None], key: str = "run.dir", doing: str = "training"
) -> Iterator[None]:
    """Hold a run folder for this process; the system lets go of it however the process ends.

    Args:
        folder: Of the run.
        warn: Called with a line where the file system knows no locks.
        key: That named the folder.
        doing: What is done in it.

    Raises:
        UsageError: If another process holds it; the message names it.
    """
    path = folder / LOG
    with storage.held(path, lambda reason: warn(without_locks(folder, reason))) as is_ours:
        if not is_ours:
            owners = [
                line
                for line in path.read_text("utf-8", "replace").splitlines()
                if line.startswith(OWNER)
            ]
            owner = owners[-1].removeprefix(OWNER).strip() if owners else "another"
            raise UsageError(
                f"{folder}: process {owner} is {doing} in this folder. Wait for it, stop it, or "
                f"give another {key}."
            )
        append(path, f"{OWNER} {this_process()}\n")
        yield


def without_locks(path: Path, reason: str) -> str:
    """A line for people where the file system cannot keep another process out of `path`."""
    return (
        f"warning: {path}: this file system knows no locks ({reason}): nobody else is kept out; "
        "see to it that no other process writes there."
    )


def this_process() -> str:
    """How another process names this one to people."""
    return f"{os.getpid()} on {platform.node()}"


def append(path: Path, text: str) -> None:
    """Add lines to the end of a file.

    Raises:
        StorageError: If it cannot be written.
    """
    try:
        storage.append(path, text.encode("utf-8"))
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). The last checkpoint is "
            "intact: free some space, then resume by the same command."
        ) from error


def fingerprint(path: str | None, files: Sequence[Path] | None = None) -> dict[str, str] | None:
    """Where data came from and their SHA-256, or None where they are generated.

    That of a folder is the one of the list of files that are read of it: a line `sha256  name`
    each, as `sha256sum` prints them, by name.

    Args:
        path: File or folder.
        files: Those that are read of a folder; where None, its structures.
    """
    if path is None:
        return None
    place = Path(path)
    digest = _sha256_of_folder(place, files) if place.is_dir() else storage.sha256_of(place)
    return {"path": str(place.resolve()), "sha256": digest}


def _sha256_of_folder(folder: Path, read: Sequence[Path] | None) -> str:
    if read is None:
        files = sorted(item for item in folder.iterdir() if item.is_file() and item.name[0] != ".")
        read = [file for file in files if file.suffix.lower() in WRITERS] or files
    lines = [f"{storage.sha256_of(file)}  {file.name}\n" for file in read]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def provenance(**inputs: Any) -> dict[str, Any]:
    """When and by what a run is made, for `provenance.json`, with fingerprints of its inputs."""
    return {
        "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "packages": {name: version_of(name) for name in PACKAGES},
        **inputs,
    }


def version_of(package: str) -> str:
    """The version of a package that is installed, or that it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed: run from a checkout"
