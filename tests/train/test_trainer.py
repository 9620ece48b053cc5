"""The step loop: schedule, averages, clipping, validation, and what it does with NaN."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import MemoryExhausted, NumericalError, SolverFailed
from eqflow.flows import AbstractObjective, FlowMatching, Independent
from eqflow.flows.continuous import ContinuousFlow
from eqflow.flows.objectives import Batch, Loss
from eqflow.geometry import Clouds
from eqflow.train.abstract_loop import ROLLBACKS
from eqflow.train.checkpoint import read_state_at, save_state
from eqflow.train.loop import PATIENCE, Trainer, moving_average


def run(trainer: Trainer, until: int | None = None) -> list[dict[str, float]]:
    recorded: list[dict[str, float]] = []
    trainer.run(
        lambda figures: recorded.append(dict(figures)),
        lambda: None,
        lambda: until is not None and trainer.progress.step >= until,
    )
    return recorded


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.flow.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class Broken(AbstractObjective):
    """Flow matching whose loss goes wrong at some steps."""

    def __init__(self, steps: set[int], how: str = "nan") -> None:
        self.steps, self.how, self.calls = steps, how, 0
        self.inner = FlowMatching(Independent())

    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        loss = self.inner(flow, batch, source)
        step = self.calls
        self.calls += 1
        if step not in self.steps:
            return loss
        if self.how == "solver":
            raise SolverFailed("stiff")
        if self.how == "gradient":  # the loss is finite, its derivative is not
            return Loss(loss.value + torch.sqrt(0 * loss.value), {"loss": loss.terms["loss"]})
        return Loss(loss.value * math.nan, {"loss": math.nan})


def test_a_resumed_trainer_ends_bitwise_like_an_uninterrupted_one() -> None:
    whole, first, second = tiny.trainer(), tiny.trainer(), tiny.trainer()
    run(whole)
    run(first, until=4)
    second.load_state(first.state())
    run(second)
    assert first.progress.step == 4
    assert same(weights(whole), weights(second))
    assert same(whole.best_flow().state_dict(), second.best_flow().state_dict())
    assert whole.progress.best_step == second.progress.best_step


def test_a_step_is_a_function_of_seed_and_step_and_not_of_the_global_generator() -> None:
    first, second, other = tiny.trainer(), tiny.trainer(), tiny.trainer(seed=1)
    torch.manual_seed(1)
    run(first, until=3)
    torch.manual_seed(2)
    run(second, until=3)
    run(other, until=3)
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(other))


def test_the_learning_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    trainer = tiny.trainer(steps=100, warmup_steps=10, learning_rate=0.5)
    for step in (0, 4, 9, 10, 50, 99):
        trainer.progress.step = step
        expected = 0.5 * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / 100))
        assert trainer.learning_rate() == pytest.approx(expected)
    trainer.progress.step = 100
    assert trainer.learning_rate() == pytest.approx(0, abs=1e-12)


def test_a_constant_schedule_stays_after_the_warm_up() -> None:
    trainer = tiny.trainer(steps=100, warmup_steps=4, learning_rate=0.5, schedule="constant")
    for step, expected in ((0, 0.125), (3, 0.5), (99, 0.5)):
        trainer.progress.step = step
        assert trainer.learning_rate() == pytest.approx(expected)


def test_minutes_end_a_run_and_its_schedule_before_the_steps_do() -> None:
    trainer = tiny.trainer(steps=1000, minutes=2.0)
    trainer.progress.step, trainer.progress.seconds = 100, 60.0
    assert trainer.fraction_done() == pytest.approx(0.5)
    trainer.progress.seconds = 120.0
    assert trainer.finished()


def test_the_moving_average_follows_its_recursion() -> None:
    trainer = tiny.trainer(ema_decay=0.2)
    expected = None
    for k in range(4):
        trainer.step()
        current = weights(trainer)
        if expected is None:
            expected = current
        else:
            decay = min(0.2, (1 + k) / (10 + k))
            expected = {n: v + (1 - decay) * (current[n] - v) for n, v in expected.items()}
    assert expected is not None
    for name, value in trainer.averaged.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name


@pytest.mark.parametrize(("count", "decay"), [(1, 2 / 11), (90, 91 / 100), (10**6, 0.999)])
def test_the_average_is_short_at_first(count: int, decay: float) -> None:
    average = [torch.zeros(1, dtype=torch.float64)]
    moving_average(0.999)(average, [torch.ones(1, dtype=torch.float64)], count)
    assert float(average[0]) == pytest.approx(1 - decay)


def test_a_decay_of_zero_keeps_no_average() -> None:
    trainer = tiny.trainer(ema_decay=0.0)
    run(trainer, until=3)
    assert same(weights(trainer), trainer.averaged.state_dict())


def test_the_gradient_is_clipped_to_its_largest_norm() -> None:
    trainer = tiny.trainer(clip=1e-3)
    figures = trainer.step()
    clipped = torch.cat([p.grad.flatten() for p in trainer.flow.parameters() if p.grad is not None])
    assert figures["gradient_norm"] > 1e-3
    assert float(clipped.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_validation_is_deterministic_and_changes_nothing() -> None:
    trainer = tiny.trainer()
    run(trainer, until=2)
    before = weights(trainer)
    assert trainer.validate() == trainer.validate()
    assert same(before, weights(trainer))


def test_the_best_weights_are_those_of_the_best_validation() -> None:
    trainer = tiny.trainer(steps=8, validate_every=2, learning_rate=1.0, schedule="constant")
    losses = {f["step"]: f["val_loss"] for f in run(trainer) if "val_loss" in f}
    best = min(losses, key=lambda step: losses[step])
    assert len(losses) == 4
    assert trainer.progress.best_step == best
    assert trainer.progress.best_loss == losses[best]
    again = tiny.trainer(steps=8, validate_every=2, learning_rate=1.0, schedule="constant")
    run(again, until=int(best))
    assert same(trainer.best_flow().state_dict(), again.averaged.state_dict())


def test_before_any_validation_the_newest_average_is_the_best() -> None:
    trainer = tiny.trainer(validate_every=100)
    initial = weights(trainer)
    run(trainer, until=3)
    assert same(trainer.best_flow().state_dict(), trainer.averaged.state_dict())
    assert not same(trainer.best_flow().state_dict(), initial)


@pytest.mark.parametrize("how", ["nan", "gradient", "solver"])
def test_a_step_without_a_finite_loss_and_gradient_changes_no_weight(how: str) -> None:
    trainer = tiny.trainer()
    trainer.objective = Broken({2}, how)
    trainer.step()
    trainer.step()
    before, average = weights(trainer), dict(trainer.averaged.state_dict())
    figures = trainer.step()
    assert figures["skipped"] == 1
    assert same(before, weights(trainer))
    assert same(average, trainer.averaged.state_dict())
    assert (trainer.progress.step, trainer.progress.skipped) == (3, 1)
    trainer.step()
    assert trainer.progress.skipped_in_a_row == 0
    assert not same(before, weights(trainer))


class Kept:
    """The states of a run, as its folder would keep them."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.states: dict[int, dict[str, Any]] = {}
        self.lines: list[str] = []

    def save(self) -> None:
        state = copy.deepcopy(self.trainer.state())
        self.states[state["progress"]["step"]] = state

    def run(self, until: int | None = None) -> None:
        self.trainer.run(
            lambda figures: None,
            self.save,
            lambda: until is not None and self.trainer.progress.step >= until,
            self.states.get,
            lambda step, line: self.lines.append(line),
        )


