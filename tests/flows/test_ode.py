"""The ODE door: orders of convergence, tolerances, limits, and how each kind of failure is told."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.errors import ShapeError, SolverFailed, UsageError
from eqflow.flows import Solver, Status, integrate
from eqflow.flows.ode import ADAPTIVE, FIXED, State
from eqflow.geometry import Segments

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
ROOT = Path(__file__).resolve().parents[2]


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pendulum(t: Tensor, state: State) -> State:
    """`ẏ = y cos t`, so `y = y₀ exp(sin t)`."""
    return (state[0] * torch.cos(t),)


def error_of(solver: Solver, end: float = 2.0) -> float:
    start = torch.ones(1, 1, dtype=torch.float64)
    solution = integrate(pendulum, (start,), times(0, end), solver)
    return abs(float(solution.final()[0]) - math.exp(math.sin(end)))


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("end", [2.0, -2.0])
def test_a_fixed_step_method_converges_at_its_order(method: str, end: float) -> None:
    errors = [error_of(Solver(method, steps=steps), end) for steps in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(ORDERS[method], abs=0.2)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 3, 7, 20, 49, 99])
def test_a_fixed_step_method_takes_as_many_steps_as_asked(
    method: str, dtype: torch.dtype, steps: int
) -> None:
    for span in (times(0, 1), times(1, 0), times(0, 0.3)):
        start = torch.ones(1, 1, dtype=dtype)
        solution = integrate(pendulum, (start,), span.to(dtype), Solver(method, steps=steps))
        assert solution.evaluations == steps * ORDERS[method]


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("end", [2.0, -2.0])
def test_an_adaptive_method_obeys_its_tolerance(method: str, tolerance: float, end: float) -> None:
    error = error_of(Solver(method, rtol=tolerance, atol=tolerance, step_limit=100_000), end)
    assert error < 20 * tolerance


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_every_evaluation_is_counted(method: str) -> None:
    calls = []

    def counted(t: Tensor, state: State) -> State:
        calls.append(float(t))
        return pendulum(t, state)

    start = torch.ones(1, 1, dtype=torch.float64)
    solution = integrate(counted, (start,), times(0, 1), Solver(method))
    assert solution.status is Status.SUCCESS
    assert solution.evaluations == len(calls) > 0
    assert max(calls) <= 1 + 1e-12
    assert solution.time == calls[-1]


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_the_step_limit_is_the_most_evaluations_there_are(method: str) -> None:
    start = torch.ones(1, 1, dtype=torch.float64)
    solution = integrate(pendulum, (start,), times(0, 9), Solver(method, step_limit=11))
    assert solution.status is Status.STEP_LIMIT
    assert solution.evaluations == 11
    assert solution.states is None
    assert len(solution.at_fault) == 0
    with pytest.raises(SolverFailed, match=r"t = .* after 11 evaluations: .*step_limit"):
        solution.final()


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_clouds_whose_derivative_is_not_finite_are_named(method: str) -> None:
    clouds = Segments(torch.tensor([0, 2, 3, 6, 7]))
    start = torch.ones(7, 2, dtype=torch.float64)
    empty = torch.zeros(4, 0, dtype=torch.float64)

    def broken(t: Tensor, state: State) -> State:
        sick = torch.zeros(7, 2, dtype=torch.float64)
        sick[4, 1] = float("nan") if t > 0.3 else 0.0
        sums = torch.zeros(4, 1, dtype=torch.float64)
        sums[1] = float("inf") if t > 0.3 else 0.0
        return state[0] + sick, sums, empty

    solution = integrate(
        broken, (start, torch.zeros(4, 1).double(), empty), times(0, 1), Solver(method), clouds
    )
    assert solution.status is Status.NON_FINITE
    assert solution.at_fault.tolist() == [1, 2]
    with pytest.raises(SolverFailed, match=r"clouds at fault: \[1, 2\]"):
        solution.final()


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_a_start_that_is_not_finite_is_told_even_where_the_derivative_hides_it(
    method: str,
) -> None:
    clouds = Segments(torch.tensor([0, 1, 2]))
    start = torch.tensor([[1.0], [float("nan")]])
    solution = integrate(
        lambda t, state: (torch.zeros_like(state[0]),),
        (start,),
        times(0, 1),
        Solver(method),
        clouds,
    )
    assert solution.status is Status.NON_FINITE
    assert solution.at_fault.tolist() == [1]


@pytest.mark.parametrize("method", FIXED)
def test_a_last_state_that_is_not_finite_is_told(method: str) -> None:
    clouds = Segments(torch.tensor([0, 1, 2]))
    start = torch.tensor([[1.0], [3e38]])
    solution = integrate(
        lambda t, state: (torch.full_like(state[0], 3e38) * (state[0] > 2),),
        (start,),
        times(0, 1),
        Solver(method, steps=1),
        clouds,
    )
    assert solution.status is Status.NON_FINITE
    assert solution.at_fault.tolist() == [1]


def blow_up(t: Tensor, state: State) -> State:
    """`ẏ = y²` reaches infinity at `t = 1 / y₀`."""
    return (state[0] ** 2,)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("limit", [50, 100_000])
def test_a_solution_that_blows_up_ends_with_a_status(method: str, limit: int) -> None:
    start = torch.full((1, 1), 2.0, dtype=torch.float64)
    solver = Solver(method, rtol=1e-3, atol=1e-3, step_limit=limit)
    solution = integrate(blow_up, (start,), times(0, 1), solver)
    expected = {Status.STEP_LIMIT} if limit == 50 else {Status.UNDERFLOW, Status.NON_FINITE}
    assert solution.status in expected
    assert solution.states is None


def singular(t: Tensor, state: State) -> State:
    """`ẏ = 1 / |t − ½|`: the integral over the middle diverges."""
    return ((1 / (t - 0.5).abs().clamp(min=1e-300)).expand(1, 1),)


def test_a_step_that_vanishes_is_an_underflow_in_either_direction() -> None:
    start = torch.zeros(1, 1, dtype=torch.float64)
    for span in (times(0, 1), times(1, 0)):
        solver = Solver(rtol=1e-9, atol=1e-9, step_limit=10_000_000)
        solution = integrate(singular, (start,), span, solver)
        assert solution.status is Status.UNDERFLOW
        assert solution.time == pytest.approx(0.5, abs=1e-3)


PROGRAM = """
import torch
from eqflow.flows import Solver, integrate
fields = (
    lambda t, s: (s[0] ** 2,),
    lambda t, s: (1 / (t - 0.5).abs().clamp(min=1e-300).expand(1, 1),),
    lambda t, s: (torch.where(s[0].abs() > 2.01, torch.nan, 160 * torch.cos(t) - 80 * s[0]),),
)
found = []
for start in (2.0, float("nan"), 1e308):
    y = torch.full((1, 1), start, dtype=torch.float64)
    for method, implementation in (
        ("dopri5", "eqflow"), ("rk4", "eqflow"), ("dopri5", "torchdiffeq"), ("rk4", "torchdiffeq")
    ):
        for field in fields:
            times = torch.tensor([0.0, 1.0], dtype=torch.float64)
            solver = Solver(method, 1e-4, 1e-4, step_limit=1500, implementation=implementation)
            solution = integrate(field, (y,), times, solver)
            found.append((solution.status.name, solution.evaluations, len(solution.at_fault)))
