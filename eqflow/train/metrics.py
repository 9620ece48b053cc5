"""The record of a run: `metrics.csv` always, TensorBoard events where it is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from eqflow import storage
from eqflow.train.folder import append


class MetricsFile:
    """A CSV with a row per logged step; columns may come later, rows are never rewritten by them.

    Args:
        path: The file; what it holds beyond `step` is dropped, so that a resumed run continues it
            where the checkpoint was made.
        step: Step of the checkpoint resumed from.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or [])
                # A row cut short by a kill has fewer fields, and its step may be cut as well.
                self.rows = [
                    row
                    for row in reader
                    if None not in row.values()
                    and row["step"].isdigit()
                    and int(row["step"]) <= step
                ]
            self._rewrite()

    def append(self, values: Mapping[str, float]) -> None:
        """Add one row."""
        row = {name: f"{value:.8g}" for name, value in values.items()}
        new = [name for name in row if name not in self.columns]
        self.rows.append(row)
        if new:
            self.columns += new
            self._rewrite()
            return
        append(self.path, self._line(row))

    def _line(self, row: Mapping[str, str]) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(
            [row.get(name) or "" for name in self.columns]
        )
        return buffer.getvalue()

    def _rewrite(self) -> None:
        header = self._line({name: name for name in self.columns})
        storage.write_text(self.path, header + "".join(self._line(row) for row in self.rows))


class EventWriter(Protocol):
    """What is used of TensorBoard's `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Add one value."""

    def close(self) -> None:
        """Write what is pending."""


def event_writer(folder: Path, step: int) -> EventWriter | None:
    """TensorBoard's writer into `folder`, or None where it is not installed.

    Events beyond `step`, from before a kill, are purged.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: EventWriter = SummaryWriter(str(folder), purge_step=step + 1)
    return writer