def test_after_too_many_bad_steps_a_run_goes_on_from_good_weights_at_half_the_rate() -> None:
    trainer = tiny.trainer(steps=30, validate_every=100, checkpoint_every=5, schedule="constant")
    trainer.objective = Broken(set(range(13, 13 + PATIENCE)))
    kept = Kept(trainer)
    kept.run()
    assert kept.lines == [
        f"step 23: {PATIENCE} steps in a row had no finite loss and gradient; back to step 10, "
        "with half the learning rate"
    ]
    assert (trainer.progress.step, trainer.progress.rollbacks) == (30, 1)
    assert trainer.progress.skipped == PATIENCE
    again = tiny.trainer(steps=30, validate_every=100, checkpoint_every=5, schedule="constant")
    unbroken = Kept(again)
    unbroken.run(until=10)
    again.progress.rollbacks = 1
    unbroken.run()
    assert same(weights(trainer), weights(again))


def test_the_good_state_is_kept_however_often_a_run_is_stopped_among_bad_steps(
    tmp_path: Path,
) -> None:
    """Good at 5; due at 10; then a bad step before each of two stops."""
    trainer = tiny.trainer(steps=40, validate_every=100, checkpoint_every=5)
    trainer.objective = Broken({10, 11, *range(13, 13 + PATIENCE)})
    folder = tmp_path / "checkpoints"

    def save() -> None:
        now = trainer.progress
        keep = {now.good_step, now.saved_step}
        save_state(folder, now.step, trainer.state(), keep=keep)

    lines: list[str] = []
    for until in (11, 12, 100):
        trainer.run(
            lambda figures: None,
            save,
            lambda until=until: trainer.progress.step >= until,
            lambda step: read_state_at(folder, step),
            lambda step, line: lines.append(line),
        )
    assert "back to step 10," in lines[0]
    assert trainer.progress.step == 40


def test_the_checkpoint_gone_back_to_is_one_from_which_a_finite_step_was_made() -> None:
    trainer = tiny.trainer(steps=40, validate_every=100, checkpoint_every=5)
    trainer.objective = Broken(set(range(10, 10 + PATIENCE)))
    kept = Kept(trainer)
    kept.run()
    assert "back to step 5," in kept.lines[0]


