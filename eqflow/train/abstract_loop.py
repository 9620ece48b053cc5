"""The step loop that every task shares: short enough to read from top to bottom.

Every step is a function of the state before it and of `(seed, step)`: which data, which noise,
which learning rate. A run killed at any moment and started again by the same command therefore ends
with the same weights, bit for bit on a CPU, as one that was never interrupted (while
`train.minutes` is not what ends it: time is not a function of the seed).

A step without a finite loss and gradient changes nothing. Several in a row are no accident: the run
goes back to its last good checkpoint and on from there at half the learning rate, and after some
such returns it gives up, with good weights on disk.

A task says what its model is, what the gradient of a step is (`gradient_of_step`) and what makes
weights the best so far (`validate`). Of several processes each has the gradient of its share of the
batch; that of the step is their sum.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eqflow.errors import EqflowError, MemoryExhausted, NumericalError, SolverFailed
from eqflow.flows.objectives import Loss
from eqflow.train.config import LoopConfig
from eqflow.train.optimizers import build_optimizer
from eqflow.train.processes import Processes
from eqflow.train.progress import Gradient, Progress

# Steps in a row without a finite loss and gradient after which a run goes back, and how often it
# does before it gives up.
PATIENCE = 10
ROLLBACKS = 3
MOST_TERMS = 16  # to log of a step

Tensors = tuple[Tensor, ...] | list[Tensor]
Model = TypeVar("Model", bound=nn.Module)


class AbstractTrainer(ABC, Generic[Model]):
    """One training run of a task.

    Args:
        model: Updated in place.
        config: The loop's settings.
        seed: All randomness is a function of it.
        progress: Where to begin; what `load_state` replaces.
        processes: Those that share the run; this one alone where None.
    """

    def __init__(
        self,
        model: Model,
        config: LoopConfig,
        seed: int,
        progress: Progress | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.seed = seed
        self.progress = progress or Progress()
        self.processes = processes or Processes()
        self.device = next(model.parameters()).device
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = build_optimizer(config, model)
        self.average: AveragedModel = AveragedModel(
            model, multi_avg_fn=moving_average(config.ema_decay)
        )
        self.best = weights_of(self.averaged)
        self.stopped = False  # whether `run` ended by a request
        self.is_between_steps = True  # whether all is done that belongs to the last step
        self.trouble = ""  # why the last step was skipped, and of which data, for the log
        self.notices: list[str] = []  # lines for people, until someone takes them
        self._problem: EqflowError | None = None
        self._start = copy.deepcopy(self.state())

    @abstractmethod
    def gradient_of_step(self, step: int) -> Gradient:
        """That of what the step minimises: a function of the weights, the seed and `step`.

        Raises:
            SolverFailed: If an integration within it ended early; the step is then skipped. All
                that is exchanged with other processes has to be exchanged before.
        """

    def share_what_was_found(self) -> None:
        """Tell the other processes, within a step, what it showed of the data."""

    def describe_step(self, step: int) -> str:
        """Which data a step is made of, for the log of one that was skipped."""
        return "all data"

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights on held-out data, `val_loss` among them.

        A function of the weights alone. Calls `keep_best` if they are the best so far.
        """

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
        saved_state: Callable[[int], Mapping[str, Any] | None] = lambda step: None,
        went_back: Callable[[int, str], None] = lambda step, line: None,
    ) -> None:
        """Train until the last step, the last minute, or a request to stop.

        Args:
            record: Called with the figures of a logged step.
            save: Called when the state is to be written.
            stop_requested: Asked after every step.
            saved_state: The state written at a step, or None where there is none any more.
            went_back: Called with the step and a line for people when the run went back to it.

        Raises:
            NumericalError: If several steps in a row gave no finite gradient, also after having
                gone back to good weights, which are saved.
            MemoryExhausted: If in as many steps nothing fitted into memory.
        """
        config = self.config
        started, cpu_started = time.monotonic(), time.process_time()
        earlier, cpu_earlier = self.progress.seconds, self.progress.cpu_seconds
        while not self.finished():
            self.is_between_steps = True
            figures = self.step()
            self.is_between_steps = False
            seconds = earlier + time.monotonic() - started
            self.progress.seconds = self.processes.of_first(seconds)
            self.progress.cpu_seconds = cpu_earlier + time.process_time() - cpu_started
            if self.progress.skipped_in_a_row >= PATIENCE:
                record({"step": self.progress.step, "seconds": self.progress.seconds, **figures})
                self._go_back(saved_state, went_back, save)
                continue
            step = self.progress.step
            if step % config.validate_every == 0 or self.fraction_done() >= 1:
                figures |= self.validate()
            last = self.finished()
            if step % config.log_every == 0 or "val_loss" in figures or "skipped" in figures:
                record({"step": step, "seconds": self.progress.seconds, **figures})
            self.stopped = self.processes.any(stop_requested())
            due = step % config.checkpoint_every == 0
            if due or last or self.stopped:
                if not self.weights_are_finite():
                    self.trouble = "the weights are not finite"
                    self._go_back(saved_state, went_back, save)
                else:
                    self.progress.saved_step = step if due else self.progress.saved_step
                    save()
            if self.stopped:
                return

    def step(self) -> dict[str, float]:
        """One update; a step without a finite loss and gradient changes no weight."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        self.optimizer.zero_grad(set_to_none=True)
        figures: dict[str, float] = {"learning_rate": rate}
        clip = math.inf if self.config.clip is None else self.config.clip
        found, self._problem = None, None
        try:
            found = self.gradient_of_step(self.progress.step)
        except SolverFailed as error:
            self._problem = error.with_traceback(None)  # which holds what the step computed
        failed = self.processes.any(found is None)
        self.share_what_was_found()
        if found is not None and not failed and not self.processes.any(found.size > 0):
            failed = True
            self._problem = MemoryExhausted(
                f"step {self.progress.step}: nothing of it fits into memory, not even alone. Lower "
                "model.width or model.layers, or leave large structures out."
            )
        if found is not None and not failed:
            gradients = self.processes.gradients(found.values, self.weights)
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            norm = float(torch.nn.utils.clip_grad_norm_(self.weights, clip))
            figures |= {"gradient_norm": norm, **self._of_all(found.terms)}
            failed = not (math.isfinite(norm) and math.isfinite(figures["loss"]))

        if failed:
            what = self._problem or ", ".join(
                f"{name} {figures[name]:.4g}"
                for name in ("loss", "gradient_norm")
                if name in figures
            )
            self.trouble = (
                f"{what or 'no gradient elsewhere'}; {self.describe_step(self.progress.step)}"
            )
            figures = {**figures, "skipped": 1.0}
            self.progress.skipped += 1
            self.progress.skipped_in_a_row += 1
        else:
            self.optimizer.step()
            self.average.update_parameters(self.model)
            self.progress.skipped_in_a_row = 0
            self.progress.good_step = self.progress.saved_step
            self.progress.evaluations += figures.get("evaluations", 0.0)
        self.progress.step += 1
        return figures

    def gradient(self, loss: Loss, part: float = 1.0, size: int = 1) -> Gradient:
        """That of a loss which is so large a part of the step's, and of so many data."""
        values = torch.autograd.grad(loss.value * part, self.weights, allow_unused=True)
        return Gradient(values, {name: value * part for name, value in loss.terms.items()}, size)

    def _of_all(self, terms: dict[str, float]) -> dict[str, float]:
        """Scalars to log, summed over the shares of all processes; the loss of one without data."""
        own = list(terms.values())
        sums = self.processes.sums([*own, *[0.0] * (MOST_TERMS - len(own))])
        return dict(zip(terms, sums, strict=False))

    def _go_back(
        self,
        saved_state: Callable[[int], Mapping[str, Any] | None],
        went_back: Callable[[int, str], None],
        save: Callable[[], None],
    ) -> None:
        """Return to the last good state, at half the learning rate, and save that.

        Raises:
            NumericalError: If that was done often enough, or there is no such state any more.
            MemoryExhausted: If the steps were skipped for want of memory.
        """
        now, good = self.progress, self.progress.good_step
        found = (
            f"step {now.step}: {PATIENCE} steps in a row had no finite loss and gradient"
            if now.skipped_in_a_row >= PATIENCE
            else f"step {now.step}: the weights are not finite"
        )
        if isinstance(self._problem, MemoryExhausted):
            raise self._problem
        state = self._start if good == 0 else saved_state(good)
        if state is None:
            if self.weights_are_finite():
                save()
            raise NumericalError(
                f"{found}, and there is no good state of step {good} to go back to. Lower "
                "train.learning_rate or train.clip and start again in another run.dir."
            )
        self.load_state(state)
        back = self.progress
        back.seconds, back.cpu_seconds, back.skipped = now.seconds, now.cpu_seconds, now.skipped
        back.saved_step = back.good_step = good
        gives_up = now.rollbacks >= ROLLBACKS
        back.rollbacks = now.rollbacks + (not gives_up)
        if not gives_up:
            went_back(good, f"{found}; back to step {good}, with half the learning rate")
        save()
        if gives_up:
            raise NumericalError(
                f"{found}, for the {ROLLBACKS + 1}th time, at learning rates down to "
                f"{self.learning_rate():.2g}. The last good weights, of step {good}, are saved; "
                "lower train.learning_rate or train.clip and start again in another run.dir."
            )

    def weights_are_finite(self) -> bool:
        """Whether the weights may be saved: on the disk they are never NaN."""
        return all(bool(weight.isfinite().all()) for weight in self.model.parameters())

    def learning_rate(self) -> float:
        """Linear warm-up, then cosine or constant; half of it after each return to an old state."""
        config = self.config
        rate = config.learning_rate * min(
            1.0, (self.progress.step + 1) / max(config.warmup_steps, 1)
        )
        if config.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(self.fraction_done(), 1.0)))
        return rate * 0.5**self.progress.rollbacks

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

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.model.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        _require_alike(self.optimizer)
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.progress = type(self.progress)(**copy.deepcopy(state["progress"]))
        if "saved_step" not in state["progress"]:  # of an earlier version
            self.progress.saved_step = self.progress.good_step = self.progress.step


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    r"""Exponential moving average :math:`a \leftarrow a + (1 - \beta_k)(w - a)`.

    :math:`\beta_k = \min(\beta, (1 + k) / (10 + k))` after `k` updates: a short run averages over
    its last tenth and not over its initial weights.
    """

    def update(average: Tensors, weights: Tensors, count: Tensor | int) -> None:
        k = int(count)
        torch._foreach_lerp_(average, weights, 1 - min(decay, (1 + k) / (10 + k)))

    return update


def _require_alike(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a state in which one parameter of a group has other entries than the rest of it.

    An entry has the shape of its parameter or is a number.

    Raises:
        ValueError: If there is one; loading does not look into entries, and a step would fail.
    """
    for group in optimizer.param_groups:
        stated = [weight for weight in group["params"] if weight in optimizer.state]
        entries = [(weight.shape, dict(optimizer.state[weight])) for weight in stated]
        for shape, entry in entries:
            fits = all(
                isinstance(value, Tensor) and value.shape in (shape, torch.Size([]))
                for value in entry.values()
            )
            if not fits or entry.keys() != entries[0][1].keys():
                raise ValueError("the optimizer's entries of a parameter are damaged")


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in a module's state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
