"""What a verb has done so far, kept beside its output: the same command goes on from there.

Next to the file `NAME` that is written, `.NAME.journal` is a log of lines. The first say who writes
and what decides each byte of the output; each further one is an entry, about a part that is done.
A line has a checksum, so that one which was cut off by a kill is known, and left out.

Whoever writes holds a lock on the journal, and it is deleted at the end: a finished output stands
alone, and is made anew by the same command.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eqflow import storage
from eqflow.errors import DataError, UsageError
from eqflow.train.folder import fingerprint, this_process, version_of, without_locks
from eqflow.train.resuming import flat
from eqflow.train.weights import weights_path

# What changes neither what is computed nor what is written.
CHANGEABLE = ("run", "out", "threads")
PACKAGES = ("eqflow", "torch", "numpy")
SECONDS = 10.0  # between two times that a file is written whole
SHARE = 0.05  # of the time, at most, that goes into that


class Journal:
    """The journal of one output, held by this process; see `opened`.

    Attributes:
        path: Where it is.
        entries: What is done, in its order.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.path = journal_of(out)
        self.entries: list[dict[str, Any]] = []
        self._out = out
        self._identity = json.loads(json.dumps(identity))
        self._size = 0
        self._ends: list[int] = []  # of the line of each entry

    @classmethod
    @contextmanager
    def opened(
        cls,
        out: Path,
        identity: Mapping[str, Any],
        warn: Callable[[str], None] = lambda line: None,
    ) -> Iterator[Journal]:
        """The journal of an output, from where an earlier process of the same command left it.

        Nothing is left of it where nothing was done.

        Args:
            out: File that is written.
            identity: What decides its content, as plain values.
            warn: Called with a line where the file system knows no locks.

        Raises:
            UsageError: If another process writes this output, or a part of it is there and of
                another command.
            DataError: If the journal is damaged.
            StorageError: If it cannot be written.
        """
        journal = cls(out, identity)
        with storage.held(journal.path, lambda why: warn(without_locks(out, why))) as is_ours:
            if not is_ours:
                raise UsageError(
                    f"{out}: process {_owner(journal.path)} is writing it. Wait for it, stop it, "
                    "or give another out."
                )
            journal._read()
            journal._sign()
            try:
                yield journal
            finally:
                if not journal.entries:
                    journal.finish()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Note that a part is done; it is on the disk when this returns.

        Raises:
            StorageError: If it cannot be written.
        """
        self._append({"entry": entry})
        self.entries.append(dict(entry))
        self._ends.append(self._size)

    def forget(self, kept: int = 0) -> None:
        """Take back all entries but the first few; the next one replaces them."""
        if kept < len(self.entries):
            del self.entries[kept:], self._ends[kept:]
            self._size = self._ends[-1] if self._ends else 0
            self._sign()

    def finish(self) -> None:
        """Delete the journal: the output is whole, or there is none."""
        self.path.unlink(missing_ok=True)

    def advice(self) -> str:
        """How to begin anew where the output cannot be gone on with."""
        return f"Give another out, or delete {self.path} to begin anew."

    def _sign(self) -> None:
        self._append({"process": this_process(), "identity": self._identity})

    def _append(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content)
        line = f"{_checksum(text)} {text}\n".encode()
        storage.write_at(self.path, line, self._size)
        self._size += len(line)

    def _read(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        identity = self._identity
        for number, line in enumerate(lines, 1):
            content = _content(line)
            if content is None and number < len(lines):
                raise DataError(
                    f"{self.path}:{number}: found a damaged line in the journal of {self._out}. "
                    + self.advice()
                )
            if content is None:
                break
            self._size += len(line)
            identity = content.get("identity", identity)
            if "entry" in content:
                self.entries.append(content["entry"])
                self._ends.append(self._size)
        if not self.entries:
            self._size = 0
        elif changed := _differences(identity, self._identity):
            raise UsageError(
                f"{self._out}: is unfinished, and of another command ({'; '.join(changed)}). The "
                f"same command goes on with it. {self.advice()}"
            )


class Pace:
    """When a file that can only be written whole is due again, so that little time goes into it."""

    def __init__(self) -> None:
        self._due = time.monotonic() + SECONDS

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._due

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes the file."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        self._due = ended + max(SECONDS, (ended - started) / SHARE)


def identity_of(
    verb: str, config: Any, device: torch.device, files: Mapping[str, str | None]
) -> dict[str, Any]:
    """What decides each byte of what a verb on a trained run writes.

    Args:
        verb: Which one.
        config: Its configuration, a dataclass with `run`.
        device: Where it computes.
        files: Files that are read besides the run, by the key that names them; by content.
    """
    plain = {key: value for key, value in flat(asdict(config)).items() if key not in CHANGEABLE}
    contents = {key: fingerprint(path) for key, path in files.items() if path is not None}
    return {
        "verb": verb,
        **{package: version_of(package) for package in PACKAGES},
        "weights": storage.sha256_of(weights_path(config.run)),
        **plain,
        **{key: found["sha256"] for key, found in contents.items() if found is not None},
        "device": device.type,
    }


def journal_of(out: Path) -> Path:
    """Where the journal of an output is.

    >>> journal_of(Path("samples/dw4.npz")).as_posix()
    'samples/.dw4.npz.journal'
    """
    return out.with_name(f".{out.name}.journal")


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _content(line: bytes) -> dict[str, Any] | None:
    """What a line says, or None where it is not whole."""
    try:
        checksum, _, text = line.decode().partition(" ")
        if not text.endswith("\n") or checksum != _checksum(text[:-1]):
            return None
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _owner(path: Path) -> str:
    """The process that wrote to a journal last."""
    contents = [_content(line) for line in path.read_bytes().splitlines(keepends=True)]
    owners = [str(content["process"]) for content in contents if content and "process" in content]
    return owners[-1] if owners else "another"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {_short(before.get(key))} → {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    """A value in a message; of a checksum its beginning."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