def test_a_run_gives_up_after_enough_returns_with_good_weights_saved() -> None:
    trainer = tiny.trainer(steps=100, validate_every=100)
    initial = weights(trainer)
    trainer.objective = Broken(set(range(3, 1000)))
    kept = Kept(trainer)
    with pytest.raises(NumericalError, match=f"{PATIENCE} steps in a row"):
        kept.run()
    assert len(kept.lines) == ROLLBACKS
    assert trainer.objective.calls == 3 + PATIENCE * (ROLLBACKS + 1)
    assert same(kept.states[0]["weights"], initial)


def test_where_the_good_state_is_lost_the_finite_weights_are_saved_and_the_run_ends() -> None:
    trainer = tiny.trainer(steps=100, validate_every=100, checkpoint_every=5)
    trainer.objective = Broken(set(range(13, 1000)))
    kept = Kept(trainer)
    saved = []
    with pytest.raises(NumericalError, match="no good state of step 10"):
        trainer.run(lambda figures: None, lambda: saved.append(weights(trainer)), lambda: False)
    assert all(bool(value.isfinite().all()) for value in saved[-1].values())
    assert not kept.states


def test_weights_that_are_not_finite_are_never_saved() -> None:
    trainer = tiny.trainer(steps=3, validate_every=100, checkpoint_every=1)
    initial = weights(trainer)
    with torch.no_grad():
        next(trainer.flow.parameters())[0] = math.nan
    kept = Kept(trainer)
    kept.run()
    assert same(kept.states[0]["weights"], initial)
    assert "the weights are not finite; back to step 0" in kept.lines[0]
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())


def test_the_log_says_which_structures_a_skipped_step_was_made_of() -> None:
    trainer = tiny.trainer()
    trainer.objective = Broken({0}, "solver")
    trainer.step()
    places = ", ".join(map(str, trainer.batches.batch_at(0).tolist()))
    assert trainer.trouble == f"stiff; training structures {places}"


class Small(AbstractObjective):
    """Flow matching that has no memory for more than so many structures, or for large ones."""

    def __init__(self, most: int, points: int = 10) -> None:
        self.most, self.points = most, points
        self.inner = FlowMatching(Independent())

    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        if batch.clouds.count > self.most or int(batch.clouds.lengths.max()) > self.points:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.inner(flow, batch, source)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_gradient_of_halves_is_the_mean_over_all_structures(most: int) -> None:
    halved = tiny.trainer()
    halved.objective = Small(most)
    found = halved.gradient_of_step(0)
    chosen = halved.batches.batch_at(0).tolist()
    size = len(chosen) // 2 if most > 1 else 1
    parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    each = [halved._gradient_of(part, 0, len(chosen)) for part in parts]
    assert len(parts) > 1
    for place, value in enumerate(found.values):
        expected = sum(one.values[place] for one in each if one.values[place] is not None)
        if value is not None:
            torch.testing.assert_close(value, expected)
    assert found.terms["loss"] == pytest.approx(sum(one.terms["loss"] for one in each))
    assert not halved.progress.left_out


def test_a_structure_that_does_not_fit_is_left_out_from_then_on() -> None:
    source = rng.generator(1, "sizes")
    clouds = Clouds.join(
        [Clouds.from_dense(torch.randn(23, 3, 3, generator=source)) for _ in range(1)]
        + [Clouds.from_dense(torch.randn(1, 20, 3, generator=source))]
    )
    order = [23, *range(23)]
    trainer = tiny.trainer(clouds=clouds[order], steps=12, batch_size=16, validate_every=100)
    trainer.objective = Small(100, points=10)
    run(trainer)
    assert trainer.progress.left_out == [0]
    assert trainer.progress.skipped == 0
    assert trainer.notices == [
        "training structure 0 of 20 points does not fit into memory and is left out"
    ]


def test_where_nothing_fits_into_memory_the_run_ends_with_that_and_not_with_numbers() -> None:
    trainer = tiny.trainer(steps=100)
    trainer.objective = Small(100, points=1)
    with pytest.raises(MemoryExhausted, match="nothing of it fits into memory"):
        run(trainer)
    assert MemoryExhausted.exit_code == 5


def test_a_validation_that_fails_does_not_replace_the_best_weights() -> None:
    trainer = tiny.trainer()
    run(trainer, until=5)
    best = trainer.progress.best_loss
    trainer.objective = Broken(set(range(100)), "solver")
    assert trainer.validate() == {"val_loss": math.inf}
    assert trainer.progress.best_loss == best


def test_figures_are_recorded_at_the_steps_asked_for(tmp_path: Path) -> None:
    trainer = tiny.trainer(steps=10, log_every=4, validate_every=5)
    assert [f["step"] for f in run(trainer)] == [4, 5, 8, 10]


def test_time_goes_on_from_where_a_run_was_resumed() -> None:
    trainer = tiny.trainer()
    trainer.progress.seconds = trainer.progress.cpu_seconds = 1000.0
    run(trainer, until=2)
    assert 1000 < trainer.progress.seconds < 1060
    assert 1000 < trainer.progress.cpu_seconds < 1060


def test_random_numbers_of_a_step_differ_from_those_of_the_next() -> None:
    draws = {rng.derived_seed(0, "train", "objective", step) for step in range(100)}
    assert len(draws) == 100
