"""`eqflow train`: train a model of any task, or resume one by the same command."""

from __future__ import annotations

from typing import Any

from eqflow.cli.signals import Signals, typed_command
from eqflow.cli.terminal import Silent, Terminal, duration
from eqflow.errors import ExitCode
from eqflow.train.abstract_loop import AbstractTrainer
from eqflow.train.processes import speaks_for_the_run
from eqflow.train.tasks import TrainingConfig, run_of

SHOWN = ("loss", "val_loss", "val_accuracy")


def run(config: TrainingConfig, terminal: Terminal | None = None) -> ExitCode:
    """Train, show progress, and say where everything is."""
    if terminal is None:
        terminal = Terminal() if speaks_for_the_run() else Silent()
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

    with Signals("this step", lambda: training.may_save) as signals:
        try:
            complete = training.train(signals.received, follow)
        except KeyboardInterrupt:
            if signals.number is None:
                raise
            began = "go on from the last checkpoint" if training.has_states() else "begin again"
            terminal.line(f"stopped at once; {began} with: {typed_command()}")
            return signals.code()
    if complete:
        terminal.line(f"done: {training.folder}")
        return ExitCode.PARTIAL if training.skipped else ExitCode.DONE
    terminal.line(f"stopped and saved; go on with: {typed_command()}")
    return signals.code()


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
