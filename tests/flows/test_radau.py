"""The implicit method: accurate, cheap where explicit ones are not, and honest about failures."""

import math

import pytest
import torch
from example_flows import TIGHT, enlarged_field, ragged
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.flows import ContinuousFlow, Exact, Solver, Status, integrate
from eqflow.flows.continuous import DATA, LATENT
from eqflow.flows.field_at import jacobian_of
from eqflow.flows.ode import Solution, State
from eqflow.geometry import Segments


def solve(
    field: object, start: float, solver: Solver, *times: float, dtype: torch.dtype = torch.float64
) -> Solution:
    y = torch.full((1, 1), start, dtype=dtype)
    with torch.no_grad():
        return integrate(field, (y,), torch.tensor(times or (0.0, 1.0), dtype=dtype), solver)


def relaxing(rate: float) -> object:
    """`ẏ = −λ (y − cos t) − sin t`, whose solution from 1.5 is `cos t + ½ exp(−λ t)`."""
    return lambda t, state: (-rate * (state[0] - torch.cos(t)) - torch.sin(t),)


def radau(tolerance: float, **options: int) -> Solver:
    return Solver("radau", rtol=tolerance, atol=tolerance, **options)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("end", [2.0, -2.0])
def test_it_obeys_its_tolerance_in_either_direction(tolerance: float, end: float) -> None:
    solution = solve(lambda t, state: (state[0] * torch.cos(t),), 1.0, radau(tolerance), 0.0, end)
    exact = math.exp(math.sin(end))
    assert abs(float(solution.final()[0]) - exact) < 20 * tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [1e3, 1e4, 1e6])
def test_a_stiff_equation_costs_no_more_for_being_stiffer(rate: float, dtype: torch.dtype) -> None:
    explicit = solve(relaxing(rate), 1.5, Solver(), dtype=dtype)
    assert explicit.status is Status.STEP_LIMIT
    implicit = solve(relaxing(rate), 1.5, radau(1e-5), dtype=dtype)
    exact = math.cos(1) + 0.5 * math.exp(-rate)
    assert abs(float(implicit.final()[0]) - exact) < 2e-5
    assert implicit.evaluations < 500


def test_the_state_in_between_is_that_of_the_solution() -> None:
    asked = (0.0, 0.1, 0.11, 0.7, 1.0)
    solution = solve(relaxing(50.0), 1.5, radau(1e-7), *asked)
    (states,) = solution.require()
    t = torch.tensor(asked, dtype=torch.float64)
    assert torch.allclose(states[:, 0, 0], t.cos() + 0.5 * (-50 * t).exp(), atol=1e-5)


def test_no_step_is_longer_than_its_share_of_the_way() -> None:
    """A short pulse between two long steps would not be seen at all."""

    def pulse(t: Tensor, state: State) -> State:
        return (torch.exp(-(((t - 0.37) / 0.01) ** 2)) / 0.01 + 0 * state[0],)

    found = float(solve(pulse, 0.0, radau(1e-6, steps=50)).final()[0])
    assert found == pytest.approx(math.sqrt(math.pi), abs=1e-4)


def test_integrals_along_the_way_obey_the_tolerance_too() -> None:
    """Their Jacobian is left out, which must not cost accuracy."""
    flow = ContinuousFlow(enlarged_field())
    x, segments = ragged(sizes=(3, 1), dimension=2)
    options = {"start": DATA, "end": LATENT, "divergence": Exact()}
    with torch.no_grad():
        tight = flow.transport(x, segments, **options, solver=TIGHT)
        found = flow.transport(x, segments, **options, solver=radau(1e-5, steps=5))
    assert bool(found.succeeded.all())
    assert torch.allclose(found.x, tight.x, atol=1e-4)
    assert torch.allclose(found.log_det, tight.log_det, atol=1e-4)


def test_each_cloud_has_its_own_steps() -> None:
    flow = ContinuousFlow(enlarged_field())
    x, segments = ragged(sizes=(3, 1, 2), dimension=1)
    options = {"start": DATA, "end": LATENT, "solver": radau(1e-3, steps=2)}
    with torch.no_grad():
        together = flow.transport(x, segments, **options)
        for cloud in range(3):
            some, rows = segments.select(torch.tensor([cloud]))
            alone = flow.transport(x[rows], some, **options)
            assert torch.equal(together.x[rows], alone.x)
            assert int(together.evaluations[cloud]) == int(alone.evaluations)


def test_the_jacobian_is_that_of_differences_in_inference_mode_too() -> None:
    flow = ContinuousFlow(enlarged_field())
    x, segments = ragged(sizes=(3, 2), dimension=2)
    at = flow.dynamics(segments)(torch.tensor(0.4, dtype=torch.float64), x)
    with torch.inference_mode():
        found = jacobian_of(at, x.clone())
    step = 1e-6
    units = step * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    with torch.no_grad():
        columns = [(at(x + unit) - at(x - unit)).reshape(-1) / (2 * step) for unit in units]
    assert torch.allclose(found, torch.stack(columns, 1), atol=1e-6)
    assert found.abs().max() > 0.1


def test_failures_are_told_as_by_the_other_methods() -> None:
    blown = solve(lambda t, state: (state[0] ** 2,), 2.0, radau(1e-5, step_limit=100_000))
    assert blown.status is Status.UNDERFLOW
    assert blown.time == pytest.approx(0.5, abs=1e-3)
    few = solve(relaxing(10.0), 1.5, radau(1e-5, step_limit=7))
    assert few.status is Status.STEP_LIMIT
    assert few.evaluations == 7
    lost = solve(lambda t, state: (torch.where(state[0] > 1.3, math.nan, 1.0),), 1.0, radau(1e-5))
    assert lost.status is Status.NON_FINITE
    assert lost.at_fault.tolist() == [0]
    assert lost.time == pytest.approx(0.3, abs=1e-3)
    sick = solve(lambda t, state: (0 * state[0],), math.nan, radau(1e-5))
    assert (sick.status, sick.evaluations) == (Status.NON_FINITE, 1)


def test_a_trial_step_out_of_the_field_s_region_is_tried_again_shorter() -> None:
    def edge(t: Tensor, state: State) -> State:
        return (torch.where(state[0].abs() > 2.01, math.nan, 160 * torch.cos(t) - 80 * state[0]),)

    found = solve(edge, 1.0, radau(1e-6))
    plain = solve(edge, 1.0, Solver(rtol=1e-9, atol=1e-9, step_limit=100_000))
    assert float(found.final()[0]) == pytest.approx(float(plain.final()[0]), abs=1e-4)


def test_it_gives_no_gradients_and_says_so() -> None:
    y = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UsageError, match="gives no gradients"):
        integrate(relaxing(1.0), (y,), torch.tensor([0.0, 1.0]), radau(1e-5))
    with pytest.raises(UsageError, match="adjoint with radau"):
        Solver("radau", gradient="adjoint")


def test_a_state_without_rows_has_a_solution() -> None:
    empty = torch.zeros(0, 2, dtype=torch.float64)
    with torch.no_grad():
        solution = integrate(
            lambda t, state: (0 * state[0], state[1] * 0 + 2),
            (empty, torch.zeros(1, 1, dtype=torch.float64)),
            torch.tensor([0.0, 1.0]),
            radau(1e-5),
            Segments(torch.tensor([0, 0])),
        )
    assert float(solution.final()[1]) == pytest.approx(2, rel=TOLERANCE[torch.float64])
