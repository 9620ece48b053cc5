"""Muon: what its steps are, against formulas made of singular values and torch's AdamW."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from test_trainer import run, same, weights
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.train.config import LoopConfig
from eqflow.train.optimizers import (
    ITERATIONS,
    NEWTON_SCHULZ,
    OPTIMIZERS,
    Muon,
    build_optimizer,
    is_hidden_matrix,
    orthogonalised,
)

SHAPES = ((40, 40), (40, 40), (48, 32), (32, 64))


def matrices(*shape: int) -> Tensor:
    return rng.normal(shape, torch.zeros((), dtype=torch.float64), rng.generator(0, "matrices"))


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    source = rng.generator(1, "weights")
    like = torch.zeros((), dtype=torch.float64)
    return [torch.nn.Parameter(rng.normal(shape, like, source)) for shape in shapes]


def stepped(optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    """Some steps along gradients that are a function of the step and the place of a weight."""
    places = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step in range(steps):
        for weight in places:
            source = rng.generator(2, "gradient", step, *weight.shape)
            weight.grad = rng.normal(weight.shape, weight, source)
        optimizer.step()


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 12, 30), (2, 30, 12)])
def test_orthogonalising_keeps_singular_vectors_and_makes_values_near_one(
    shape: tuple[int, ...],
) -> None:
    """An odd polynomial of a matrix is that of its singular values."""
    given = matrices(*shape)
    u, s, v = torch.linalg.svd(given, full_matrices=False)
    a, b, c = NEWTON_SCHULZ
    p = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(ITERATIONS):
        p = a * p + b * p**3 + c * p**5
    expected = u @ (p.unsqueeze(-1) * v)
    assert (orthogonalised(given) - expected).abs().max() < TOLERANCE[torch.float64]
    ordinary = s > 5e-3 * s.square().sum(-1, keepdim=True).sqrt()
    assert ordinary.double().mean() > 0.9
    assert p[ordinary].min() > 0.6
    assert p.max() < 1.3


def test_orthogonalising_does_not_depend_on_scale_and_leaves_zero_alone() -> None:
    given = matrices(2, 16, 20)
    close = TOLERANCE[torch.float64]
    assert (orthogonalised(1e6 * given) - orthogonalised(given)).abs().max() < close
    assert not orthogonalised(torch.zeros_like(given)).any()


def test_a_step_of_muon_is_its_formula_and_matrices_do_not_depend_on_each_other() -> None:
    weights = parameters(*SHAPES)
    before = [weight.detach().clone() for weight in weights]
    gradients = [torch.flip(weight.detach(), (0,)) for weight in before]
    optimizer = Muon(weights, lr=0.01, weight_decay=0.1)
    momenta = [torch.zeros_like(weight) for weight in before]
    for _ in range(2):
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        for place, gradient in enumerate(gradients):
            momenta[place] = 0.95 * momenta[place] + 0.05 * gradient
            ahead = 0.95 * momenta[place] + 0.05 * gradient
            size = 0.2 * 0.01 * max(gradient.shape) ** 0.5
            before[place] = (1 - 0.01 * 0.1) * before[place] - size * orthogonalised(ahead[None])[0]
    for weight, expected in zip(weights, before, strict=True):
        assert (weight.detach() - expected).abs().max() < TOLERANCE[torch.float64]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_muon_is_about_as_large_as_one_of_adam(shape: tuple[int, int]) -> None:
    (weight,) = parameters(shape)
    before = weight.detach().clone()
    stepped(Muon([weight], lr=1e-2), steps=1)
    moved = (weight.detach() - before).square().mean().sqrt()
    assert 0.15e-2 < moved < 0.25e-2


def test_steps_are_those_of_torchs_own_muon_within_its_precision() -> None:
    """Which iterates in bfloat16, of 8 significant bits."""
    own, other = parameters(*SHAPES), parameters(*SHAPES)
    stepped(Muon(own, lr=0.01), steps=3)
    reference = torch.optim.Muon(other, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    stepped(reference, steps=3)
    for start, one, two in zip(parameters(*SHAPES), own, other, strict=True):
        moved, apart = (one - start).norm(), (one - two).norm()
        assert apart < 0.03 * moved


def test_all_but_hidden_matrices_move_as_by_adamw() -> None:
    shapes = ((24,), (1, 24), (24, 2), (8, 40), ())
    own, other = parameters(*shapes), parameters(*shapes)
    stepped(Muon(own, lr=0.01, weight_decay=0.1))
    stepped(torch.optim.AdamW(other, lr=0.01, weight_decay=0.1))
    for one, two in zip(own, other, strict=True):
        assert not is_hidden_matrix(one)
        assert (one - two).abs().max() < TOLERANCE[torch.float64]


def test_a_weight_without_a_gradient_stays_and_a_closure_is_asked() -> None:
    moving, staying = parameters((32, 32), (32, 32))
    before = staying.detach().clone()
    optimizer = Muon([moving, staying], lr=0.01, weight_decay=0.1)

    def closure() -> float:
        loss = moving.square().sum()
        loss.backward()
        return float(loss.detach())

    start = float(moving.square().sum().detach())
    assert optimizer.step(closure) == start
    assert float(moving.square().sum().detach()) < start
    assert torch.equal(staying, before)
    assert staying not in optimizer.state


def test_muon_goes_on_from_its_state_bitwise() -> None:
    whole, parts = parameters(*SHAPES, (24,)), parameters(*SHAPES, (24,))
    one, first = Muon(whole, lr=0.01), Muon(parts, lr=0.01)
    stepped(one, 1)
    stepped(one, 2)
    stepped(first, 1)
    second = Muon(parts, lr=0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    stepped(second, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_run_by_muon_resumes_bitwise_at_one_rate_for_all_weights() -> None:
    settings = {"optimizer": "muon", "steps": 12, "learning_rate": 1e-2}
    whole, first, second = (tiny.trainer(width=32, **settings) for _ in range(3))
    assert [group["is_orthogonal"] for group in whole.optimizer.param_groups] == [True, False]
    figures = run(whole)
    run(first, until=5)
    second.load_state(copy.deepcopy(first.state()))
    run(second)
    assert same(weights(whole), weights(second))
    for group in whole.optimizer.param_groups:
        assert group["lr"] == figures[-1]["learning_rate"]


def test_a_state_with_entries_of_another_group_is_refused() -> None:
    one = tiny.trainer(width=32, optimizer="muon", steps=2)
    run(one)
    state = copy.deepcopy(one.state())
    entries = state["optimizer"]["state"]
    first = next(place for place, entry in entries.items() if "momentum" in entry)
    other = next(entry for entry in entries.values() if "square" in entry)
    entries[first] = {name: value for name, value in other.items() if name == "step"}
    with pytest.raises(ValueError, match="damaged"):
        tiny.trainer(width=32, optimizer="muon", steps=2).load_state(state)


def test_each_name_makes_its_optimizer_and_another_is_named() -> None:
    model = torch.nn.Linear(32, 32)
    for name, kind in OPTIMIZERS.items():
        config = LoopConfig(optimizer=name, learning_rate=0.5, weight_decay=0.25)
        made = build_optimizer(config, model)
        assert type(made) is kind
        assert all(group["lr"] == 0.5 for group in made.param_groups)
        assert all(group["weight_decay"] == 0.25 for group in made.param_groups)
    with pytest.raises(UsageError, match=r"train\.optimizer: found 'sgd', expected one of adam, "):
        build_optimizer(LoopConfig(optimizer="sgd"), model)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-24, 1e-12])
def test_a_matrix_that_vanishes_moves_nothing(size: float) -> None:
    matrices = size * torch.ones(1, 64, 64) * torch.linspace(-1, 1, 64)
    found = orthogonalised(matrices)
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) < 1e-2
