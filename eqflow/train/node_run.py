"""A run that trains a classifier on the nodes of a graph, and its folder."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, ClassVar

from eqflow.errors import NumericalError, SolverFailed
from eqflow.flows.diffusion_arguments import Measure
from eqflow.train.abstract_run import AbstractRun
from eqflow.train.build import chosen_device
from eqflow.train.build_nodes import build_classifier
from eqflow.train.folder import fingerprint
from eqflow.train.node_config import NodeConfig
from eqflow.train.node_data import NodeData, files_read, load_nodes, moved
from eqflow.train.node_loop import Fit, NodeTrainer, fit
from eqflow.train.node_problems import problems_of

# A loss so many times that of a guess is no solution of anything: logits have blown up.
BLOWN_UP = 100.0


class NodeRun(AbstractRun[NodeConfig, NodeTrainer]):
    """One training run of a classifier in its folder; see `AbstractRun`."""

    duration: ClassVar[tuple[str, ...]] = (*AbstractRun.duration, "train.patience")

    data: NodeData
    data_seconds: float

    def problems(self) -> list[str]:
        """Everything wrong with the configuration, before anything is read; a line each."""
        return problems_of(self.config)

    def data_path(self) -> str | None:
        """File or folder of the graph; None where it is a known one, downloaded."""
        return self.config.data.path

    def data_fingerprint(self) -> dict[str, str] | None:
        """Where the graph comes from and the SHA-256 of what is read; None if downloaded."""
        data = self.config.data
        if data.path is None:
            return None
        return fingerprint(data.path, files_read(data.source, Path(data.path)))

    def prepare(self) -> NodeTrainer:
        """Read the graph, rewire and encode it; build classifier and trainer."""
        config = self.config
        started = time.process_time()
        self.data = load_nodes(config, self.announce)
        self.data_seconds = time.process_time() - started
        weights: dict[Measure, float] = {
            "kinetic": config.regularisation.kinetic,
            "jacobian": config.regularisation.jacobian,
        }
        penalties = {name: weight for name, weight in weights.items() if weight}
        classifier = build_classifier(
            config.model, config.solver, self.data.statistics, config.seed, tuple(penalties)
        )
        device = chosen_device(config.train.device)
        return NodeTrainer(
            classifier.to(device),
            moved(self.data.graph, device),
            self.data.split.to(device),
            config.train,
            penalties,
            config.seed,
        )

    def describe(self, trainer: NodeTrainer) -> list[str]:
        """Lines about graph, split and classifier."""
        split = self.data.split
        counts = ", ".join(f"{int(mask.sum()):,} {name}" for name, mask in split.parts.items())
        weights = sum(parameter.numel() for parameter in trainer.model.parameters())
        return [
            f"data: {self.data.graph}",
            f"split: {split.name}, {counts} nodes",
            *self.data.notices,
            f"model: {self.config.model.name}, {weights:,} weights",
        ]

    def statistics(self, trainer: NodeTrainer) -> dict[str, Any]:
        """What the classifier needs to know of its graph, and when the state is read."""
        chosen = trainer.progress.best_time
        return self.data.statistics | ({} if chosen is None else {"stop_time": chosen})

    def final_figures(self, trainer: NodeTrainer) -> tuple[dict[str, Any], list[str]]:
        """Accuracy and loss of every part with the best weights; test nodes are read here alone."""
        progress, split = trainer.progress, self.data.split
        if progress.skipped >= progress.step:
            raise NumericalError(
                f"{self.folder}: none of the {progress.step} steps had a finite loss and gradient, "
                "so nothing was learned. Lower model.time in another run.dir."
            )
        readings = trainer.readings(trainer.best_model())
        logits = dict(readings).get(progress.best_time, readings[0][1]).cpu()
        if not bool(logits.isfinite().all()):
            raise NumericalError(
                f"{self.folder}: the best weights give logits that are not finite, so there are no "
                "final figures. Lower train.learning_rate or model.time in another run.dir."
            )
        y = self.data.graph.y
        found: dict[str, Fit] = {name: fit(logits, y, mask) for name, mask in split.parts.items()}
        notices = self._notices(trainer, found["validation"])
        taken = progress.step - progress.skipped
        figures: dict[str, Any] = {
            "val_accuracy": found["validation"].accuracy,
            "test_accuracy": found["test"].accuracy,
            "train_accuracy": found["train"].accuracy,
            "val_loss": found["validation"].loss,
            "test_loss": found["test"].loss,
            "train_loss": found["train"].loss,
            "test_nodes": int(split.test.sum()),
            "evaluations": progress.evaluations / max(taken, 1),
            "split": split.name,
            "data_cpu_seconds": round(self.data_seconds, 2),
            "notices": notices,
        }
        if self.config.train.stop_times:
            figures["stop_time"] = progress.best_time
        if trainer.ended_by() == "train.patience":
            notices.append(
                f"ended by train.patience={self.config.train.patience}: no better validation since "
                f"step {progress.best_step:,}"
            )
        return figures, [
            *notices,
            f"best step: {progress.best_step:,}",
            f"val_accuracy: {figures['val_accuracy']:.4f}, by which the weights were chosen",
            f"test_accuracy: {figures['test_accuracy']:.4f} over {figures['test_nodes']:,} nodes",
        ]

    def _notices(self, trainer: NodeTrainer, validation: Fit) -> list[str]:
        """What is to be known of figures that are finite and yet those of an unstable run.

        Raises:
            NumericalError: If the best weights do no better than a guess, at a loss far above it.
        """
        progress = trainer.progress
        guess = math.log(self.data.graph.classes)
        mended = (
            "Lower model.time or train.learning_rate, or take more solver.steps or a smaller "
            "solver.rtol, in another run.dir."
        )
        if validation.loss > BLOWN_UP * guess:
            labels = self.data.graph.y[self.data.split.validation]
            commonest = float(labels.bincount().max()) / len(labels)
            found = (
                f"a validation loss of {validation.loss:.3g}, where a guess of all classes alike "
                f"has {guess:.3g}: logits have blown up"
            )
            if validation.accuracy <= commonest:
                raise NumericalError(
                    f"{self.folder}: the best weights have {found}, and they tell no class. "
                    f"{mended}"
                )
            return [f"notice: the best weights have {found}. {mended}"]
        if progress.best_step == progress.step:
            return []
        try:
            logits = trainer.readings(trainer.averaged)[-1][1].cpu()
            loss = fit(logits, self.data.graph.y, self.data.split.validation).loss
        except SolverFailed:
            loss = math.inf
        if loss <= BLOWN_UP * guess:
            return []
        return [
            f"notice: after the best step the run became unstable: at its end the validation loss "
            f"is {loss:.3g}, where a guess of all classes alike has {guess:.3g}. {mended}"
        ]

    def is_told(self, trainer: NodeTrainer, figures: dict[str, float]) -> bool:
        """A line for people at logged steps alone: every epoch is validated."""
        due = trainer.progress.step % self.config.train.log_every == 0
        return due or "skipped" in figures or trainer.finished()
