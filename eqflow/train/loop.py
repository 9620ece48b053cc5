"""The step loop: short enough to read from top to bottom.

Every step is a function of the state before it and of `(seed, step)`: which structures, which
noise, which learning rate. A run killed at any moment and started again by the same command
therefore ends with the same weights, bit for bit on a CPU, as one that was never interrupted (while
`train.minutes` is not what ends it: time is not a function of the seed).

Several processes would differ in one place, `Trainer.step`: each takes its share of the batch and
the gradients are averaged before `clip_grad_norm_`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from eqflow import rng
from eqflow.data import SizeBatches
from eqflow.errors import NumericalError, SolverFailed
from eqflow.flows import AbstractFlow, AbstractObjective
from eqflow.geometry import Clouds
from eqflow.train.config import TrainConfig

# Steps in a row without a finite loss and gradient after which a run gives up.
PATIENCE = 10

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass
class Progress:
    """Counters of a run, all of them saved and resumed."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    evaluations: float = 0.0


@dataclass
class Trainer:
    """One training run.

    Args:
        flow: The model, updated in place.
        objective: What a step minimises.
        train, validation: Structures in the unit of the data.
        config: The loop's settings.
        seed: All randomness is a function of it.
    """

    flow: AbstractFlow
    objective: AbstractObjective
    train: Clouds
    validation: Clouds
    config: TrainConfig
    seed: int
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.device = next(self.flow.parameters()).device
        self.optimizer = torch.optim.AdamW(
            self.flow.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        self.average: AveragedModel = AveragedModel(
            self.flow, multi_avg_fn=moving_average(self.config.ema_decay)
        )
        self.best = _weights(self.averaged)
        self.batches = SizeBatches(
            self.train.sizes, self.config.batch_size, self.seed, self.config.pairs
        )
        held_out = self.validation[: self.config.validation_structures]
        cut = SizeBatches(held_out.sizes, self.config.batch_size, 0, self.config.pairs)
        self.held_out = [held_out[index] for index in cut.epoch(0)]

    @property
    def averaged(self) -> AbstractFlow:
        """The flow with the moving average of the weights."""
        module = self.average.module
        if not isinstance(module, AbstractFlow):
            raise TypeError("the averaged model is not a flow")
        return module

    def best_flow(self) -> AbstractFlow:
        """A copy of the flow with the best averaged weights; the newest before any validation."""
        flow = copy.deepcopy(self.averaged)
        if math.isfinite(self.progress.best_loss):
            flow.load_state_dict(self.best)
        return flow

    def run(
        self,
        record: Callable[[dict[str, float]], None],
        save: Callable[[], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Train until the last step, the last minute, or a request to stop.

        Args:
            record: Called with the figures of a logged step.
            save: Called when the state is to be written.
            stop_requested: Asked after every step.

        Raises:
            NumericalError: If several steps in a row gave no finite gradient, with the weights of
                the last finite step saved; or if the weights themselves are not finite, with
                nothing saved.
        """
        config = self.config
        started, cpu_started = time.monotonic(), time.process_time()
        earlier, cpu_earlier = self.progress.seconds, self.progress.cpu_seconds
        while not self.finished():
            figures = self.step()
            self.progress.seconds = earlier + time.monotonic() - started
            self.progress.cpu_seconds = cpu_earlier + time.process_time() - cpu_started
            step = self.progress.step
            last = self.finished()
            if step % config.validate_every == 0 or last:
                figures["val_loss"] = self.validate()
            if step % config.log_every == 0 or "val_loss" in figures or "skipped" in figures:
                record({"step": step, "seconds": self.progress.seconds, **figures})
            if self.progress.skipped_in_a_row >= PATIENCE:
                self._require_finite_weights()
                save()
                raise NumericalError(
                    f"step {step}: {PATIENCE} steps in a row had no finite loss and gradient. The "
                    "weights of the last finite step are saved; lower train.learning_rate or "
                    "train.clip and start again in another run.dir."
                )
            stopping = stop_requested()
            if step % config.checkpoint_every == 0 or last or stopping:
                self._require_finite_weights()
                save()
            if stopping:
                return

    def step(self) -> dict[str, float]:
        """One update; a step without a finite loss and gradient changes no weight."""
        step = self.progress.step
        source = rng.generator(self.seed, "train", "objective", step, device=self.device)
        features = rng.generator(self.seed, "train", "features", step, device=self.device)
        batch = self.flow.batch(self.train[self.batches.batch_at(step)], features)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        self.optimizer.zero_grad(set_to_none=True)
        figures: dict[str, float] = {"learning_rate": rate}
        try:
            loss = self.objective(self.flow.continuous, batch, source)
            loss.value.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.config.clip))
            figures |= {"gradient_norm": norm, **loss.terms}
            finite = math.isfinite(norm) and math.isfinite(loss.terms["loss"])
        except SolverFailed:
            finite = False

        self.progress.step += 1
        if finite:
            self.optimizer.step()
            self.average.update_parameters(self.flow)
            self.progress.skipped_in_a_row = 0
            self.progress.evaluations += figures.get("evaluations", 0.0)
        else:
            figures = {**figures, "skipped": 1.0}
            self.progress.skipped += 1
            self.progress.skipped_in_a_row += 1
        return figures

    def validate(self) -> float:
        """Mean loss of the averaged weights on held-out structures, the draws always the same.

        Keeps the weights if they are the best so far.
        """
        total = 0.0
        count = 0
        with torch.no_grad():
            for place, clouds in enumerate(self.held_out):
                source = rng.generator(self.seed, "validate", place, device=self.device)
                features = rng.generator(
                    self.seed, "validate", "features", place, device=self.device
                )
                batch = self.averaged.batch(clouds, features)
                try:
                    loss = self.objective(self.averaged.continuous, batch, source)
                except SolverFailed:
                    return math.inf
                total += float(loss.value) * len(clouds)
                count += len(clouds)
        value = total / count
        if value < self.progress.best_loss:
            self.progress.best_loss = value
            self.progress.best_step = self.progress.step
            self.best = _weights(self.averaged)
        return value

    def _require_finite_weights(self) -> None:
        """Parameters on disk are never NaN: what is not finite is not saved."""
        if not all(bool(weight.isfinite().all()) for weight in self.flow.parameters()):
            raise NumericalError(
                f"step {self.progress.step}: the weights are not finite, and were not saved; the "
                "checkpoint before is intact. Lower train.learning_rate in another run.dir."
            )

    def learning_rate(self) -> float:
        """Linear warm-up, then the cosine of the fraction done, or a constant."""
        config = self.config
        rate = config.learning_rate * min(
            1.0, (self.progress.step + 1) / max(config.warmup_steps, 1)
        )
        if config.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(self.fraction_done(), 1.0)))
        return rate

    def fraction_done(self) -> float:
        """How much of the run is done, by steps or by time, whichever is further."""
        fraction = self.progress.step / self.config.steps
        if self.config.minutes is not None:
            fraction = max(fraction, self.progress.seconds / (60 * self.config.minutes))
        return fraction

    def finished(self) -> bool:
        """Whether the last step or minute is reached."""
        return self.fraction_done() >= 1

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs, as plain values and tensors."""
        return {
            "weights": self.flow.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "progress": dict(vars(self.progress)),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.flow.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.progress = Progress(**state["progress"])


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    r"""Exponential moving average :math:`a \leftarrow a + (1 - \beta_k)(w - a)`.

    :math:`\beta_k = \min(\beta, (1 + k) / (10 + k))` after `k` updates: a short run averages over
    its last tenth and not over its initial weights.
    """

    def update(average: Tensors, weights: Tensors, count: Tensor | int) -> None:
        k = int(count)
        torch._foreach_lerp_(average, weights, 1 - min(decay, (1 + k) / (10 + k)))

    return update


def _weights(flow: AbstractFlow) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in flow.state_dict().items()}
