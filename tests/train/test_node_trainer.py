"""The step loop of node classification: what a step minimises, what the best weights are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_nodes
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eqflow import rng
from eqflow.errors import NumericalError, SolverFailed
from eqflow.graphs.classifier import AbstractNodeClassifier, Classification
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.train.abstract_loop import PATIENCE
from eqflow.train.node_loop import WORST, Fit, NodeTrainer, fit
from eqflow.train.optimizers import OPTIMIZERS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nodes.graph(tmp_path_factory.mktemp("data") / "graph.npz")


def trainer(data: Path, *words: str) -> NodeTrainer:
    return tiny_nodes.run(data, Path("unused"), *words).prepare()


def run(trainer: NodeTrainer, until: int | None = None) -> list[dict[str, float]]:
    recorded: list[dict[str, float]] = []
    trainer.run(
        lambda figures: recorded.append(dict(figures)),
        lambda: None,
        lambda: until is not None and trainer.progress.step >= until,
    )
    return recorded


def weights(trainer: NodeTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class Broken(AbstractNodeClassifier):
    """A linear classifier whose logits go wrong at some evaluations in training."""

    encoding_features = 0

    def __init__(self, broken: set[int], how: str = "nan") -> None:
        super().__init__()
        self.features, self.classes = tiny_nodes.FEATURES, tiny_nodes.CLASSES
        self.linear = torch.nn.Linear(self.features, self.classes)
        self.broken, self.how, self.calls = broken, how, 0

    def _classify(self, graph) -> Classification:  # type: ignore[no-untyped-def]
        logits = self.linear(graph.x)
        if self.training:
            self.calls += 1
            if self.calls - 1 in self.broken:
                if self.how == "solver":
                    raise SolverFailed("stiff")
                logits = logits * math.nan
        return Classification(logits)


def broken(data: Path, steps: set[int], how: str = "nan", *words: str) -> NodeTrainer:
    sound = trainer(data, *words)
    return NodeTrainer(Broken(steps, how), sound.graph, sound.split, sound.config, {}, 0)


def test_a_step_minimises_the_cross_entropy_of_training_nodes_alone(data: Path) -> None:
    one = trainer(data, "model.dropout=0", "model.input_dropout=0")
    logits = one.model.eval()(one.graph)
    nodes = one.split.train
    expected = -logits.detach().log_softmax(1)[nodes, one.graph.y[nodes]].mean()
    assert float(one.loss_of_step(0).value.detach()) == pytest.approx(float(expected), rel=1e-5)
    gradient = torch.autograd.grad(one.loss_of_step(0).value, one.model.decoder.out.bias)[0]
    counts = torch.nn.functional.one_hot(one.graph.y[nodes], 3).double().mean(0)
    mean = logits.softmax(1)[nodes].double().mean(0)
    assert torch.allclose(gradient.double(), mean - counts, atol=1e-6)


def test_labels_of_other_nodes_do_not_enter_a_step(data: Path) -> None:
    one, other = trainer(data), trainer(data)
    y = other.graph.y.clone()
    y[~other.split.train] = (y[~other.split.train] + 1) % tiny_nodes.CLASSES
    object.__setattr__(other.graph, "y", y)
    one.step()
    other.step()
    assert same(weights(one), weights(other))


def test_labels_of_test_nodes_do_not_choose_the_weights(data: Path) -> None:
    one, other = trainer(data), trainer(data)
    y = other.graph.y.clone()
    y[other.split.test] = (y[other.split.test] + 1) % tiny_nodes.CLASSES
    object.__setattr__(other.graph, "y", y)
    run(one)
    run(other)
    assert one.progress.best_step == other.progress.best_step
    assert same(one.best, other.best)


@pytest.mark.parametrize("name", ["kinetic", "jacobian"])
def test_a_penalty_is_added_by_its_weight(data: Path, name: str) -> None:
    quiet = ["model.dropout=0", "model.input_dropout=0", "model.nonlinear=true"]
    none, some = trainer(data, *quiet), trainer(data, *quiet, f"regularisation.{name}=0.3")
    before, after = none.loss_of_step(0), some.loss_of_step(0)
    penalty = after.terms[name]
    assert penalty > 0
    assert after.terms["loss"] == pytest.approx(before.terms["loss"] + 0.3 * penalty, rel=1e-5)


def test_dropout_is_a_function_of_seed_and_step_and_not_of_the_global_generator(data: Path) -> None:
    first, second = trainer(data), trainer(data)
    torch.manual_seed(1)
    run(first, until=3)
    torch.manual_seed(2)
    run(second, until=3)
    assert same(weights(first), weights(second))
    assert first.loss_of_step(5).terms["loss"] == second.loss_of_step(5).terms["loss"]
    assert first.loss_of_step(5).terms["loss"] != first.loss_of_step(6).terms["loss"]
    assert not same(weights(first), weights(trainer(data, "seed=1")))


def test_a_resumed_trainer_ends_bitwise_like_an_uninterrupted_one(data: Path) -> None:
    whole, first, second = trainer(data), trainer(data), trainer(data)
    run(whole)
    run(first, until=4)
    second.load_state(first.state())
    run(second)
    assert same(weights(whole), weights(second))
    assert same(whole.best, second.best)
    assert vars(whole.progress).keys() == vars(second.progress).keys()
    assert whole.progress.best_accuracy == second.progress.best_accuracy


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_each_optimizer_resumes_bitwise_and_is_the_one_asked_for(data: Path, name: str) -> None:
    words = [f"train.optimizer={name}", "train.weight_decay=0.1"]
    whole, first, second = (trainer(data, *words) for _ in range(3))
    assert type(whole.optimizer) is OPTIMIZERS[name]
    run(whole)
    run(first, until=3)
    second.load_state(first.state())
    run(second)
    assert same(weights(whole), weights(second))


def test_weight_decay_is_added_to_the_gradient_but_for_adamw(data: Path) -> None:
    """Adam's first step is the sign of what it is given, whatever its size."""
    for name, coupled in (("adam", True), ("adamw", False)):
        one = trainer(data, f"train.optimizer={name}", "train.weight_decay=1e3")
        with torch.no_grad():
            one.model.decoder.out.bias.fill_(1.0)
        before = one.model.decoder.out.bias.detach().clone()
        one.step()
        moved = one.model.decoder.out.bias.detach() - before
        rate = one.config.learning_rate
        if coupled:
            assert torch.allclose(moved, torch.full_like(moved, -rate), rtol=1e-3)
        else:
            assert torch.allclose(moved, -rate * 1e3 * before, atol=2 * rate)


