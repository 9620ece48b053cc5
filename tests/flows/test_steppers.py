"""Own steps against torchdiffeq's, and recorded steps against plain ones."""

import pytest
import torch
from torch import Tensor, nn

from eqflow.errors import NumericalError, UsageError
from eqflow.flows import Solver, Status, integrate
from eqflow.flows.captured import integrate_captured
from eqflow.flows.evaluation import Evaluator, NonFinite, Stopped
from eqflow.flows.solver import FIXED, State
from eqflow.flows.steppers import TABLEAUS, integrate_fixed
from eqflow.geometry import Segments

EXACT = 1e-12


def swirl(weight: Tensor) -> object:
    """A field that depends on time, state and weights, with a quantity a cloud beside the rows."""

    def right_hand_side(t: Tensor, state: State) -> State:
        rows, sums = state
        move = torch.tanh(rows @ weight) * (1 + torch.sin(3 * t))
        return move, move.square().sum(1).reshape(2, 2).sum(1, keepdim=True) - sums

    return right_hand_side


def solved(solver: Solver, span: list[float]) -> tuple[Tensor, tuple[Tensor, ...], int]:
    """States end to end, gradients by weight and start, and the evaluations."""
    source = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64, generator=source))
    start = torch.randn(4, 3, dtype=torch.float64, generator=source).requires_grad_()
    sums = torch.zeros(2, 1, dtype=torch.float64)
    times = torch.tensor(span, dtype=torch.float64)
    clouds = Segments(torch.tensor([0, 2, 4]))
    solution = integrate(swirl(weight), (start, sums), times, solver, clouds, [weight])
    path = torch.cat([part.flatten(1) for part in solution.require()], 1)
    loss = (path * torch.arange(path.numel()).reshape(path.shape)).sum()
    gradients = torch.autograd.grad(loss, (weight, start))
    return path.detach(), gradients, solution.evaluations


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("span", [[0.0, 1.0], [1.0, 0.2], [0.0, 0.3, 0.31, 2.0]])
def test_fixed_steps_and_their_gradient_are_those_of_torchdiffeq(method: str, span: list) -> None:
    own, theirs = (
        solved(Solver(method, steps=7, implementation=name), span)
        for name in ("eqflow", "torchdiffeq")
    )
    assert torch.allclose(own[0], theirs[0], rtol=EXACT, atol=EXACT)
    for one, other in zip(own[1], theirs[1], strict=True):
        assert torch.allclose(one, other, rtol=EXACT, atol=EXACT)
    assert own[2] == theirs[2]


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("span", [[0.0, 1.0], [1.0, 0.0], [0.0, 0.3, 2.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_on_fixed_buffers_are_the_plain_steps(
    method: str, span: list, dtype: torch.dtype
) -> None:
    y = torch.linspace(-1, 1, 12, dtype=dtype)
    results = []
    for integrator in (integrate_fixed, integrate_captured):
        evaluate = Evaluator(lambda t, y: torch.sin(3 * t) * torch.cos(y), 1000)
        results.append((integrator(evaluate, method, y, span, 9), evaluate))
    (plain, one), (static, other) = results
    tolerance = EXACT if dtype is torch.float64 else 1e-6
    for here, there in zip(plain, static, strict=True):
        assert torch.allclose(here, there, rtol=tolerance, atol=tolerance)
    assert one.evaluations == other.evaluations
    assert one.time == pytest.approx(other.time)


@pytest.mark.parametrize("method", FIXED)
def test_capture_is_used_without_gradients_and_only_there(method: str) -> None:
    solver = Solver(method, steps=5, capture=True)
    plain = Solver(method, steps=5)
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()

    def run(how: Solver) -> Tensor:
        return integrate(lambda t, s: (torch.cos(s[0]) * t,), (start,), times, how).require()[0]

    with torch.no_grad():
        assert torch.allclose(run(solver), run(plain), rtol=EXACT, atol=EXACT)
    gradients = [torch.autograd.grad(run(how).sum(), start)[0] for how in (solver, plain)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("settings", [{"method": "dopri5"}, {"implementation": "torchdiffeq"}])
def test_capture_needs_own_fixed_steps(settings: dict) -> None:
    with pytest.raises(UsageError, match=r"solver.capture: found true .* fixed-step method"):
        Solver(**{"method": "rk4", "capture": True} | settings)


@pytest.mark.parametrize("integrator", [integrate_fixed, integrate_captured])
@pytest.mark.parametrize("method", FIXED)
def test_no_step_makes_more_evaluations_than_there_may_be(integrator: object, method: str) -> None:
    evaluate = Evaluator(lambda t, y: -y, 9)
    with pytest.raises(Stopped) as stopped:
        integrator(evaluate, method, torch.ones(3), [0.0, 1.0], 20)
    assert stopped.value.status is Status.STEP_LIMIT
    assert 9 - len(TABLEAUS[method].nodes) < evaluate.evaluations <= 9


@pytest.mark.parametrize("integrator", [integrate_fixed, integrate_captured])
@pytest.mark.parametrize("method", FIXED)
def test_a_check_put_off_to_the_end_finds_the_same_entries(integrator: object, method: str) -> None:
    def broken(t: Tensor, y: Tensor) -> Tensor:
        # Hides at once what it has done, so that only one state in between shows it.
        sick = torch.where((t > 0.4) & (t < 0.6) & (y > 0), torch.inf, torch.zeros_like(y))
        return sick - torch.nan_to_num(y, posinf=0.0)

    y = torch.tensor([-1.0, 1.0, -2.0], dtype=torch.float64)
    found = []
    for deferred in (False, True):
        evaluate = Evaluator(broken, 1000, deferred)
        with pytest.raises(NonFinite) as raised:
            evaluate.settle(integrator(evaluate, method, y, [0.0, 1.0], 10)[-1])
        found.append(torch.isfinite(raised.value.broken).tolist())
    assert found == [[True, False, True]] * 2


def test_a_field_that_cannot_bear_a_state_whose_check_was_put_off_is_not_to_blame() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        if not bool(torch.isfinite(y).all()):
            raise NumericalError("positions that are not finite")
        return y * torch.inf

    evaluate = Evaluator(field, 1000, deferred=True)
    with pytest.raises(NonFinite):
        integrate_fixed(evaluate, "rk4", torch.ones(3), [0.0, 1.0], 5)

    def picky(t: Tensor, y: Tensor) -> Tensor:
        raise NumericalError("of another kind")

    evaluate = Evaluator(picky, 1000, deferred=True)
    with pytest.raises(NumericalError, match="of another kind"):
        integrate_fixed(evaluate, "rk4", torch.ones(3), [0.0, 1.0], 5)


@pytest.mark.parametrize("size", [3e38, -3e38])
def test_numbers_whose_sum_overflows_are_finite(size: float) -> None:
    y = torch.full((4,), size)
    evaluate = Evaluator(lambda t, y: torch.zeros_like(y), 10)
    assert torch.equal(integrate_fixed(evaluate, "euler", y, [0.0, 1.0], 2)[-1], y)
