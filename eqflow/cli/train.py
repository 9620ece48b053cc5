"""`eqflow train`: train a density model, or resume one by the same command."""

from __future__ import annotations

import shlex
import signal
import sys
from types import FrameType

from eqflow.cli.terminal import Terminal, duration
from eqflow.errors import ExitCode
from eqflow.train import Config, Run
from eqflow.train.loop import Trainer


def run(config: Config) -> ExitCode:
    """Train, show progress, and say where everything is."""
    terminal = Terminal()
    training = Run(config, terminal.line)
    budget = f"{config.train.steps:,} steps"
    if config.train.minutes is not None:
        budget += f" or {config.train.minutes:g} min"
    terminal.line(f"train {config.name}: {budget}, into {training.folder}")

    def follow(trainer: Trainer, figures: dict[str, float]) -> None:
        line = _progress(trainer, figures)
        if "val_loss" in figures or "skipped" in figures:
            training.report(line)
        else:
            terminal.progress(line)

    with _Signals() as signals:
        complete = training.train(signals.received, follow)
    if complete:
        terminal.line(f"done: {training.folder}")
        return ExitCode.DONE
    terminal.line(f"stopped and saved; go on with: {shlex.join(['eqflow', *sys.argv[1:]])}")
    return ExitCode.TERMINATED if signals.number == signal.SIGTERM else ExitCode.INTERRUPTED


def _progress(trainer: Trainer, figures: dict[str, float]) -> str:
    done = trainer.progress
    rate = done.step / max(done.seconds, 1e-9)
    fraction = trainer.fraction_done()
    left = duration(done.seconds * (1 / fraction - 1)) if 0 < fraction < 1 else "0 s"
    shown = [f"step {done.step:,}"]
    if "skipped" in figures:
        shown.append("skipped: no finite loss and gradient")
    shown += [f"{name} {figures[name]:.4g}" for name in ("loss", "val_loss") if name in figures]
    return " · ".join([*shown, f"{rate:.3g} steps/s", f"{left} left"])


class _Signals:
    """The first SIGINT or SIGTERM asks the loop to stop after its step; a second leaves at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def received(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
