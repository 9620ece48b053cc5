"""The own adaptive method: parity with torchdiffeq's, and steps that leave the field's region."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.flows import Solver, Status, integrate, ode
from eqflow.flows.dormand_prince import (
    CONTROL,
    ERROR,
    MIDDLE,
    NODES,
    PLAIN,
    ROWS,
    WEIGHTS,
    DormandPrince,
)
from eqflow.flows.evaluation import Evaluator
from eqflow.flows.solver import State
from eqflow.flows.steppers import advance
from eqflow.geometry import Segments


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pendulum(t: Tensor, state: State) -> State:
    """`ẏ = y cos t`, so `y = y₀ exp(sin t)`."""
    return (state[0] * torch.cos(t),)


def orbit(t: Tensor, state: State) -> State:
    """A body on an ellipse of eccentricity 0.6: slow far out, fast close by."""
    x, v = state[0].split(2, dim=1)
    return (torch.cat([v, -x / x.norm(dim=1, keepdim=True) ** 3], 1),)


def spiral(t: Tensor, state: State) -> State:
    """The linear system whose solution turns 5 radians a unit of time and decays."""
    a = torch.tensor([[-0.5, 5.0], [-5.0, -0.5]], dtype=torch.float64)
    return (state[0] @ a,)


PROBLEMS = {
    "pendulum": (pendulum, torch.ones(1, 1, dtype=torch.float64), 8.0),
    "orbit": (orbit, torch.tensor([[0.4, 0.0, 0.0, 2.0]], dtype=torch.float64), 2 * math.pi),
    "spiral": (spiral, torch.tensor([[1.0, 0.3]], dtype=torch.float64), 3.0),
}


@pytest.fixture
def plain_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are made as long as torchdiffeq makes them."""
    monkeypatch.setattr(ode, "DormandPrince", partial(DormandPrince, control=PLAIN))


def exact_end(name: str) -> Tensor:
    _, start, end = PROBLEMS[name]
    if name == "orbit":
        return start
    if name == "pendulum":
        return start * math.exp(math.sin(end))
    a = torch.tensor([[-0.5, 5.0], [-5.0, -0.5]], dtype=torch.float64)
    return start @ torch.linalg.matrix_exp(end * a)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.usefixtures("plain_control")
def test_errors_and_evaluations_are_those_of_torchdiffeq(name: str, tolerance: float) -> None:
    field, start, end = PROBLEMS[name]
    solutions = [
        integrate(field, (start,), times(0, end), Solver("dopri5", tolerance, tolerance, **by))
        for by in ({"implementation": "eqflow"}, {"implementation": "torchdiffeq"})
    ]
    own, theirs = (float((s.final()[0] - exact_end(name)).abs().max()) for s in solutions)
    assert own < 1.5 * theirs + 1e-13
    assert own > theirs / 1.5 - 1e-13
    few, many = sorted(solution.evaluations for solution in solutions)
    assert many <= 1.2 * few


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-9])
def test_the_own_control_costs_no_more_for_the_same_accuracy(name: str, tolerance: float) -> None:
    """Error times evaluations to the fifth is what a method of order 5 keeps from step to step."""
    field, start, end = PROBLEMS[name]
    worth = []
    for control in (CONTROL, PLAIN):
        evaluate = Evaluator(lambda t, y: field(t, (y.view_as(start),))[0].flatten(), 100_000)
        method = DormandPrince(evaluate, lambda y: y.norm(), tolerance, tolerance, control)
        found = method.integrate(start.flatten(), [0.0, end])[-1]
        error = float((found - exact_end(name).flatten()).abs().max())
        assert error < 1e3 * tolerance
        worth.append(evaluate.evaluations * (error + 1e-13) ** (1 / 5))
    assert worth[0] < 1.1 * worth[1]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.usefixtures("plain_control")
def test_states_in_between_are_those_of_torchdiffeq(backwards: bool) -> None:
    asked = torch.linspace(0, 3, 40, dtype=torch.float64)
    asked = asked.flip(0) if backwards else asked
    start = torch.tensor([[1.0, 0.3]], dtype=torch.float64)
    own, theirs = (
        integrate(spiral, (start,), asked, Solver(implementation=name)).require()[0]
        for name in ("eqflow", "torchdiffeq")
    )
    assert torch.allclose(own, theirs, rtol=1e-7, atol=1e-7)


def test_the_method_is_of_order_5_and_what_is_in_between_of_order_4() -> None:
    """One step of several sizes: errors fall as the sixth and fifth power of the size."""
    field, _, _ = PROBLEMS["pendulum"]
    y = torch.ones(1, dtype=torch.float64)
    method = DormandPrince(
        Evaluator(lambda t, y: field(t, (y,))[0], 1000), lambda y: y.norm(), 1e9, 1e9
    )
    ends, middles = [], []
    for h in (0.4, 0.2, 0.1):
        slope = method.evaluate.at(0.0, y)
        stages, arrived, _ = method._try_step(0.0, h, y, slope)
        ends.append(abs(float(arrived) - math.exp(math.sin(h))))
        middle = advance(y, h, MIDDLE, stages)
        middles.append(abs(float(middle) - math.exp(math.sin(h / 2))))
    for errors, order in ((ends, 6), (middles, 5)):
        for coarse, fine in pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.5)


def test_the_coefficients_obey_the_conditions_on_their_sums() -> None:
    for node, row in zip(NODES, ROWS, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-14)
    assert sum(WEIGHTS) == pytest.approx(1, abs=1e-14)
    assert sum(ERROR) == pytest.approx(0, abs=1e-14)
    assert sum(MIDDLE) == pytest.approx(0.5, abs=1e-14)
    for power in range(2, 6):
        moment = sum(b * c ** (power - 1) for b, c in zip(WEIGHTS, NODES, strict=True))
        assert moment == pytest.approx(1 / power, abs=1e-14)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.usefixtures("plain_control")