def test_the_best_weights_are_the_best_by_accuracy_and_then_by_loss(data: Path) -> None:
    one = trainer(data, "train.steps=20", "train.learning_rate=0.1")
    figures = [row for row in run(one) if "val_accuracy" in row]
    assert len(figures) == 20
    best = max(figures, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert one.progress.best_step == best["step"]
    assert one.progress.best_loss == best["val_loss"]
    again = trainer(data, "train.steps=20", "train.learning_rate=0.1")
    run(again, until=int(best["step"]))
    assert same(one.best, again.averaged.state_dict())


def test_a_fit_is_better_by_accuracy_then_by_loss_and_never_without_a_finite_loss() -> None:
    assert Fit(0.5, 2.0).is_better(Fit(0.4, 1.0))
    assert Fit(0.5, 1.0).is_better(Fit(0.5, 2.0))
    assert not Fit(0.5, 2.0).is_better(Fit(0.5, 2.0))
    assert not Fit(0.4, 0.1).is_better(Fit(0.5, 2.0))
    assert Fit(0.0, 9.0).is_better(WORST)
    assert not Fit(0.9, math.inf).is_better(WORST)
    assert not Fit(0.9, math.nan).is_better(WORST)


def test_a_fit_counts_the_nodes_of_its_mask_alone() -> None:
    source = rng.generator(0, "fit")
    logits = torch.randn(50, 4, generator=source)
    y = torch.randint(0, 4, (50,), generator=source)
    mask = torch.arange(50) < 20
    found = fit(logits, y, mask)
    right = sum(int(logits[i].argmax()) == int(y[i]) for i in range(20))
    assert found.accuracy == pytest.approx(right / 20)
    assert found.loss == pytest.approx(float(cross_entropy(logits[:20].double(), y[:20])))
    logits[30] = math.nan
    assert fit(logits, y, mask) == found
    logits[3] = math.inf
    assert fit(logits, y, mask) == Fit(0.0, math.inf)


def test_patience_ends_a_run_after_so_many_steps_without_a_better_validation(data: Path) -> None:
    one = trainer(data, "train.steps=500", "train.patience=7")
    run(one)
    assert one.progress.step == one.progress.best_step + 7
    assert one.finished()
    sparse = trainer(data, "train.steps=500", "train.patience=7", "train.validate_every=3")
    run(sparse)
    assert sparse.progress.step < 500
    assert 7 <= sparse.progress.step - sparse.progress.best_step < 10


def test_a_resumed_run_runs_out_of_patience_at_the_same_step(data: Path) -> None:
    words = ["train.steps=500", "train.patience=7"]
    whole, first, second = (trainer(data, *words) for _ in range(3))
    run(whole)
    run(first, until=whole.progress.best_step + 2)
    second.load_state(first.state())
    run(second)
    assert second.progress.step == whole.progress.step


def test_validation_is_without_dropout_and_changes_nothing(data: Path) -> None:
    one = trainer(data)
    run(one, until=2)
    before = weights(one)
    assert one.validate() == one.validate()
    assert same(before, weights(one))


def test_stop_times_read_the_state_early_or_late_and_keep_the_best(data: Path) -> None:
    one = trainer(data, "train.steps=15", "train.stop_times=[0.25,2.0]", "train.learning_rate=0.1")
    figures = run(one)
    assert {row["time"] for row in figures if "time" in row} <= {0.25, 1.0, 2.0}
    assert one.progress.best_time in (0.25, 1.0, 2.0)
    model = one.best_model()
    assert isinstance(model, DiffusionClassifier)
    fits = [fit(logits, one.graph.y, one.split.validation) for _, logits in one.readings(model)]
    assert max(found.accuracy for found in fits) == one.progress.best_accuracy
    model.time = float(one.progress.best_time or 0)
    alone = fit(model(one.graph).detach(), one.graph.y, one.split.validation)
    assert alone.accuracy == pytest.approx(one.progress.best_accuracy)


@pytest.mark.parametrize("how", ["nan", "solver"])
def test_a_step_without_a_finite_loss_changes_no_weight(data: Path, how: str) -> None:
    one = broken(data, {2}, how)
    one.step()
    one.step()
    before = weights(one)
    assert one.step()["skipped"] == 1
    assert same(before, weights(one))
    one.step()
    assert one.progress.skipped_in_a_row == 0
    assert not same(before, weights(one))


def test_a_run_gives_up_after_too_many_bad_steps_with_finite_weights_saved(data: Path) -> None:
    one = broken(data, set(range(3, 100)), "nan", "train.steps=100")
    saved = []
    with pytest.raises(NumericalError, match=f"{PATIENCE} steps in a row"):
        one.run(lambda figures: None, lambda: saved.append(weights(one)), lambda: False)
    assert one.progress.step == 3 + PATIENCE
    assert all(bool(value.isfinite().all()) for value in saved[-1].values())


def test_a_validation_that_cannot_be_solved_replaces_no_weights(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(data)
    run(one, until=3)
    best = one.progress.best_loss

    def failing(self: NodeTrainer, model: object) -> None:
        raise SolverFailed("stiff")

    monkeypatch.setattr(NodeTrainer, "readings", failing)
    assert one.validate() == {"val_loss": math.inf, "val_accuracy": 0.0}
    assert one.progress.best_loss == best
