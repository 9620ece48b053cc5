"""Runs of the real command on file systems that are full, read-only or out of names.

A program of its own, within a user namespace: it may mount a file system in memory of any size,
which nobody else sees. Everything is imported once, and each run is forked.

    unshare -Urm python small_disks.py '{"mount": folder, "first": [[…], …], "runs": [{…}, …]}'

The words of `first` are run before all, beside the disk. Each of `runs` says `options` of the
mount, the `words`, with `{disk}` in them, and whether the same words are to be run `again` after
there is space; of an output that is no run folder, its name as `file`. A line is printed for each.
"""

from __future__ import annotations

import base64
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from forked import ended, in_child, run, state_of, tell


def limited(words: list[str], printed: Path, limit: int | None) -> int:
    """With a limit to the size of files, where nothing can be mounted."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return run(words, printed)


def content_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode() if path.exists() else ""


def main() -> None:
    job = json.loads(sys.argv[1])
    disk = Path(job["mount"])
    printed = disk.parent / "printed"
    disk.mkdir()
    for words in job["first"]:  # imports all that is imported on the way
        code = run([word.format(disk=disk.parent / "first") for word in words], printed)
        assert code == 0, printed.read_text()
    for number, one in enumerate(job["runs"]):
        place = disk if one.get("options") else disk.parent / f"limited {number}"
        if one.get("options"):
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", one["options"], "tmpfs", disk], check=True
            )
        words = [word.format(disk=place) for word in one["words"]]
        if one.get("read_only"):
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        limit = one.get("limit")
        code = in_child(lambda words=words, limit=limit: limited(words, printed, limit))
        fact: dict[str, Any] = {"code": code, "printed": printed.read_text()}
        fact["left"] = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
        folder = place / "run"
        if one.get("file"):
            fact["content"] = content_of(place / one["file"])
        if one.get("again"):
            fact |= {} if one.get("file") else state_of(folder)
            if one.get("options"):
                larger = "remount,size=64m,nr_inodes=10000"
                subprocess.run(["mount", "-o", larger, disk], check=True)
            fact["again"] = in_child(lambda words=words: run(words, printed))
            fact["printed again"] = printed.read_text()
            if one.get("file"):
                fact["end"] = content_of(place / one["file"])
                fact["names"] = sorted(path.name for path in place.iterdir())
            elif fact["again"] == 0:
                fact["end"] = ended(folder)
            fact["strays"] = [str(path) for path in place.rglob(".eqflow-*")]
        if one.get("options"):
            subprocess.run(["umount", disk], check=True)
        tell(fact)


if __name__ == "__main__":
    main()