print(found)
"""


def test_failures_are_the_same_without_assertions() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, *flags, "-c", PROGRAM],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for flags in ([], ["-O"])
    ]
    assert outputs[0] == outputs[1]
    for status in ("SUCCESS", "UNDERFLOW", "NON_FINITE"):
        assert status in outputs[0]


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_state_at_several_times_is_that_at_each_alone(method: str, backwards: bool) -> None:
    solver = Solver(method, rtol=1e-6, atol=1e-6, steps=40, step_limit=100_000)
    asked = times(0, 0.3, 0.31, 0.77, 2)
    asked = 2 - asked if backwards else asked
    start = torch.ones(1, 1, dtype=torch.float64)
    solution = integrate(pendulum, (start,), asked, solver)
    (states,) = solution.require()
    exact = torch.exp(torch.sin(asked) - torch.sin(asked[0]))
    accuracy = {"euler": 0.05, "midpoint": 1e-3, "heun": 2e-3}.get(method, 1e-5)
    assert torch.allclose(states[:, 0, 0], exact, atol=accuracy)
    assert torch.equal(states[0], start)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_times_in_between_do_not_change_the_steps(method: str) -> None:
    start = torch.ones(1, 1, dtype=torch.float64)
    few = integrate(pendulum, (start,), times(0, 1), Solver(method))
    many = integrate(pendulum, (start,), torch.linspace(0, 1, 30).double(), Solver(method))
    assert torch.equal(few.final()[0], many.final()[0])
    assert few.evaluations == many.evaluations


@pytest.mark.parametrize("method", ADAPTIVE)
def test_easy_mates_do_not_loosen_the_error_of_a_hard_cloud(method: str) -> None:
    rate = torch.zeros(1000, 1, dtype=torch.float64)
    rate[0] = 30.0
    start = torch.ones(1000, 1, dtype=torch.float64)
    clouds = Segments(torch.arange(1001))
    solver = Solver(method, rtol=1e-4, atol=1e-4, step_limit=100_000)

    def right_hand_side(t: Tensor, state: State) -> State:
        return (torch.cos(rate * t) * rate,)

    together = integrate(right_hand_side, (start,), times(0, 1), solver, clouds)
    rate_alone = rate[:1]
    alone = integrate(
        lambda t, state: (torch.cos(rate_alone * t) * rate_alone,),
        (start[:1],),
        times(0, 1),
        solver,
    )
    exact = 1 + math.sin(30)
    error = abs(float(together.final()[0][0]) - exact)
    assert error <= abs(float(alone.final()[0]) - exact) + 1e-12
    assert together.evaluations == alone.evaluations


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_hard_quantity_of_a_cloud_is_not_loosened_by_its_easy_rows(method: str) -> None:
    rows = torch.zeros(900, 3, dtype=torch.float64)
    integral = torch.zeros(300, 1, dtype=torch.float64)
    clouds = Segments(torch.arange(301) * 3)
    solver = Solver(method, rtol=1e-4, atol=1e-4, step_limit=100_000)

    def right_hand_side(t: Tensor, state: State) -> State:
        hard = torch.zeros_like(integral)
        hard[7] = 30 * torch.cos(30 * t)
        return torch.zeros_like(rows), hard

    _, found = integrate(right_hand_side, (rows, integral), times(0, 1), solver, clouds).final()
    assert float(found[7]) == pytest.approx(math.sin(30), abs=2e-3)


def gradient_of(solver: Solver, span: Tensor) -> tuple[Tensor, ...]:
    """The gradient by parameter and start of the squared state at the last two times."""
    weight = torch.nn.Parameter(torch.tensor([[0.3, -0.8], [0.9, 0.1]], dtype=torch.float64))
    unused = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    start = torch.tensor([[1.0, 0.5], [-0.3, 0.2]], dtype=torch.float64, requires_grad=True)

    def right_hand_side(t: Tensor, state: State) -> State:
        move = torch.tanh(state[0] @ weight) * (1 + t)
        return move, move.square().sum(1, keepdim=True)

    solution = integrate(
        right_hand_side,
        (start, torch.zeros(2, 1, dtype=torch.float64)),
        span,
        solver,
        Segments(torch.tensor([0, 1, 2])),
        [weight, unused, frozen],
    )
    states, integrals = solution.require()
    loss = states[-2:].square().sum() + integrals[-1].sum()
    return torch.autograd.grad(loss, (weight, start))


@pytest.mark.parametrize("method", [*ADAPTIVE, "rk4"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.4, 1.0)])
def test_the_adjoint_gradient_is_the_direct_gradient(method: str, span: tuple) -> None:
    settings = {"rtol": 1e-9, "atol": 1e-9, "steps": 100, "step_limit": 1_000_000}
    if method == "adaptive_heun":
        settings |= {"rtol": 1e-6, "atol": 1e-6}
    direct = gradient_of(Solver(method, **settings), times(*span))
    adjoint = gradient_of(Solver(method, **settings, gradient="adjoint"), times(*span))
    for one, other in zip(direct, adjoint, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_direct_gradient_is_that_of_the_steps_taken() -> None:
    def final(start: Tensor) -> Tensor:
        return integrate(
            lambda t, state: (torch.sin(state[0]),), (start,), times(0, 1), Solver("rk4", steps=3)
        ).final()[0]

    start = torch.tensor([[0.3], [1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(final, start)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_step_sizes_are_constants_to_the_derivative(method: str) -> None:
    """At a loose tolerance the gradient is still that of the solution, not of the step control."""
    start = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    solution = integrate(
        lambda t, state: (-state[0] * (1 + t),), (start,), times(0, 1), Solver(method, 1e-2, 1e-2)
    )
    final = solution.final()[0]
    (slope,) = torch.autograd.grad(final.sum(), start)
    # A linear equation: the numerical flow is linear too, at any fixed steps.
    ratio = float((final / start).detach())
    assert float(slope) == pytest.approx(ratio, rel=TOLERANCE[torch.float64])


def test_an_adjoint_that_fails_says_so_as_a_solver_failure() -> None:
    start = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    forward = integrate(pendulum, (start,), times(0, 1), Solver(gradient="adjoint"))
    limit = forward.evaluations + 3
    solver = Solver(gradient="adjoint", step_limit=limit)
    (state,) = integrate(pendulum, (start,), times(0, 1), solver).final()
    with pytest.raises(SolverFailed, match=r"step_limit"):
        state.sum().backward()


def test_a_bug_in_the_right_hand_side_is_not_swallowed() -> None:
    def buggy(t: Tensor, state: State) -> State:
        raise AssertionError("underflow of another kind")

    with pytest.raises(AssertionError, match="another kind"):
        integrate(buggy, (torch.ones(1, 1),), torch.tensor([0.0, 1.0]), Solver())


@pytest.mark.parametrize(
    "span", [[0.0], [0.0, 0.0], [0.0, 1.0, 0.5], [[0.0, 1.0]], [0.0, float("nan")]]
)
def test_times_that_neither_rise_nor_fall_are_refused(span: list) -> None:
    with pytest.raises(UsageError, match="all rising or all falling"):
        integrate(pendulum, (torch.ones(1, 1),), torch.tensor(span), Solver())


def test_all_problems_of_a_solver_are_named_at_once() -> None:
    with pytest.raises(UsageError) as raised:
        Solver("rk5", rtol=0, atol=float("nan"), steps=0, step_limit=0, gradient="none")
    for name in ("method", "rtol", "atol", "steps", "step_limit", "gradient"):
        assert f"solver.{name}: found" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 2.5, "a whole number, at least 1"),
        ("steps", "10", "a whole number, at least 1"),
        ("steps", True, "a whole number, at least 1"),
        ("steps", -3, "a whole number, at least 1"),
        ("steps", float("nan"), "a whole number, at least 1"),
        ("step_limit", 1e3, "a whole number, at least 1"),
        ("step_limit", None, "a whole number, at least 1"),
        ("rtol", "x", "a finite number above 0"),
        ("rtol", "1e-3", "a finite number above 0"),
        ("rtol", True, "a finite number above 0"),
        ("atol", None, "a finite number above 0"),
        ("atol", -1e-5, "a finite number above 0"),
        ("atol", float("nan"), "a finite number above 0"),
        ("atol", math.inf, "a finite number above 0"),
        ("atol", 1e-5j, "a finite number above 0"),
        ("method", 4, "one of dopri5"),
        ("gradient", None, "one of direct"),
        ("implementation", ["eqflow"], "one of eqflow"),
        ("capture", "no", "true or false"),
    ],
)
def test_a_value_of_a_wrong_type_or_range_is_refused(
    name: str, value: object, expected: str
) -> None:
    with pytest.raises(UsageError) as raised:
        Solver(**{name: value})
    assert str(raised.value).startswith(f"solver.{name}: found {value!r}, expected {expected}")


def test_numbers_of_numpy_are_numbers() -> None:
    Solver(steps=np.int64(3), step_limit=np.int32(9), rtol=np.float32(1e-3), atol=1)


WRONG_SHAPES = {
    "a column that would be broadcast": lambda y, s: (y[:, :1], s),
    "a row that would be broadcast": lambda y, s: (y[0], s),
    "a number that would be broadcast": lambda y, s: (y.sum(), s),
    "transposed": lambda y, s: (y.t(), s),
    "flat": lambda y, s: (y.reshape(-1), s),
    "a quantity a cloud without its axis": lambda y, s: (y, s[:, 0]),
    "a part too few": lambda y, s: (y,),
    "a part too many": lambda y, s: (y, s, s),
    "no tuple": lambda y, s: torch.cat([y.reshape(-1), s.reshape(-1)]),
    "no tensor": lambda y, s: (y, None),
    "nothing": lambda y, s: None,
}


@pytest.mark.parametrize("wrong", WRONG_SHAPES.values(), ids=WRONG_SHAPES)
@pytest.mark.parametrize(
    "how",
    [
        {"method": "dopri5"},
        {"method": "rk4"},
        {"method": "euler", "capture": True},
        {"method": "rk4", "gradient": "checkpoint"},
        {"method": "adaptive_heun"},
        {"method": "dopri5", "gradient": "adjoint"},
    ],
    ids=str,
)
def test_a_derivative_of_another_shape_is_an_error_at_the_first_evaluation(
    how: dict, wrong: object
) -> None:
    calls = []

    def right_hand_side(t: Tensor, state: State) -> object:
        calls.append(t)
        return wrong(*state)

    initial = (torch.ones(4, 2), torch.zeros(2, 1))
    clouds = Segments(torch.tensor([0, 2, 4]))
    with pytest.raises(ShapeError, match=r"returned .*, expected a tuple .* \(4, 2\), \(2, 1\)\."):
        integrate(right_hand_side, initial, torch.tensor([0.0, 1.0]), Solver(**how), clouds)
    assert len(calls) == 1


def test_a_derivative_of_another_shape_is_an_error_where_there_is_one_point() -> None:
    for wrong in (torch.ones(3), torch.ones(1, 1), torch.ones(3, 1)):
        with pytest.raises(ShapeError, match=r"expected a tuple .* \(1, 3\)\."):
            integrate(
                lambda t, s, wrong=wrong: (wrong,), (torch.ones(1, 3),), times(0, 1), Solver()
            )


def test_a_batch_without_rows_is_solved() -> None:
    empty = torch.zeros(0, 3, dtype=torch.float64)
    solution = integrate(
        lambda t, state: state, (empty,), times(0, 1), Solver(), Segments(torch.tensor([0]))
    )
    assert solution.final()[0].shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype(dtype: torch.dtype) -> None:
    for method in (*ADAPTIVE, *FIXED):
        seen = []

        def right_hand_side(t: Tensor, state: State, seen: list = seen) -> State:
            seen.append((t.dtype, state[0].dtype))
            return (state[0],)

        start = torch.ones(2, 2, dtype=dtype)
        span = torch.tensor([0.0, 1.0], dtype=dtype)
        (final,) = integrate(right_hand_side, (start,), span, Solver(method, 1e-4, 1e-4)).final()
        assert final.dtype is dtype
        assert set(seen) == {(dtype, dtype)}
