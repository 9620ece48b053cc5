"""metrics.csv: rows as they come, dropped beyond the checkpoint that a run resumes from."""

from __future__ import annotations

import csv
import errno
import os
import sys
import types
from pathlib import Path
from typing import IO

import pytest

from eqflow.errors import StorageError
from eqflow.train.metrics import MetricsFile, event_writer


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_column_that_comes_later_leaves_earlier_rows_empty(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m.csv", 0)
    metrics.append({"step": 1, "loss": 0.5})
    metrics.append({"step": 2, "loss": 0.25, "val_loss": 1.0})
    metrics.append({"step": 3, "loss": 0.125})
    assert rows(tmp_path / "m.csv") == [
        {"step": "1", "loss": "0.5", "val_loss": ""},
        {"step": "2", "loss": "0.25", "val_loss": "1"},
        {"step": "3", "loss": "0.125", "val_loss": ""},
    ]


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    metrics = MetricsFile(path, 0)
    for step in range(1, 6):
        metrics.append({"step": step, "loss": step})
    resumed = MetricsFile(path, 3)
    resumed.append({"step": 4, "loss": 40})
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4"]
    assert rows(path)[-1]["loss"] == "40"


@pytest.mark.parametrize("torn", ["1", "12", "12,0.", "12,0.5,", ","])
def test_a_row_cut_short_by_a_kill_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"step,loss,val_loss\n10,0.5,\n11,0.5,1\n{torn}")
    MetricsFile(path, 11)
    assert [row["step"] for row in rows(path)] == ["10", "11"]


@pytest.mark.parametrize(
    "tail", [b"\0" * 500, b"\xff\xfe12,0.5,1\n", b'13,"0.5\n14', "¹²,1,1\n".encode()]
)
def test_whatever_a_power_cut_leaves_at_the_end_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"step,loss,val_loss\n10,0.5,\n11,0.5,1\n" + tail)
    metrics = MetricsFile(path, 20)
    metrics.flush()
    assert [row["step"] for row in rows(path)] == ["10", "11"]
    metrics.append({"step": 12, "loss": 1})
    assert [row["step"] for row in rows(path)] == ["10", "11", "12"]


def test_a_table_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xff\0\x01garbage\n1,2,3\n")
    MetricsFile(path, 5).append({"step": 6, "loss": 1})
    assert rows(path) == [{"step": "6", "loss": "1"}]


def test_what_is_no_table_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("")
    MetricsFile(path, 5).append({"step": 6, "loss": 1})
    assert [row["step"] for row in rows(path)] == ["6"]


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: IO[bytes], content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    metrics = MetricsFile(tmp_path / "m.csv", 0)
    metrics.append({"step": 1})
    monkeypatch.setattr("eqflow.storage._write_all", full)
    with pytest.raises(StorageError, match="last checkpoint is intact"):
        metrics.append({"step": 2})


def test_events_go_to_tensorboard_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            made.append((folder, purge_step))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    assert event_writer(tmp_path, 7) is not None
    assert made == [(str(tmp_path), 8)]


def test_there_are_no_events_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert event_writer(tmp_path, 0) is None
    assert not list(tmp_path.iterdir())
