"""The step loop of structures: a flow, an objective, and clouds in batches of similar sizes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eqflow import rng
from eqflow.data import SizeBatches
from eqflow.edges.backend import as_chosen, current_choice
from eqflow.errors import SolverFailed
from eqflow.flows import AbstractFlow, AbstractObjective
from eqflow.geometry import Clouds
from eqflow.halving import by_halves
from eqflow.rng import Purpose
from eqflow.train.abstract_loop import PATIENCE, AbstractTrainer, moving_average
from eqflow.train.config import TrainConfig
from eqflow.train.processes import Processes
from eqflow.train.progress import Gradient, Progress

SHOWN = 8  # structures of a step that is skipped, in the log

__all__ = ["PATIENCE", "Progress", "Trainer", "moving_average"]


class Trainer(AbstractTrainer[AbstractFlow]):
    """One training run of a flow.

    Args:
        flow: The model, updated in place.
        objective: What a step minimises.
        train, validation: Structures in the unit of the data.
        config: The loop's settings.
        seed: All randomness is a function of it.
        processes: Those that share the run; this one alone where None.
    """

    def __init__(
        self,
        flow: AbstractFlow,
        objective: AbstractObjective,
        train: Clouds,
        validation: Clouds,
        config: TrainConfig,
        seed: int,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(flow, config, seed, processes=processes)
        self.compile = config.compile
        self.objective = objective
        self.train = train
        self.batches = SizeBatches(train.sizes, config.batch_size, seed, config.pairs)
        held_out = validation[: config.validation_structures]
        cut = SizeBatches(held_out.sizes, config.batch_size, 0, config.pairs)
        self.held_out = [held_out[index] for index in cut.epoch(0)]
        self._too_large: list[int] = []  # training structures that the step showed to be so

    @property
    def flow(self) -> AbstractFlow:
        """The model."""
        return self.model

    def best_flow(self) -> AbstractFlow:
        """A copy of the flow with the best averaged weights; the newest before any validation."""
        return self.best_model().eval()

    def run(self, *arguments: Any, **options: Any) -> None:
        """As `AbstractTrainer.run`, with message passes compiled where the configuration says."""
        choice = current_choice()
        with as_chosen(replace(choice, compiled=choice.compiled or self.compile)):
            super().run(*arguments, **options)

    def gradient_of_step(self, step: int) -> Gradient:
        """That of the objective on this process's share of the step's structures.

        What does not fit into memory is tried in halves, and what does not alone is left out from
        then on. The terms of halves and shares count by how many structures they are of.
        """
        whole = self.batches.batch_at(step).tolist()
        own = [place for place in self.processes.share(whole) if place not in self._left_out]
        total = self.processes.sums([float(len(own))])[0]
        parts, too_large = by_halves(own, lambda some: self._gradient_of(some, step, total))
        self._too_large += too_large
        values: list[Tensor | None] = [None] * len(self.weights)
        terms = {"loss": 0.0}
        for _, part in parts:
            values = [_plus(one, other) for one, other in zip(values, part.values, strict=True)]
            terms = {name: terms.get(name, 0.0) + value for name, value in part.terms.items()}
        return Gradient(values, terms, sum(part.size for _, part in parts))

    def _gradient_of(self, some: list[int], step: int, total: float) -> Gradient:
        """That of some structures; all that is drawn is drawn for the step and for them."""
        part: list[Purpose] = [] if len(some) == total else ["from", some[0], len(some)]
        source = rng.generator(self.seed, "train", "objective", step, *part, device=self.device)
        features = rng.generator(self.seed, "train", "features", step, *part, device=self.device)
        batch = self.flow.batch(self.train[torch.tensor(some)], features)
        self.flow.train()
        with rng.seeded(self.seed, "train", "poses", step, *part, device=self.device):
            loss = self.objective(self.flow.continuous, batch, source)
        return self.gradient(loss, len(some) / total, len(some))

    def describe_step(self, step: int) -> str:
        """Which structures a step is made of."""
        places = self.batches.batch_at(step).tolist()
        sources = self.train.source
        names = [sources[place] if sources else str(place) for place in places[:SHOWN]]
        more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
        return f"training structures {', '.join(names)}{more}"

    def share_what_was_found(self) -> None:
        """Structures too large for the memory of one process are left out by all."""
        if not self.processes.any(bool(self._too_large)):
            return
        found = torch.zeros(len(self.train))
        found[self._too_large] = 1
        self._too_large.clear()
        for place, times in enumerate(self.processes.sums(found.tolist())):
            if times:
                self._leave_out(place)

    def _leave_out(self, place: int) -> None:
        self.progress.left_out.append(place)
        points = int(self.train.sizes[place])
        source = f" ({self.train.source[place]})" if self.train.source else ""
        self.notices.append(
            f"training structure {place}{source} of {points:,} points does not fit into memory and "
            "is left out"
        )

    @property
    def _left_out(self) -> set[int]:
        return set(self.progress.left_out)

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
        total = count = failures = left_out = 0.0
        for place, clouds in self.processes.share(list(enumerate(self.held_out))):
            try:
                parts, too_large = by_halves(
                    range(len(clouds)), partial(self._loss_of, clouds, place)
                )
            except SolverFailed:
                failures += 1
                continue
            left_out += len(too_large)
            total += sum(value for _, value in parts)
            count += sum(len(some) for some, _ in parts)
        total, count, failures, left_out = self.processes.sums([total, count, failures, left_out])
        if left_out and left_out != self.progress.not_validated:
            self.notices.append(
                f"{left_out:,.0f} validation structures do not fit into memory and are left out"
            )
        self.progress.not_validated = int(left_out)
        return math.inf if failures or not count else total / count

    def _loss_of(self, clouds: Clouds, place: int, some: list[int]) -> float:
        """The sum over some structures of a held-out batch of their loss, the same each time."""
        part: list[Purpose] = [] if len(some) == len(clouds) else ["from", some[0], len(some)]
        source = rng.generator(self.seed, "validate", place, *part, device=self.device)
        features = rng.generator(
            self.seed, "validate", "features", place, *part, device=self.device
        )
        batch = self.averaged.batch(clouds[torch.tensor(some)] if part else clouds, features)
        return float(self.objective(self.averaged.continuous, batch, source).value) * len(some)


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of gradients, of which None is zero."""
    return other if one is None else one if other is None else one + other
