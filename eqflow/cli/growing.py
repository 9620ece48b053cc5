"""A file of structures that grows batch by batch, and that the same command goes on with.

A text is a record after another: each batch is added at its end, and then noted in the journal with
the length of the file and its SHA-256. What a kill left beyond that length is cut off. An array
can only be written whole: all batches so far are noted with the SHA-256 of the file to come, and
then it takes the place of the one before, at most every few seconds. Whichever of the two is there
after a kill, the journal knows how many batches are in it.

A file that is gone is made anew. One that is neither is not touched: somebody changed it. What was
there before the first write, a link too, is replaced.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from eqflow import storage
from eqflow.cli.endings import Endings
from eqflow.cli.journal import Journal, Pace
from eqflow.data import encoded
from eqflow.data.arrays import load_array, load_arrays
from eqflow.data.stated_properties import of_arrays, writable
from eqflow.errors import DataError
from eqflow.geometry import Clouds

ARRAYS = (".npz", ".npy")


@dataclass
class Tally:
    """What came of some batches; an entry of the journal, besides what the file was then.

    Attributes:
        batches: How many.
        structures: Written.
        evaluations: Of the field, the most of any structure.
        failed: Structures whose integration failed.
        too_large: Number of points of structures that did not fit into memory.
        halved: Batches that did not fit into memory together.
        perceived: Molecules whose bonds are RDKit's; None where no bonds are looked for.
        endings: How integrations ended that did not end as asked.
    """

    batches: int = 0
    structures: int = 0
    evaluations: int = 0
    failed: int = 0
    too_large: list[int] = field(default_factory=list)
    halved: int = 0
    perceived: int | None = None
    endings: Endings = field(default_factory=Endings)

    def add(self, other: Tally) -> None:
        """Count those of another as well."""
        self.batches += other.batches
        self.structures += other.structures
        self.evaluations = max(self.evaluations, other.evaluations)
        self.failed += other.failed
        self.too_large += other.too_large
        self.halved += other.halved
        self.endings.add(other.endings)
        if other.perceived is not None:
            self.perceived = (self.perceived or 0) + other.perceived


class AbstractGrowing(ABC):
    """A file of structures under way.

    Args:
        out: The file.
        journal: Of this file.

    Attributes:
        done: What came of all batches so far.

    Raises:
        DataError: If what the journal speaks of is not what the file holds.
    """

    def __init__(self, out: Path, journal: Journal) -> None:
        self.out = out
        self.done = Tally()
        self._journal = journal
        kept = self._kept() if out.exists() or not journal.entries else 0
        journal.forget(kept)
        for entry in journal.entries:
            self.done.add(_tally(entry))

    @abstractmethod
    def add(self, clouds: Clouds | None, tally: Tally) -> None:
        """Add a batch, None where nothing is left of it."""

    @abstractmethod
    def save(self) -> None:
        """See to it that all batches so far are in the file, and noted."""

    @abstractmethod
    def _kept(self) -> int:
        """How many entries of the journal are in the file, which is there."""

    def _changed(self) -> DataError:
        return DataError(
            f"{self.out}: found another content than a process of this command left there, and "
            f"cannot go on with it. {self._journal.advice()}"
        )


class GrowingText(AbstractGrowing):
    """Records one after another.

    Args:
        out: The file.
        journal: Of this file.
        encode: What a batch is in the file; it may count in the batch's tally.
    """

    def __init__(
        self, out: Path, journal: Journal, encode: Callable[[Clouds, Tally], bytes]
    ) -> None:
        self._encode = encode
        self._size = 0
        self._digest = hashlib.sha256()
        super().__init__(out, journal)

    def add(self, clouds: Clouds | None, tally: Tally) -> None:
        """Add a batch, and note it."""
        content = b"" if clouds is None else self._encode(clouds, tally)
        if content and self._size:
            storage.write_at(self.out, content, self._size)
        elif content:
            storage.write_bytes(self.out, content)
        self._size += len(content)
        self._digest.update(content)
        self._journal.add(
            {**asdict(tally), "bytes": self._size, "sha256": self._digest.hexdigest()}
        )
        self.done.add(tally)

    def save(self) -> None:
        """Nothing: each batch is in the file."""

    def _kept(self) -> int:
        entries = self._journal.entries
        size = int(entries[-1]["bytes"]) if entries else 0
        if not size:  # what is there is of an earlier command, and stays until there is a batch
            return len(entries)
        if not self.out.is_file():  # a pipe would not end
            raise self._changed()
        left = size
        with self.out.open("rb") as file:
            while left and (chunk := file.read(min(left, 1 << 20))):
                self._digest.update(chunk)
                left -= len(chunk)
        if left or self._digest.hexdigest() != entries[-1]["sha256"]:
            raise self._changed()
        self._size = size
        storage.write_at(self.out, b"", size)
        return len(entries)


class GrowingArrays(AbstractGrowing):
    """Arrays of all structures, which are kept in memory."""

    def __init__(self, out: Path, journal: Journal) -> None:
        self._parts: list[Clouds] = []
        self._waiting = Tally()
        self._pace = Pace()
        super().__init__(out, journal)

    def add(self, clouds: Clouds | None, tally: Tally) -> None:
        """Add a batch; the file is written now and then."""
        self._parts += [] if clouds is None else [_as_stored(clouds, self.out)]
        self._waiting.add(tally)
        self.done.add(tally)
        if self._pace.is_due():
            self.save()

    def save(self) -> None:
        """Write the file, where there is anything new."""
        if not self._waiting.batches:
            return
        digest = ""
        with self._pace.writing():
            content = b""
            if self._parts:
                self._parts = [Clouds.join(self._parts)]
                content = encoded(self._parts[0], self.out)
                digest = hashlib.sha256(content).hexdigest()
            entry = {**asdict(self._waiting), "sha256": digest}
            if digest and not any(each["sha256"] for each in self._journal.entries):
                entry["before"] = _digest(self.out)
            self._journal.add(entry)
            if self._waiting.structures:
                storage.write_bytes(self.out, content)
        self._waiting = Tally()

    def _kept(self) -> int:
        entries = self._journal.entries
        found = _digest(self.out) if entries else ""
        for kept in range(len(entries), 0, -1):
            if entries[kept - 1]["sha256"] == found:
                self._parts = [_stored(self.out)]
                return kept
        # The first file is noted before it is written, and what was there before it as well.
        written = [entry for entry in entries if entry["sha256"]]
        several = len({entry["sha256"] for entry in written}) > 1
        if written and (several or written[0].get("before", found) != found):
            raise self._changed()
        return len(entries) - len(written)


def _digest(path: Path) -> str:
    """SHA-256 of a file; nothing where there is none."""
    return storage.sha256_of(path) if path.is_file() else ""


def _tally(entry: Mapping[str, Any]) -> Tally:
    names = Tally.__dataclass_fields__
    values = {name: value for name, value in entry.items() if name in names}
    return Tally(**{**values, "endings": Endings(**entry["endings"])})


def _as_stored(clouds: Clouds, out: Path) -> Clouds:
    """What the format holds of structures, so that they can be joined with those read back."""
    if out.suffix.lower() == ".npy":
        return Clouds(clouds.x, clouds.ptr)
    return writable(clouds)


def _stored(out: Path) -> Clouds:
    """Structures as they were written, whatever a reader would say to them."""
    if out.suffix.lower() == ".npy":
        return Clouds.from_dense(torch.from_numpy(load_array(out)))
    arrays = load_arrays(out)
    properties = of_arrays(arrays, len(arrays["ptr"]) - 1)
    known = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Clouds(
        known["x"],
        known["ptr"],
        known.get("numbers"),
        charges=known.get("formal_charges"),
        properties={name: torch.from_numpy(values) for name, values in properties.items()},
    )
