"""A training run and its folder, whatever the task: prepare or resume, train, write the figures.

All that a run must survive is here: problems are found before anything is made, one process holds
the folder, states are resumed from the newest whole one, and the same command goes on or says that
all is done. A task says what its data, its trainer and its last figures are.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
import yaml

from eqflow import storage
from eqflow.errors import CheckpointError, ProcessLost, UsageError, printable
from eqflow.train.abstract_loop import AbstractTrainer
from eqflow.train.checkpoint import (
    WEIGHTS,
    newest_state,
    read_state_at,
    read_weights,
    save_state,
    save_weights,
)
from eqflow.train.config import RunConfiguration
from eqflow.train.documents import json_of
from eqflow.train.folder import (
    CONFIG,
    LOG,
    PROVENANCE,
    append,
    exclusive,
    fingerprint,
    provenance,
    require_possible,
)
from eqflow.train.metrics import Record, finite_or_null
from eqflow.train.processes import Processes, alone
from eqflow.train.resuming import (
    changed_keys,
    earlier_configuration,
    earlier_fingerprint,
    flat,
)

SUMMARY = "summary.json"
STATES = "checkpoints"

Report = Callable[[str], None]


Configuration = TypeVar("Configuration", bound=RunConfiguration)
Trained = TypeVar("Trained", bound=AbstractTrainer[Any])


class AbstractRun(ABC, Generic[Configuration, Trained]):
    """One training run in its folder.

    Args:
        config: The whole configuration.
        report: Called with each line meant for people; lines also go to `log.txt`.

    Raises:
        UsageError: If the configuration contradicts itself, or the folder holds another run.
        StorageError: If the folder cannot be written.
    """

    # What a resumed run may change: how long it goes on and what it writes, not what it computes.
    duration: ClassVar[tuple[str, ...]] = ("train.steps", "train.minutes")
    written: ClassVar[tuple[str, ...]] = ()  # of the summary: asked for later, it is made then
    changeable: ClassVar[tuple[str, ...]] = (
        "train.checkpoint_every",
        "train.log_every",
        "train.tensorboard",
        "train.threads",
        "train.wait_minutes",
        "run.dir",
    )

    def __init__(self, config: Configuration, report: Report) -> None:
        self.config = config
        if problems := self.problems():
            raise UsageError("\n".join(problems))
        if config.run.dir is None and not _is_plain(config.name):
            raise UsageError(
                f"name: found {config.name!r}, expected a name that is one folder of runs/. Say "
                "where the run goes by run.dir."
            )
        self.folder = Path(config.run.dir or f"runs/{config.name}")
        self.may_save = False  # whether a request to stop is heeded after the step
        self.skipped: list[str] = []  # records left out, a line each
        self.processes = Processes()  # those that share the run, while it trains
        self._report = report
        self.plain: dict[str, Any] = asdict(cast(Any, config))
        self.plain["run"]["dir"] = str(self.folder)

    @abstractmethod
    def problems(self) -> list[str]:
        """Everything wrong with the configuration, before anything is read; a line each."""

    @abstractmethod
    def data_path(self) -> str | None:
        """File or folder the data are read from; None where there is none to read."""

    def data_fingerprint(self) -> dict[str, str] | None:
        """Where the data come from and the SHA-256 of what is read; None if nothing is."""
        return fingerprint(self.data_path())

    @abstractmethod
    def prepare(self) -> Trained:
        """Read the data and build the trainer; nothing is written."""

    @abstractmethod
    def describe(self, trainer: Trained) -> list[str]:
        """Lines about data and model."""

    @abstractmethod
    def statistics(self, trainer: Trained) -> dict[str, Any]:
        """What the model needs to know of the data to be rebuilt, as plain values."""

    @abstractmethod
    def final_figures(self, trainer: Trained) -> tuple[dict[str, Any], list[str]]:
        """What the summary holds beside counters, and lines about it."""

    def continued_by(self) -> str:
        """What would make a finished run go on: more of what ended it."""
        ended = self.summary().get("ended_by", "train.steps")
        return f"a larger {ended} continues it"

    def has_states(self) -> bool:
        """Whether there is anything to go on from."""
        return any((self.folder / STATES).glob("*.pt"))

    def summary(self) -> dict[str, Any]:
        """The summary of the run that the folder holds; nothing where there is none."""
        try:
            found = json_of(self.folder / SUMMARY)
        except CheckpointError:
            return {}
        return found if isinstance(found, dict) else {}

    def is_told(self, trainer: Trained, figures: dict[str, float]) -> bool:
        """Whether the figures of a logged step get a line for people, and not only a row."""
        return "val_loss" in figures or "skipped" in figures

    def report(self, line: str) -> None:
        """Tell people, and the log."""
        self.announce(line)
        self.note(line)

    def announce(self, line: str) -> None:
        """Tell people alone, while there may be no folder yet."""
        if self.processes.is_first:
            self._report(line)

    def note(self, line: str) -> None:
        """Tell the log alone."""
        if self.processes.is_first:
            append(self.folder / LOG, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {printable(line)}\n")

    def joined(self) -> AbstractContextManager[Processes]:
        """The processes that share this run.

        Raises:
            UsageError: If there are several, and the task cannot be shared.
        """
        return alone()

    def train(
        self,
        stop_requested: Callable[[], bool],
        follow: Callable[[Trained, dict[str, float]], None],
    ) -> bool:
        """Train, from the last checkpoint where there is one.

        Args:
            stop_requested: Asked after every step.
            follow: Called with the figures of each logged step, to show progress.

        Returns:
            Whether the run is complete; False if it was asked to stop.

        Raises:
            NumericalError: If training gave up; the weights on disk are the last finite ones.
        """
        with self.joined() as processes:
            self.processes = processes
            earlier = earlier_configuration(self.folder)
            self._require_same_run(earlier)
            if self._is_complete(earlier) and self._has_whole_weights():
                self.announce(f"{self.folder} is finished; {self.continued_by()}")
                return True
            if self.config.train.threads is not None:
                torch.set_num_threads(self.config.train.threads)
            require_possible(self.folder)
            trainer = self.prepare()
            processes.wait()  # none writes before all have looked
            if not processes.is_first:
                return self._train(trainer, stop_requested, follow)
            storage.require_writable(self.folder)
            with exclusive(self.folder, self.report):
                return self._train(trainer, stop_requested, follow)

    def _train(
        self,
        trainer: Trained,
        stop_requested: Callable[[], bool],
        follow: Callable[[Trained, dict[str, float]], None],
    ) -> bool:
        for line in self.describe(trainer):
            self.report(line)
        self._begin(trainer)
        if self.processes.is_first:
            writer = Record(self.folder, self.config.train.tensorboard, trainer.progress.step)

        def record(figures: dict[str, float]) -> None:
            self._tell_notices(trainer)
            if "skipped" in figures:
                self.note(f"step {trainer.progress.step} skipped: {trainer.trouble}")
            if self.processes.is_first:
                writer.add(figures)
                follow(trainer, figures)

        def save() -> None:
            self._tell_notices(trainer)
            if self.processes.is_first:
                progress = trainer.progress
                writer.flush()
                save_state(
                    self.folder / STATES,
                    progress.step,
                    trainer.state(),
                    keep={progress.good_step, progress.saved_step},
                )
                self._save_weights(trainer)

        def went_back(step: int, line: str) -> None:
            self.report(line)
            if self.processes.is_first:
                writer.go_back(step)

        self.may_save = True
        try:
            trainer.run(record, save, stop_requested, self._saved_state, went_back)
        except ProcessLost as lost:
            whole = trainer.is_between_steps and trainer.weights_are_finite()
            if not (self.processes.is_first and whole):
                self.note(str(lost))
                raise
            save()
            told = f"stopped after step {trainer.progress.step:,}, which is saved: {lost}"
            self.note(told)
            raise ProcessLost(told) from lost
        finally:
            self.may_save = False
            if self.processes.is_first:
                writer.close()
        if trainer.stopped or not trainer.finished():
            return False
        if self.processes.is_first:
            self._save_weights(trainer)  # a kill may have come between state and weights
            self._finish(trainer)
        return True

    def _begin(self, trainer: Trained) -> None:
        """Resume where there is something to resume, and write what the run is."""
        state: Mapping[str, Any] | None = None
        if self.processes.is_first:
            storage.remove_strays(self.folder)
            state = newest_state(self.folder / STATES, self.report)
        state = self._of_first(state)
        if state is not None:
            self._restore(trainer, state)
        if not self.processes.is_first:
            return
        if not (self.folder / PROVENANCE).is_file():
            made = provenance(data=self.data_fingerprint())
            storage.write_text(self.folder / PROVENANCE, json.dumps(made, indent=2))
        storage.write_text(self.folder / CONFIG, yaml.safe_dump(self.plain, sort_keys=False))
        (self.folder / SUMMARY).unlink(missing_ok=True)

    def _saved_state(self, step: int) -> Mapping[str, Any] | None:
        """The state that the first process wrote at a step; None where it is no more."""
        state: Mapping[str, Any] | None = None
        if self.processes.is_first:
            try:
                state = read_state_at(self.folder / STATES, step)
            except CheckpointError as error:
                self.report(f"warning: {error}")
        return self._of_first(state)

    def _of_first(self, state: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if not self.processes.any(state is not None):
            return None
        return self.processes.state_of_first(state or {})

    def _tell_notices(self, trainer: Trained) -> None:
        """What the trainer has to say to people."""
        while trainer.notices:
            self.report(trainer.notices.pop(0))

    def _restore(self, trainer: Trained, state: Mapping[str, Any]) -> None:
        try:
            trainer.load_state(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}: its state does not fit this model ({error})."
            ) from error
        self.report(f"resumed at step {trainer.progress.step:,}")

    def _require_same_run(self, earlier: dict[str, Any] | None) -> None:
        if earlier is None:
            return
        same_data = self._has_same_data()
        may_change = {*self.changeable, *self.duration, *self.written}
        if same_data:
            may_change.add("data.path")
        changed = changed_keys(self.config, self.plain, earlier, may_change)
        if not changed and same_data is False:
            changed = [f"data.path: {self.data_path()} has other content than before"]
        if changed:
            raise UsageError(
                f"{self.folder} holds a run with another configuration ({'; '.join(changed)}). "
                "Give another run.dir, or the same keys to resume it."
            )

    def _has_same_data(self) -> bool | None:
        """Whether the data have the SHA-256 they had when the run began; None if unknown."""
        path = self.data_path()
        before = earlier_fingerprint(self.folder)
        if path is None or before is None or not Path(path).exists():
            return None
        now = self.data_fingerprint()
        return now is not None and before == now["sha256"]

    def _is_complete(self, earlier: dict[str, Any] | None) -> bool:
        """Whether the folder holds the figures that this configuration would end with."""
        try:
            reached = int(self.summary()["steps"])
        except (ValueError, KeyError, TypeError):
            return False
        before, now = flat(earlier or {}), flat(self.plain)
        if any(before.get(key) != now[key] for key in self.written):
            return False
        same = all(before.get(key) == now[key] for key in self.duration)
        return same or self.config.train.steps <= reached

    def _has_whole_weights(self) -> bool:
        """Whether a finished run has its weights; else they have to be made again of its state."""
        try:
            read_weights(self.folder / WEIGHTS)
        except CheckpointError as error:
            self.announce(f"warning: {error} They are made again from the last state.")
            return False
        return True

    def _save_weights(self, trainer: Trained) -> None:
        statistics = self.statistics(trainer)
        save_weights(self.folder / WEIGHTS, trainer.best_model(), self.plain, statistics)

    def _finish(self, trainer: Trained) -> None:
        progress = trainer.progress
        figures, lines = self.final_figures(trainer)
        summary = {
            "name": self.config.name,
            "steps": progress.step,
            "ended_by": trainer.ended_by(),
            "skipped_steps": progress.skipped,
            "rollbacks": progress.rollbacks,
            "seconds": round(progress.seconds, 2),
            "cpu_seconds": round(progress.cpu_seconds, 2),
            "best_step": progress.best_step,
            "val_loss": progress.best_loss,
            **figures,
        }
        if progress.skipped:
            self.report(f"{progress.skipped:,} steps were skipped, see log.txt")
        storage.write_text(self.folder / SUMMARY, json.dumps(finite_or_null(summary), indent=2))
        for line in lines:
            self.report(line)


def _is_plain(name: str) -> bool:
    """Whether a name names a folder within another, and no way out of it."""
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & {"/", "\\"}
