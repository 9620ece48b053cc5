"""What a symmetry report holds: a row a cloud and kind of motion, a table of them, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eqflow import storage


class Word(NamedTuple):
    """What can be asked for beside groups.

    Attributes:
        kind: What is measured, in words of the table.
        is_information: Whether it is reported and never fails.
    """

    kind: str
    is_information: bool = False


WORDS = {
    "batch": Word("alone and beside another"),
    "mirror": Word("reflection", is_information=True),
    "scale": Word("enlarged", is_information=True),
    "continuity": Word("perturbed"),
}


@dataclass(frozen=True)
class Row:
    """One kind of motion on one batch of clouds.

    Attributes:
        cloud: Name of the batch, with the place of the worst cloud where it holds several.
        group: The group that was asked for, or one of `WORDS`.
        kind: Kind of motion of the group; what was measured, of the others.
        error: Relative error; infinite where an output was not finite or the function raised.
        tolerance: Largest error allowed, or None for information, which never fails.
        dtype: Arithmetic it was measured in.
        points: Number of points of the worst cloud.
        note: What else is known: a verdict, or what the function raised.
    """

    cloud: str
    group: str
    kind: str
    error: float
    tolerance: float | None
    dtype: str
    points: int = 0
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance, if there is one; NaN never is."""
        return self.tolerance is None or self.error <= self.tolerance

    @property
    def excess(self) -> float:
        """The error in units of the tolerance, which orders rows; 0 of information."""
        if self.tolerance is None:
            return 0.0
        if math.isnan(self.error):
            return math.inf
        if self.tolerance == 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.tolerance

    def to_plain(self) -> dict[str, Any]:
        """The row as JSON holds it: an error that is not finite is null."""
        error = self.error if math.isfinite(self.error) else None
        return {**asdict(self), "error": error, "holds": self.holds}


@dataclass(frozen=True)
class Line:
    """All rows of one kind and dtype: the worst of them, and how many fail.

    Attributes:
        worst: The row with the largest error.
        failing: Names of the clouds on which it fails, in their order.
        clouds: On how many batches of clouds it was measured.
        verdict: What is common to the notes of all rows, of information.
    """

    worst: Row
    failing: tuple[str, ...]
    clouds: int
    verdict: str = ""

    @property
    def name(self) -> str:
        """`rotation of E(3)`, `batch: alone and beside another`."""
        if self.worst.group in WORDS:
            return f"{self.worst.group}: {self.worst.kind}"
        return f"{self.worst.kind} of {self.worst.group}"


@dataclass(frozen=True)
class SymmetryReport:
    """The symmetry of a function, measured cloud by cloud.

    Attributes:
        output: How the output moves, as it was asked for.
        rows: A row for each cloud, kind and dtype.
        name: What was measured.
    """

    output: str
    rows: tuple[Row, ...]
    name: str = "function"

    @property
    def holds(self) -> bool:
        """Whether no row fails."""
        return all(row.holds for row in self.rows)

    @property
    def worst(self) -> Row | None:
        """The row with the largest error in units of its tolerance; None if there is none."""
        bounded = [row for row in self.rows if row.tolerance is not None]
        return max(bounded, key=lambda row: row.excess, default=None)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that fail, worst first."""
        failing = [row for row in self.rows if not row.holds]
        return tuple(sorted(failing, key=lambda row: -row.excess))

    def of(
        self, group: str | None = None, kind: str | None = None, cloud: str | None = None
    ) -> tuple[Row, ...]:
        """The rows of a group, a kind or a cloud."""
        return tuple(
            row
            for row in self.rows
            if (group is None or row.group == group)
            and (kind is None or row.kind == kind)
            and (cloud is None or row.cloud.split("[")[0] == cloud)
        )

    @property
    def lines(self) -> tuple[Line, ...]:
        """A line for each group, kind and dtype, in the order in which they were measured."""
        parts: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            parts.setdefault((row.group, row.kind, row.dtype), []).append(row)
        return tuple(_line(rows) for rows in parts.values())

    def to_plain(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {
            "name": self.name,
            "output": self.output,
            "holds": self.holds,
            "worst": None if self.worst is None else self.worst.to_plain(),
            "rows": [row.to_plain() for row in self.rows],
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_plain(), indent=2, ensure_ascii=False, allow_nan=False)

    def write(self, path: str | Path) -> None:
        """Write `to_json` to a file, whole or not at all.

        Raises:
            StorageError: If the file cannot be written.
        """
        storage.write_text(Path(path), self.to_json())

    def __str__(self) -> str:
        lines = [f"symmetry of {self.name}, output {self.output!r}", *table(self.lines)]
        worst = self.worst
        if worst is not None:
            lines.append(
                f"worst: {worst.group}, {worst.kind}, on {worst.cloud} ({worst.points} points): "
                f"error {worst.error:.1e}, tolerance {worst.tolerance:.0e}, {worst.dtype}"
            )
        broken = [line for line in self.lines if line.failing]
        held = [line for line in self.lines if line.worst.tolerance is not None]
        lines.append(f"{len(broken)} of {len(held)} fail" if broken else f"all {len(held)} hold")
        return "\n".join(lines)


HEADER = ("", "group", "kind", "error", "tolerance", "dtype", "worst cloud", "")


def table(lines: Iterable[Line]) -> list[str]:
    """An aligned table of lines, a header first."""
    cells = [HEADER, *map(_cells, lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _cells(line: Line) -> Sequence[str]:
    row = line.worst
    bounded = row.tolerance is not None
    verdict = ("FAIL" if line.failing else "ok") if bounded else "info"
    notes = [line.verdict or row.note]
    if len(line.failing) == line.clouds > 1:
        notes.insert(0, f"fails on all {line.clouds}")
    elif line.failing and line.clouds > 1:
        named = ", ".join(line.failing[:3]) + (", …" if len(line.failing) > 3 else "")
        notes.insert(0, f"fails on {len(line.failing)} of {line.clouds}: {named}")
    return (
        verdict,
        row.group,
        row.kind,
        f"{row.error:.1e}",
        "" if row.tolerance is None else f"{row.tolerance:.0e}",
        row.dtype,
        row.cloud,
        "; ".join(note for note in notes if note),
    )


def _line(rows: Sequence[Row]) -> Line:
    worst = max(rows, key=lambda row: math.inf if math.isnan(row.error) else row.error)
    failing = tuple(row.cloud for row in rows if not row.holds)
    notes = list(dict.fromkeys(row.note for row in rows if not row.note.startswith("zero")))
    common = notes[0] if len(notes) == 1 and worst.tolerance is None else ""
    return Line(worst, failing, len(rows), common)
