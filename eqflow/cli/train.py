"""`eqflow train`: train a model of any task, or resume one by the same command."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from eqflow.cli.terminal import Terminal, duration
from eqflow.errors import ExitCode
from eqflow.train.abstract_loop import AbstractTrainer
from eqflow.train.abstract_run import AbstractRun
from eqflow.train.tasks import TrainingConfig, run_of

SHOWN = ("loss", "val_loss", "val_accuracy")


def run(config: TrainingConfig, terminal: Terminal | None = None) -> ExitCode:
    """Train, show progress, and say where everything is."""
    terminal = Terminal() if terminal is None else terminal
    training = run_of(config, terminal.line)
    budget = f"{config.train.steps:,} steps"
    if config.train.minutes is not None:
        budget += f" or {config.train.minutes:g} min"
    terminal.line(f"train {config.name}: {budget}, into {training.folder}")

    def follow(trainer: AbstractTrainer[Any], figures: dict[str, float]) -> None:
        line = _progress(trainer, figures)
        if training.is_told(trainer, figures):
            training.report(line)
        else:
            terminal.progress(line)

    with _Signals(training) as signals:
        try:
            complete = training.train(signals.received, follow)
        except KeyboardInterrupt:
            if signals.number is None:
                raise
            terminal.line(f"stopped at once; go on from the last checkpoint with: {_command()}")
            return signals.code()
    if complete:
        terminal.line(f"done: {training.folder}")
        return ExitCode.PARTIAL if training.skipped else ExitCode.DONE
    terminal.line(f"stopped and saved; go on with: {_command()}")
    return signals.code()


def _command() -> str:
    """The command that resumes: what was typed, also to `train.py` or to another verb."""
    name, *words = sys.argv
    verb = ["train"] if Path(name).name == "train.py" else []
    return shlex.join(["eqflow", *verb, *words])


def _progress(trainer: AbstractTrainer[Any], figures: dict[str, float]) -> str:
    done = trainer.progress
    rate = done.step / max(done.seconds, 1e-9)
    fraction = trainer.fraction_done()
    left = duration(done.seconds * (1 / fraction - 1)) if 0 < fraction < 1 else "0 s"
    shown = [f"step {done.step:,}"]
    if "skipped" in figures:
        shown.append("skipped: no finite loss and gradient")
    shown += [f"{name} {figures[name]:.4g}" for name in SHOWN if name in figures]
    return " · ".join([*shown, f"{rate:.3g} steps/s", f"{left} left"])


class _Signals:
    """The first SIGINT or SIGTERM asks the loop to stop after its step; a second leaves at once.

    Before and after the loop there is nothing to save, and the first leaves at once.
    """

    def __init__(self, training: AbstractRun[Any, Any]) -> None:
        self._training = training
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def received(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def code(self) -> ExitCode:
        """The exit code of the signal that came."""
        return ExitCode.TERMINATED if self.number == signal.SIGTERM else ExitCode.INTERRUPTED

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        second, self.number = self.number is not None, number
        if second or not self._training.may_save:
            raise KeyboardInterrupt
        # Printing from a handler may meet a print that it interrupted; the descriptor may not.
        os.write(2, b"stopping after this step; once more leaves at once\n")
