"""A file and its SHA-256 beside it, which is right at every moment, even after a power cut.

`weights.safetensors.sha256` lists what `weights.safetensors` may be, as `sha256sum -c` reads it.
Each file has its own rather than all a manifest: a file can be sent with it, and nothing that is
written for one file can spoil what is known of another. The list is written before the file, with
what is still there, and shortened after it:

    content  old   old        new        new
    listed   old   new, old   new, old   new

Each step is an atomic replacement that is on the disk before the next one begins, so there is no
moment with a file that is not listed, and none without a list.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from eqflow import storage

DIGEST = ".sha256"


def write_with_digest(path: Path, content: bytes) -> None:
    """Replace a file by `content`, and what is listed beside it by its SHA-256.

    A folder in the place of either is not ours to delete, and gets another name.

    Raises:
        StorageError: If it cannot be written; what was there is then still there, and listed.
    """
    for place in (path, digest_path(path)):
        if place.is_dir():
            storage.set_aside(place)
    new = hashlib.sha256(content).hexdigest()
    before = listed(path)
    if before is None:
        before = [storage.sha256_of(path)] if path.is_file() else []
    if (both := list(dict.fromkeys([new, *before]))) != before:
        _write_list(path, both)
    storage.write_bytes(path, content)
    if both != [new]:
        _write_list(path, [new])


def damage(path: Path) -> str:
    """How a file differs from what is listed beside it; empty where it does not.

    A file sent without its SHA-256 is taken as it is.
    """
    expected, found = listed(path), storage.sha256_of(path)
    while expected is not None and found not in expected:
        # A run that goes on may have replaced both between one look and the other.
        before, expected, found = expected, listed(path), storage.sha256_of(path)
        if expected == before:
            named = f"{before[0][:12]}…" if before else "nothing"
            return f"its SHA-256 is {found[:12]}…, but {digest_path(path).name} says {named}"
    return ""


def listed(path: Path) -> list[str] | None:
    """The SHA-256s that a file may have: one, or more while it is replaced; None if unknown."""
    try:
        text = digest_path(path).read_text("utf-8", "replace")
    except (FileNotFoundError, IsADirectoryError):
        return None
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def digest_path(path: Path) -> Path:
    """Where the SHA-256 of a file is listed."""
    return path.with_name(path.name + DIGEST)


def remove_lone_digests(folder: Path, pattern: str) -> None:
    """Delete lists of files that were deleted, or whose process died before it wrote them.

    Args:
        folder: Where they are.
        pattern: Of the names of the files.
    """
    for digest in Path(folder).glob(pattern + DIGEST):
        if digest.is_file() and not digest.with_name(digest.name.removesuffix(DIGEST)).exists():
            digest.unlink(missing_ok=True)


def _write_list(path: Path, digests: list[str]) -> None:
    text = "".join(f"{digest}  {path.name}\n" for digest in digests)
    storage.write_text(digest_path(path), text)
