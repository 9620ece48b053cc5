"""The step loop that every task shares: short enough to read from top to bottom.

Every step is a function of the state before it and of `(seed, step)`: which data, which noise,
which learning rate. A run killed at any moment and started again by the same command therefore ends
with the same weights, bit for bit on a CPU, as one that was never interrupted (while
`train.minutes` is not what ends it: time is not a function of the seed).

A task says what its model is, what a step minimises (`loss_of_step`) and what makes weights the
best so far (`validate`). Several processes would differ in one place, `AbstractTrainer.step`: each
takes its share of the batch and the gradients are averaged before `clip_grad_norm_`.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eqflow.errors import NumericalError, SolverFailed
from eqflow.flows.objectives import Loss
from eqflow.train.config import LoopConfig

# Steps in a row without a finite loss and gradient after which a run gives up.
PATIENCE = 10

Tensors = tuple[Tensor, ...] | list[Tensor]
Model = TypeVar("Model", bound=nn.Module)


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


class AbstractTrainer(ABC, Generic[Model]):
    """One training run of a task.

    Args:
        model: Updated in place.
        config: The loop's settings.
        seed: All randomness is a function of it.
        progress: Where to begin; what `load_state` replaces.
    """

    def __init__(
        self, model: Model, config: LoopConfig, seed: int, progress: Progress | None = None
    ) -> None:
        self.model = model
        self.config = config
        self.seed = seed
        self.progress = progress or Progress()
        self.device = next(model.parameters()).device
        self.optimizer = self.build_optimizer()
        self.average: AveragedModel = AveragedModel(
            model, multi_avg_fn=moving_average(config.ema_decay)
        )
        self.best = weights_of(self.averaged)

    @abstractmethod
    def loss_of_step(self, step: int) -> Loss:
        """What the step minimises: a function of the weights, the seed and `step`.

        Raises:
            SolverFailed: If an integration within it ended early; the step is then skipped.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights on held-out data, `val_loss` among them.

        A function of the weights alone. Calls `keep_best` if they are the best so far.
        """

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with decoupled weight decay, unless the task has another."""
        return torch.optim.AdamW(
            self.model.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )

    @property
    def averaged(self) -> Model:
        """The model with the moving average of the weights."""
        return cast(Model, self.average.module)

    def keep_best(self, loss: float) -> None:
        """Keep the averaged weights as the best so far."""
        self.progress.best_loss = loss
        self.progress.best_step = self.progress.step
        self.best = weights_of(self.averaged)

    def best_model(self) -> Model:
        """A copy of the model with the best averaged weights; the newest before any validation."""
        model = copy.deepcopy(self.averaged)
        if math.isfinite(self.progress.best_loss):
            model.load_state_dict(self.best)
        return model

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
            if step % config.validate_every == 0 or self.fraction_done() >= 1:
                figures |= self.validate()
            last = self.finished()
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
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        self.optimizer.zero_grad(set_to_none=True)
        figures: dict[str, float] = {"learning_rate": rate}
        clip = math.inf if self.config.clip is None else self.config.clip
        try:
            loss = self.loss_of_step(self.progress.step)
            loss.value.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip))
            figures |= {"gradient_norm": norm, **loss.terms}
            finite = math.isfinite(norm) and math.isfinite(loss.terms["loss"])
        except SolverFailed:
            finite = False

        self.progress.step += 1
        if finite:
            self.optimizer.step()
            self.average.update_parameters(self.model)
            self.progress.skipped_in_a_row = 0
            self.progress.evaluations += figures.get("evaluations", 0.0)
        else:
            figures = {**figures, "skipped": 1.0}
            self.progress.skipped += 1
            self.progress.skipped_in_a_row += 1
        return figures

    def _require_finite_weights(self) -> None:
        """Parameters on disk are never NaN: what is not finite is not saved."""
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
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

    def ended_by(self) -> str:
        """The key of what ended a finished run."""
        return "train.steps" if self.progress.step >= self.config.steps else "train.minutes"

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs, as plain values and tensors."""
        return {
            "weights": self.model.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "progress": dict(vars(self.progress)),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.model.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.progress = type(self.progress)(**state["progress"])


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    r"""Exponential moving average :math:`a \leftarrow a + (1 - \beta_k)(w - a)`.

    :math:`\beta_k = \min(\beta, (1 + k) / (10 + k))` after `k` updates: a short run averages over
    its last tenth and not over its initial weights.
    """

    def update(average: Tensors, weights: Tensors, count: Tensor | int) -> None:
        k = int(count)
        torch._foreach_lerp_(average, weights, 1 - min(decay, (1 + k) / (10 + k)))

    return update


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in a module's state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
