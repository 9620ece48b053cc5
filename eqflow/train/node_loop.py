"""The step loop of node classification: a classifier, one graph, all of its nodes at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eqflow import rng
from eqflow.errors import SolverFailed
from eqflow.flows.diffusion_arguments import Measure
from eqflow.flows.objectives import Loss
from eqflow.graphs import Graph, Split
from eqflow.graphs.classifier import AbstractNodeClassifier
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.train.abstract_loop import AbstractTrainer
from eqflow.train.node_config import NodeTrainConfig
from eqflow.train.progress import Gradient, Progress


class Fit(NamedTuple):
    """How well logits fit the labels of some nodes: accuracy, and mean cross entropy in nats."""

    accuracy: float
    loss: float

    def is_better(self, other: Fit) -> bool:
        """Whether it is the better one: by accuracy, by loss where accuracies are the same."""
        return math.isfinite(self.loss) and (
            self.accuracy > other.accuracy
            or (self.accuracy == other.accuracy and self.loss < other.loss)
        )


WORST = Fit(-1.0, math.inf)


def fit(logits: Tensor, y: Tensor, nodes: Tensor) -> Fit:
    """How well logits (N, K) fit labels `y` (N,) on the nodes of a mask (N,).

    The infinite loss and accuracy 0 where a logit of these nodes is not finite.
    """
    chosen, labels = logits[nodes], y[nodes]
    if not bool(chosen.isfinite().all()):
        return Fit(0.0, math.inf)
    accuracy = (chosen.argmax(1) == labels).double().mean()
    return Fit(float(accuracy), float(cross_entropy(chosen.double(), labels)))


@dataclass
class NodeProgress(Progress):
    """Counters, with what the best weights reached on validation nodes, and where they are read."""

    best_accuracy: float = -1.0
    best_time: float | None = None


class NodeTrainer(AbstractTrainer[AbstractNodeClassifier]):
    """One training run of a classifier on one graph.

    A step minimises the cross entropy of the training nodes, and the penalties of the classifier by
    their weights. Weights are the best by accuracy on validation nodes, at equal accuracy by loss;
    test nodes are never looked at.

    Args:
        classifier: The model, updated in place.
        graph: All nodes, with labels wherever the split has them.
        split: Training and validation nodes.
        config: The loop's settings.
        penalties: Weights of what the classifier penalises, by name.
        seed: All randomness is a function of it.
    """

    config: NodeTrainConfig
    progress: NodeProgress

    def __init__(
        self,
        classifier: AbstractNodeClassifier,
        graph: Graph,
        split: Split,
        config: NodeTrainConfig,
        penalties: Mapping[Measure, float],
        seed: int,
    ) -> None:
        self.graph = graph
        self.split = split
        self.penalties = {name: weight for name, weight in penalties.items() if weight}
        super().__init__(classifier, config, seed, NodeProgress())

    def gradient_of_step(self, step: int) -> Gradient:
        """That of cross entropy and penalties; dropout is drawn for the step."""
        return self.gradient(self.loss_of_step(step))

    def loss_of_step(self, step: int) -> Loss:
        """Cross entropy of the training nodes, and penalties; dropout is drawn for the step."""
        self.model.train()
        with rng.seeded(self.seed, "train", "dropout", step, device=self.device):
            found = self.model.classify(self.graph)
        nodes = self.split.train
        entropy = cross_entropy(found.logits[nodes], self.graph.y[nodes])
        total = entropy
        terms = {"cross_entropy": float(entropy.detach())}
        for name, weight in self.penalties.items():
            total = total + weight * found.penalties[name]
            terms[name] = float(found.penalties[name].detach())
        accuracy = (found.logits[nodes].argmax(1) == self.graph.y[nodes]).double().mean()
        counted = {"train_accuracy": float(accuracy), "evaluations": float(found.evaluations)}
        return Loss(total, {"loss": float(total.detach()), **terms, **counted})

    def validate(self) -> dict[str, float]:
        """Accuracy and loss of the averaged weights on validation nodes, without dropout.

        Keeps the weights if they are the best so far, and with `train.stop_times` the time at which
        they are.
        """
        reached, time = WORST, None
        try:
            for candidate, logits in self.readings(self.averaged):
                found = fit(logits, self.graph.y, self.split.validation)
                if found.is_better(reached):
                    reached, time = found, candidate
        except SolverFailed:
            reached = WORST
        best = Fit(self.progress.best_accuracy, self.progress.best_loss)
        if reached.is_better(best):
            self.progress.best_accuracy, self.progress.best_time = reached.accuracy, time
            self.keep_best(reached.loss)
        figures = {"val_loss": reached.loss, "val_accuracy": max(reached.accuracy, 0.0)}
        return figures | ({} if time is None else {"time": time})

    @torch.no_grad()
    def readings(self, model: AbstractNodeClassifier) -> list[tuple[float | None, Tensor]]:
        """Logits (N, K) without dropout, each with the time at which the state is read.

        The time is None for that of the model; with `train.stop_times` it is among them.
        """
        model.eval()
        if not self.config.stop_times or not isinstance(model, DiffusionClassifier):
            return [(None, model(self.graph))]
        times = sorted({model.time, *self.config.stop_times})
        return list(zip(times, model.logits_at(self.graph, times), strict=True))

    def is_stale(self) -> bool:
        """Whether patience has run out."""
        patience, step = self.config.patience, self.progress.step
        validated = step - step % self.config.validate_every
        return patience is not None and validated - self.progress.best_step >= patience

    def finished(self) -> bool:
        """Whether the last step or minute is reached, or patience has run out."""
        return self.is_stale() or super().finished()

    def ended_by(self) -> str:
        """The key of what ended a finished run."""
        return super().ended_by() if super().finished() else "train.patience"
