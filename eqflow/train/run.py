"""A training run and its folder: prepare or resume, train, write the figures at the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from eqflow import rng, storage
from eqflow.chem.elements import symbol
from eqflow.errors import CheckpointError, UsageError
from eqflow.flows import AbstractMolecularFlow, MaskedMolecularFlow, MolecularFlow
from eqflow.targets.names import TARGETS
from eqflow.train.build import (
    build_divergence,
    build_model,
    build_objective,
    chosen_device,
    integer_features,
)
from eqflow.train.checkpoint import WEIGHTS, newest_state, save_state, save_weights
from eqflow.train.config import Config, JointModelConfig
from eqflow.train.datasets import Dataset, load_dataset
from eqflow.train.figures import final_figures
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
from eqflow.train.loop import Trainer
from eqflow.train.metrics import MetricsFile, event_writer
from eqflow.train.problems import problems_of

# What a resumed run may change: how long it goes on and what it writes, not what it computes.
CHANGEABLE = {
    "train.steps",
    "train.minutes",
    "train.checkpoint_every",
    "train.log_every",
    "train.final_structures",
    "train.tensorboard",
    "train.threads",
    "run.dir",
}

SUMMARY = "summary.json"
STANDARDISED = 2000  # structures that scales of features are first taken from

Report = Callable[[str], None]


class Run:
    """One training run in its folder.

    Args:
        config: The whole configuration.
        report: Called with each line meant for people; lines also go to `log.txt`.

    Raises:
        UsageError: If the configuration contradicts itself, or the folder holds another run.
        StorageError: If the folder cannot be written.
    """

    def __init__(self, config: Config, report: Report) -> None:
        if problems := problems_of(config):
            raise UsageError("\n".join(problems))
        self.config = config
        self.folder = Path(config.run.dir or f"runs/{config.name}")
        self.may_save = False  # whether a request to stop is heeded after the step
        self.skipped: list[str] = []  # records left out, a line each
        self._report = report
        self.plain: dict[str, Any] = asdict(config)
        self.plain["run"]["dir"] = str(self.folder)

    def report(self, line: str) -> None:
        """Tell people, and the log."""
        self._report(line)
        append(self.folder / LOG, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")

    def train(
        self,
        stop_requested: Callable[[], bool],
        follow: Callable[[Trainer, dict[str, float]], None],
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
        earlier = self._earlier()
        self._require_same_run(earlier)
        if self._is_complete(earlier):
            self._report(f"{self.folder} is finished; a larger train.steps continues it")
            return True
        if self.config.train.threads is not None:
            torch.set_num_threads(self.config.train.threads)
        require_possible(self.folder)
        self._announce_data()
        started = time.process_time()
        dataset = load_dataset(
            self.config.data, self.config.seed, integer_features(self.config.model)
        )
        self.data_seconds = time.process_time() - started
        self.skipped = dataset.skipped
        trainer = self._trainer(dataset)
        storage.require_writable(self.folder)
        with exclusive(self.folder):
            return self._train(dataset, trainer, stop_requested, follow)

    def _train(
        self,
        dataset: Dataset,
        trainer: Trainer,
        stop_requested: Callable[[], bool],
        follow: Callable[[Trainer, dict[str, float]], None],
    ) -> bool:
        storage.remove_strays(self.folder)
        self._describe(dataset, trainer)
        state = newest_state(self.folder / "checkpoints", self.report)
        if state is not None:
            self._restore(trainer, state)
        if not (self.folder / PROVENANCE).is_file():
            made = provenance(data=fingerprint(self.config.data.path))
            storage.write_text(self.folder / PROVENANCE, json.dumps(made, indent=2))
        storage.write_text(self.folder / CONFIG, yaml.safe_dump(self.plain, sort_keys=False))
        (self.folder / SUMMARY).unlink(missing_ok=True)
        metrics = MetricsFile(self.folder / "metrics.csv", trainer.progress.step)
        events = None
        if self.config.train.tensorboard:
            events = event_writer(self.folder / "tensorboard", trainer.progress.step)

        def record(figures: dict[str, float]) -> None:
            metrics.append(figures)
            if events is not None:
                for name, value in figures.items():
                    events.add_scalar(name, value, trainer.progress.step)
            follow(trainer, figures)

        def save() -> None:
            save_state(self.folder / "checkpoints", trainer.progress.step, trainer.state())
            self._save_weights(trainer, dataset)

        self.may_save = True
        try:
            trainer.run(record, save, stop_requested)
        finally:
            self.may_save = False
            if events is not None:
                events.close()
        if stop_requested() or not trainer.finished():
            return False
        self._save_weights(trainer, dataset)  # a kill may have come between state and weights
        self._finish(trainer, dataset)
        return True

    def _trainer(self, dataset: Dataset) -> Trainer:
        config = self.config
        flow = build_model(config.model, config.solver, dataset.statistics, config.seed)
        if isinstance(config.model, JointModelConfig) and isinstance(flow, MolecularFlow):
            first = dataset.parts["train"][:STANDARDISED]
            flow.standardise(first, rng.generator(config.seed, "standardise"))
        flow.to(chosen_device(config.train.device))
        return Trainer(
            flow,
            build_objective(config),
            dataset.parts["train"],
            dataset.parts["validation"],
            config.train,
            config.seed,
        )

    def _announce_data(self) -> None:
        """Say so where getting the structures takes long."""
        data = self.config.data
        if data.source in TARGETS and data.path is None:
            self._report(f"drawing samples of {data.source} from its energy")
        elif data.source == "qm9" and data.path is None:
            self._report("QM9: downloaded once (87 MB) into $EQFLOW_CACHE or ~/.cache/eqflow")

    def _describe(self, dataset: Dataset, trainer: Trainer) -> None:
        parts = ", ".join(f"{len(clouds):,} {name}" for name, clouds in dataset.parts.items())
        weights = sum(parameter.numel() for parameter in trainer.flow.parameters())
        self.report(f"data: {self.config.data.source}, {parts} structures")
        for line in dataset.skipped:
            self.report(f"skipped: {line}")
        numbers = dataset.parts["train"].numbers
        if isinstance(trainer.flow, AbstractMolecularFlow):
            self.report(f"atoms: {trainer.flow.types}")
        elif numbers is not None and not self.config.data.elements:
            found = ",".join(symbol(number) for number in numbers.unique().tolist())
            self.report(
                "elements are ignored, all points are alike; "
                f"data.elements=[{found}] conditions the model on them"
            )
        if trainer.flow.properties is not None:
            self.report(f"conditioned on: {trainer.flow.properties}")
        self.report(f"model: {self.config.model.name}, {weights:,} weights")

    def _restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        try:
            trainer.load_state(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}: its state does not fit this model ({error})."
            ) from error
        self.report(f"resumed at step {trainer.progress.step:,}")

    def _earlier(self) -> dict[str, Any] | None:
        """The configuration of the run that the folder holds, if it holds one."""
        path = self.folder / CONFIG
        if not path.is_file():
            return None
        try:
            earlier = yaml.safe_load(path.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: not YAML ({error}). Give another run.dir.") from error
        if not isinstance(earlier, dict):
            raise CheckpointError(
                f"{path}: found {type(earlier).__name__}, expected the configuration of a run. "
                "Give another run.dir."
            )
        return earlier

    def _require_same_run(self, earlier: dict[str, Any] | None) -> None:
        if earlier is None:
            return
        # A key that an earlier version did not know had the effect of its default.
        defaults = _flat(asdict(type(self.config)()))
        before, now = defaults | _flat(earlier), _flat(self.plain)
        same_data = self._has_same_data()
        changed = [
            f"{key}: {before.get(key)!r} → {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
            and key not in CHANGEABLE
            and not (key == "data.path" and same_data)
        ]
        if not changed and same_data is False:
            changed = [f"data.path: {now['data.path']} has other content than before"]
        if changed:
            raise UsageError(
                f"{self.folder} holds a run with another configuration ({'; '.join(changed)}). "
                "Give another run.dir, or the same keys to resume it."
            )

    def _has_same_data(self) -> bool | None:
        """Whether the data have the SHA-256 they had when the run began; None if unknown."""
        path = self.config.data.path
        if path is None or not Path(path).exists():
            return None
        try:
            provenance = json.loads((self.folder / PROVENANCE).read_text("utf-8"))
            before = provenance["data"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        now = fingerprint(path)
        return now is not None and before == now["sha256"]

    def _is_complete(self, earlier: dict[str, Any] | None) -> bool:
        """Whether the folder holds the figures that this configuration would end with."""
        try:
            summary = json.loads((self.folder / SUMMARY).read_text("utf-8"))
            reached = int(summary["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        before, now = _flat(earlier or {}), _flat(self.plain)
        same = [
            before.get(key) == now[key]
            for key in ("train.final_structures", "train.steps", "train.minutes")
        ]
        return same[0] and (all(same) or self.config.train.steps <= reached)

    def _save_weights(self, trainer: Trainer, dataset: Dataset) -> None:
        save_weights(self.folder / WEIGHTS, trainer.best_flow(), self.plain, dataset.statistics)

    def _finish(self, trainer: Trainer, dataset: Dataset) -> None:
        progress = trainer.progress
        summary: dict[str, Any] = {
            "name": self.config.name,
            "steps": progress.step,
            "skipped_steps": progress.skipped,
            "seconds": round(progress.seconds, 2),
            "cpu_seconds": round(progress.cpu_seconds, 2),
            "data_cpu_seconds": round(self.data_seconds, 2),
            "best_step": progress.best_step,
            "val_loss": progress.best_loss,
        }
        if self.config.train.final_structures:
            is_drawn = isinstance(trainer.flow, MaskedMolecularFlow)
            of_held_out = "" if is_drawn else "log-likelihood of held-out structures, and "
            self.report(f"final figures: {of_held_out}draws")
            summary |= final_figures(
                trainer.best_flow(),
                dataset,
                build_divergence(self.config.divergence),
                self.config.train.final_structures,
                self.config.seed,
            )
        if progress.skipped:
            self.report(
                f"{progress.skipped:,} steps had no finite loss and gradient, see metrics.csv"
            )
        storage.write_text(self.folder / SUMMARY, json.dumps(_finite(summary), indent=2))
        for name in (
            "val_nll",
            "test_nll",
            "kl",
            "ess",
            "atoms_stable",
            "molecules_stable",
            "valid",
        ):
            if name in summary:
                left_out = summary.get(f"{name}_left_out", 0)
                without = f", without {left_out} of probability 0 or failed" if left_out else ""
                self.report(f"{name}: {summary[name]:.4g}" + _error(summary, name) + without)


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _finite(summary: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN or infinity: null stands for a figure that could not be computed."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in summary.items()
    }


def _error(summary: dict[str, Any], name: str) -> str:
    error = summary.get(f"{name}_se", math.nan)
    return "" if math.isnan(error) else f" ± {error:.2g}"
