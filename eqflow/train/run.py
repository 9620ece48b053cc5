"""A training run and its folder: prepare or resume, train, write the figures at the end."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from eqflow import storage
from eqflow.errors import CheckpointError, UsageError
from eqflow.evaluate import effective_sample_size, kl_to_target, negative_log_likelihood
from eqflow.flows import Flow
from eqflow.geometry import Clouds
from eqflow.targets import AbstractTarget
from eqflow.train.build import (
    build_divergence,
    build_flow,
    build_objective,
    chosen_device,
    problems_of,
)
from eqflow.train.checkpoint import WEIGHTS, newest_state, save_state, save_weights
from eqflow.train.config import Config
from eqflow.train.datasets import Dataset, load_dataset
from eqflow.train.loop import Trainer
from eqflow.train.metrics import MetricsFile, event_writer

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
        self._report = report
        self.plain: dict[str, Any] = asdict(config)
        self.plain["run"]["dir"] = str(self.folder)

    def report(self, line: str) -> None:
        """Tell people, and the log."""
        self._report(line)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")

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
        """
        if self.config.train.threads is not None:
            torch.set_num_threads(self.config.train.threads)
        self._require_same_run()
        dataset = load_dataset(self.config.data, self.config.seed)
        trainer = self._trainer(dataset)
        storage.require_writable(self.folder)
        state = newest_state(self.folder / "checkpoints")
        self._describe(dataset, trainer)
        if state is not None:
            self._restore(trainer, state)
        if not (self.folder / "provenance.json").is_file():
            self._write_provenance()
        storage.write_text(self.folder / "config.yaml", yaml.safe_dump(self.plain, sort_keys=False))
        metrics = MetricsFile(self.folder / "metrics.csv", trainer.progress.step)
        events = (
            event_writer(self.folder / "tensorboard") if self.config.train.tensorboard else None
        )

        def record(figures: dict[str, float]) -> None:
            metrics.append(figures)
            if events is not None:
                for name, value in figures.items():
                    events.add_scalar(name, value, trainer.progress.step)
            follow(trainer, figures)

        def save() -> None:
            save_state(self.folder / "checkpoints", trainer.progress.step, trainer.state())

        trainer.run(record, save, stop_requested)
        self._save_weights(trainer, dataset)
        if not trainer.finished():
            return False
        self._finish(trainer, dataset)
        return True

    def _trainer(self, dataset: Dataset) -> Trainer:
        config = self.config
        flow = build_flow(config.model, config.solver, dataset.statistics, config.seed)
        flow.to(chosen_device(config.train.device))
        return Trainer(
            flow,
            build_objective(config),
            dataset.parts["train"],
            dataset.parts["validation"],
            config.train,
            config.seed,
        )

    def _describe(self, dataset: Dataset, trainer: Trainer) -> None:
        parts = ", ".join(f"{len(clouds):,} {name}" for name, clouds in dataset.parts.items())
        weights = sum(parameter.numel() for parameter in trainer.flow.parameters())
        self.report(f"data: {self.config.data.source}, {parts} structures")
        for line in dataset.skipped:
            self.report(f"skipped: {line}")
        self.report(f"model: {self.config.model.name}, {weights:,} weights")

    def _restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        try:
            trainer.load_state(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}: its state does not fit this model ({error})."
            ) from error
        self.report(f"resumed at step {trainer.progress.step:,}")

    def _require_same_run(self) -> None:
        path = self.folder / "config.yaml"
        if not path.is_file():
            return
        try:
            earlier = yaml.safe_load(path.read_text("utf-8"))
        except yaml.YAMLError as error:
            raise CheckpointError(f"{path}: not YAML ({error}).") from error
        before, now = _flat(earlier), _flat(self.plain)
        changed = [
            f"{key}: {before.get(key)!r} → {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key not in CHANGEABLE
        ]
        if changed:
            raise UsageError(
                f"{self.folder} holds a run with another configuration ({'; '.join(changed)}). "
                "Give another run.dir, or the same keys to resume it."
            )

    def _save_weights(self, trainer: Trainer, dataset: Dataset) -> None:
        trainer.averaged.load_state_dict(trainer.best)
        save_weights(self.folder / WEIGHTS, trainer.averaged, self.plain, dataset.statistics)

    def _finish(self, trainer: Trainer, dataset: Dataset) -> None:
        progress = trainer.progress
        summary: dict[str, Any] = {
            "name": self.config.name,
            "steps": progress.step,
            "skipped_steps": progress.skipped,
            "seconds": round(progress.seconds, 2),
            "cpu_seconds": round(progress.cpu_seconds, 2),
            "best_step": progress.best_step,
            "val_loss": progress.best_loss,
        }
        if self.config.train.final_structures:
            self.report("final figures: log-likelihood of held-out structures")
            summary |= self._figures(trainer.averaged, dataset)
        storage.write_text(self.folder / "summary.json", json.dumps(_finite(summary), indent=2))
        for name in ("val_nll", "test_nll", "kl", "ess"):
            if name in summary:
                self.report(f"{name}: {summary[name]:.4g}" + _error(summary, name))

    def _figures(self, flow: Flow, dataset: Dataset) -> dict[str, Any]:
        """Likelihoods of held-out structures and, where the target is known, KL and ESS."""
        divergence = build_divergence(self.config.divergence)
        most = self.config.train.final_structures
        figures: dict[str, Any] = {"divergence": type(divergence).__name__.lower()}
        for part, name in (("validation", "val_nll"), ("test", "test_nll")):
            clouds = dataset.parts[part][:most]
            scores = flow.score(clouds, divergence=divergence, seed=self.config.seed)
            nll = negative_log_likelihood(scores.log_prob)
            figures |= {name: nll.value, f"{name}_se": nll.se, f"{name}_count": nll.count}
            figures[f"{name}_evaluations"] = int(scores.evaluations.max())
        if dataset.target is not None:
            log_target = _log_target(dataset.target, clouds)
            kl = kl_to_target(log_target, scores.log_prob)
            figures |= {"kl": kl.value, "kl_se": kl.se, "log_z_se": dataset.target.log_z.error}
            drawn = flow.draw(
                most, seed=self.config.seed, with_log_prob=True, divergence=divergence
            )
            if drawn.log_prob is not None:
                log_target = _log_target(dataset.target, drawn.clouds)
                figures["ess"] = effective_sample_size(log_target, drawn.log_prob)
            figures["sampling_evaluations"] = int(drawn.evaluations.max())
        return figures

    def _write_provenance(self) -> None:
        packages = ("eqflow", "torch", "torchdiffeq", "numpy", "scipy")
        provenance = {
            "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "packages": {name: _version(name) for name in packages},
            "data": _fingerprint(self.config.data.path),
        }
        storage.write_text(self.folder / "provenance.json", json.dumps(provenance, indent=2))


def _log_target(target: AbstractTarget, clouds: Clouds) -> torch.Tensor:
    return target.log_prob(clouds.segments.to_dense(clouds.x.double()))


def _fingerprint(path: str | None) -> dict[str, str] | None:
    if path is None:
        return None
    file = Path(path)
    digest = storage.sha256_of(file) if file.is_file() else "a folder"
    return {"path": str(file.resolve()), "sha256": digest}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed: run from a checkout"


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
    return f" ± {summary[f'{name}_se']:.2g}" if f"{name}_se" in summary else ""