def test_gradients_are_those_of_torchdiffeq(tolerance: float) -> None:
    def gradient(name: str) -> Tensor:
        start = torch.tensor([[1.0, 0.3], [0.2, -0.4]], dtype=torch.float64, requires_grad=True)
        solver = Solver("dopri5", tolerance, tolerance, implementation=name)
        path = integrate(
            lambda t, s: (torch.sin(s[0]).flip(1) * (1 + t),), (start,), times(0, 0.4, 1), solver
        ).require()[0]
        return torch.autograd.grad(path.square().sum(), start)[0]

    own, theirs = gradient("eqflow"), gradient("torchdiffeq")
    assert torch.allclose(own, theirs, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_the_steps_taken() -> None:
    def final(start: Tensor) -> Tensor:
        # So loose that every step is accepted and as long as allowed: the same for any start.
        solver = Solver("dopri5", 1e3, 1e3)
        return integrate(lambda t, s: (torch.sin(s[0]),), (start,), times(0, 1), solver).final()[0]

    start = torch.tensor([[0.3], [1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(final, start)
    assert torch.autograd.gradgradcheck(final, start)


def test_the_same_problem_takes_the_same_steps() -> None:
    field, start, end = PROBLEMS["orbit"]
    first, second = (integrate(field, (start,), times(0, end), Solver()) for _ in range(2))
    assert torch.equal(first.final()[0], second.final()[0])


def well(t: Tensor, state: State) -> State:
    """Pulls hard towards `cos t`, and is not a number further than 1.01 from the origin."""
    y = state[0]
    return (torch.where(y.abs() > 1.01, torch.nan, 80 * (torch.cos(t) - y)),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_trial_step_out_of_the_region_of_the_field_is_tried_again_shorter(
    dtype: torch.dtype, deferred: bool
) -> None:
    bad = []

    def watched(t: Tensor, y: Tensor) -> Tensor:
        (slope,) = well(t, (y,))
        bad.append(not bool(torch.isfinite(slope).all()))
        return slope

    y = torch.zeros(2, dtype=dtype)
    clouds = Segments(torch.tensor([0, 1, 2]))
    evaluate = Evaluator(watched, 100_000, deferred)
    method = DormandPrince(
        evaluate, lambda y: clouds.mean(y.square()).max().sqrt(), 1e-3, 1e-3, PLAIN
    )
    found = method.integrate(y, [0.0, 1.0])[-1]
    assert any(bad)  # or this would test nothing
    # Up to the transient, y = (80² cos t + 80 sin t) / (80² + 1).
    exact = (80**2 * math.cos(1) + 80 * math.sin(1)) / (80**2 + 1)
    assert found.tolist() == pytest.approx([exact] * 2, abs=2e-3)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_solution_that_leaves_the_region_of_the_field_names_its_cloud(
    backwards: bool, tolerance: float, dtype: torch.dtype
) -> None:
    direction = -1 if backwards else 1

    def right_hand_side(t: Tensor, state: State) -> State:
        return (torch.where(state[0] > 2, torch.nan, direction * state[0]),)

    start = torch.tensor([[0.1], [1.0], [0.2]], dtype=dtype)
    span = times(1, 0) if backwards else times(0, 1)
    solver = Solver("dopri5", tolerance, tolerance)
    clouds = Segments(torch.tensor([0, 1, 2, 3]))
    solution = integrate(right_hand_side, (start,), span.to(dtype), solver, clouds)
    assert solution.status is Status.NON_FINITE
    assert solution.at_fault.tolist() == [1]
    passed = 1 - solution.time if backwards else solution.time
    assert passed == pytest.approx(math.log(2), abs=2 * tolerance + 1e-6)


def test_a_field_that_is_not_finite_from_some_time_on_names_its_cloud() -> None:
    def right_hand_side(t: Tensor, state: State) -> State:
        sick = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
        return (state[0] + torch.where((sick > 0) & (t > 0.37), torch.inf, 0.0),)

    start = torch.ones(3, 1, dtype=torch.float64)
    clouds = Segments(torch.tensor([0, 2, 3]))
    solution = integrate(right_hand_side, (start,), times(0, 1), Solver(), clouds)
    assert solution.status is Status.NON_FINITE
    assert solution.at_fault.tolist() == [1]
    assert solution.time == pytest.approx(0.37, abs=1e-6)


def test_no_evaluation_lies_past_the_end() -> None:
    seen = []

    def steep(t: Tensor, state: State) -> State:
        seen.append(float(t))
        return (torch.full_like(state[0], 1e-9),)

    start = torch.full((1, 1), 1e6, dtype=torch.float64)
    assert integrate(steep, (start,), times(0, 1e-3), Solver()).status is Status.SUCCESS
    assert integrate(steep, (start,), times(0, -1e-3), Solver()).status is Status.SUCCESS
    assert max(map(abs, seen)) <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cloud_far_easier_than_its_mates_is_carried_as_if_alone(dtype: torch.dtype) -> None:
    """A hard cloud shortens everyone's steps; the easy ones only gain by it."""
    rate = torch.tensor([[20.0], [0.5]], dtype=dtype)
    start = torch.ones(2, 1, dtype=dtype)
    solver = Solver("dopri5", 1e-6, 1e-6)
    span = times(0, 1).to(dtype)
    (found,) = integrate(
        lambda t, s: (-rate * s[0],), (start,), span, solver, Segments(torch.tensor([0, 1, 2]))
    ).final()
    exact = torch.exp(-rate)
    assert float((found - exact).abs().max()) < 1e-5 + TOLERANCE[dtype]
