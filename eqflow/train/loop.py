"""The step loop of structures: a flow, an objective, and clouds in batches of similar sizes."""

from __future__ import annotations

import math

import torch

from eqflow import rng
from eqflow.data import SizeBatches
from eqflow.errors import SolverFailed
from eqflow.flows import AbstractFlow, AbstractObjective
from eqflow.flows.objectives import Loss
from eqflow.geometry import Clouds
from eqflow.train.abstract_loop import PATIENCE, AbstractTrainer, Progress, moving_average
from eqflow.train.config import TrainConfig

__all__ = ["PATIENCE", "Progress", "Trainer", "moving_average"]


class Trainer(AbstractTrainer[AbstractFlow]):
    """One training run of a flow.

    Args:
        flow: The model, updated in place.
        objective: What a step minimises.
        train, validation: Structures in the unit of the data.
        config: The loop's settings.
        seed: All randomness is a function of it.
    """

    def __init__(
        self,
        flow: AbstractFlow,
        objective: AbstractObjective,
        train: Clouds,
        validation: Clouds,
        config: TrainConfig,
        seed: int,
    ) -> None:
        super().__init__(flow, config, seed)
        self.objective = objective
        self.train = train
        self.batches = SizeBatches(train.sizes, config.batch_size, seed, config.pairs)
        held_out = validation[: config.validation_structures]
        cut = SizeBatches(held_out.sizes, config.batch_size, 0, config.pairs)
        self.held_out = [held_out[index] for index in cut.epoch(0)]

    @property
    def flow(self) -> AbstractFlow:
        """The model."""
        return self.model

    def best_flow(self) -> AbstractFlow:
        """A copy of the flow with the best averaged weights; the newest before any validation."""
        return self.best_model().eval()

    def loss_of_step(self, step: int) -> Loss:
        """The objective on the step's structures; all that is drawn is drawn for the step."""
        source = rng.generator(self.seed, "train", "objective", step, device=self.device)
        features = rng.generator(self.seed, "train", "features", step, device=self.device)
        batch = self.flow.batch(self.train[self.batches.batch_at(step)], features)
        self.flow.train()
        with rng.seeded(self.seed, "train", "poses", step, device=self.device):
            return self.objective(self.flow.continuous, batch, source)

    def validate(self) -> dict[str, float]:
        """Mean loss of the averaged weights on held-out structures, the draws always the same.

        Keeps the weights if they are the best so far.
        """
        value = self._loss_held_out()
        if value < self.progress.best_loss:
            self.keep_best(value)
        return {"val_loss": value}

    @torch.no_grad()
    def _loss_held_out(self) -> float:
        self.averaged.eval()
        total = 0.0
        count = 0
        for place, clouds in enumerate(self.held_out):
            source = rng.generator(self.seed, "validate", place, device=self.device)
            features = rng.generator(self.seed, "validate", "features", place, device=self.device)
            batch = self.averaged.batch(clouds, features)
            try:
                loss = self.objective(self.averaged.continuous, batch, source)
            except SolverFailed:
                return math.inf
            total += float(loss.value) * len(clouds)
            count += len(clouds)
        return total / count
