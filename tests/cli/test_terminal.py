"""What people see while a verb runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny

from eqflow.cli.terminal import Terminal, duration
from eqflow.cli.train import _progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_on_a_terminal_progress_is_redrawn_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    terminal = Terminal()
    terminal.progress("long line")
    terminal.progress("short")
    terminal.line("done")
    assert screen.getvalue() == "\rlong line\rshort    \r     \rdone\n"


def test_elsewhere_there_is_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.counted(1, 2, "structures")
    terminal.line("done")
    assert capsys.readouterr().out == "done\n"


def test_rate_and_time_left_are_right_also_after_a_resume() -> None:
    trainer = tiny.trainer(steps=1000)
    trainer.progress.step, trainer.progress.seconds = 250, 50.0
    line = _progress(trainer, {"loss": 0.5, "val_loss": 0.25})
    assert line == "step 250 · loss 0.5 · val_loss 0.25 · 5 steps/s · 2 min 30 s left"
    resumed = tiny.trainer(steps=2000)
    resumed.load_state(trainer.state())
    assert _progress(resumed, {}) == "step 250 · 5 steps/s · 5 min 50 s left"
    limited = tiny.trainer(steps=10**6, minutes=1.0)
    limited.progress.step, limited.progress.seconds = 250, 45.0
    assert _progress(limited, {}).endswith("15 s left")


def test_every_line_is_in_the_log_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.particles(tmp_path / "data.npy")
    assert tiny.train(data, tmp_path / "run") == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("train custom: 6 steps, into")
    assert shown[-1] == f"done: {tmp_path / 'run'}"
    assert all(line in log for line in shown[1:-1])
