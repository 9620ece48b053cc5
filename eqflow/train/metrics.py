"""The record of a run: `metrics.csv` always, TensorBoard events where it is installed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

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
            # After a power cut there may be anything behind the last row that was flushed.
            text = path.read_text("utf-8", "replace").replace("\0", "")
            reader = csv.DictReader(io.StringIO(text, newline=""))
            self.columns = list(reader.fieldnames or [])
            # A row cut short by a kill has fewer fields, and its step may be cut as well.
            self.rows = [
                row
                for row in reader
                if None not in row.values() and _is_up_to(row.get("step", ""), step)
            ]
            if "step" not in self.columns:
                self.columns = []
            self._rewrite()

    def flush(self) -> None:
        """Make sure that what was added survives a power cut: before a checkpoint of that step."""
        if self.rows:
            storage.flush(self.path)

    def go_back(self, step: int) -> None:
        """Drop rows beyond a step."""
        self.rows = [row for row in self.rows if _is_up_to(row["step"], step)]
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


def _is_up_to(text: str, step: int) -> bool:
    return text.isascii() and text.isdecimal() and int(text) <= step


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


class Record:
    """What a run writes of its steps: `metrics.csv`, and TensorBoard events where they are wanted.

    Args:
        folder: Of the run.
        tensorboard: Whether events are wanted.
        step: Where the run begins; what was written beyond it is dropped.
    """

    def __init__(self, folder: Path, tensorboard: bool, step: int) -> None:
        self._folder = folder
        self._wants_events = tensorboard
        self._metrics = MetricsFile(folder / "metrics.csv", step)
        self._events: EventWriter | None = None
        self._open(step)

    def add(self, figures: Mapping[str, float]) -> None:
        """Write the figures of one step, `step` among them."""
        self._metrics.append(figures)
        if self._events is not None:
            for name, value in figures.items():
                self._events.add_scalar(name, value, int(figures["step"]))

    def go_back(self, step: int) -> None:
        """Drop what is beyond a step, to which the run has returned."""
        self.close()
        self._metrics.go_back(step)
        self._open(step)

    def flush(self) -> None:
        """Wait until what was written survives a power cut, as the checkpoint does that follows."""
        self._metrics.flush()

    def close(self) -> None:
        """Write what is pending."""
        if self._events is not None:
            self._events.close()

    def _open(self, step: int) -> None:
        if self._wants_events:
            self._events = event_writer(self._folder / "tensorboard", step)


def finite_or_null(summary: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN or infinity: null stands for a figure that could not be computed."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in summary.items()
    }
