"""Objectives: their values and gradients where the answer is known, and that they are lowered."""

import math
from collections.abc import Callable

import pytest
import torch
from example_flows import TIGHT, FunctionField, LinearField, enlarged_field, flow_of, ragged
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import SolverFailed, UsageError
from eqflow.flows import (
    AbstractCoupling,
    AbstractObjective,
    Batch,
    CenteredNormal,
    ContinuousFlow,
    EquivariantOT,
    Exact,
    FlowMatching,
    Hutchinson,
    Independent,
    MaximumLikelihood,
    Solver,
)
from eqflow.flows.objectives import stratified_times
from eqflow.geometry import Clouds, Segments
from eqflow.nn import AbstractField

RK4 = Solver("rk4", steps=4)


class GaussianField(AbstractField):
    """The exact velocity between a Gaussian of width `σ` and the base, independently coupled.

    With `x_t = (1 − t) x + t z` the regression of `z − x` on `x_t` is linear,
    `E[z − x | x_t] = (t − (1 − t) σ²) / ((1 − t)² σ² + t²) x_t`.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = torch.nn.Parameter(torch.tensor(width, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        s = edges.clouds.expand(t.expand(edges.clouds.count)).unsqueeze(1)
        variance = self.width**2
        slope = (s - (1 - s) * variance) / ((1 - s) ** 2 * variance + s**2)
        return slope * x


def gaussian_batch(width: float, count: int, seed: int = 0) -> Batch:
    segments = Segments.of_lengths(torch.full((count,), 3))
    like = torch.zeros((), dtype=torch.float64)
    x = CenteredNormal().sample(segments, 2, like, rng.generator(seed, "data"))
    return Batch(width * x, segments)


def small_batch() -> Batch:
    return Batch(*ragged(sizes=(3, 1, 4, 2), dimension=2))


def test_the_loss_at_the_optimum_of_a_gaussian_is_the_variance_that_is_left() -> None:
    """`Var[z − x | x_t] = σ² / ((1 − t)² σ² + t²)`, and over t its integral is `π σ / 2`."""
    width = 0.6
    batch = gaussian_batch(width, 20_000)
    objective = FlowMatching(Independent())
    best = objective(ContinuousFlow(GaussianField(width)), batch, rng.generator(0, "loss"))
    assert float(best.value.detach()) == pytest.approx(math.pi * width / 2, rel=0.02)
    for other in (0.5, 0.75):
        worse = objective(ContinuousFlow(GaussianField(other)), batch, rng.generator(0, "loss"))
        assert worse.value > best.value


def test_the_gradient_vanishes_at_the_optimum() -> None:
    """An unbiased gradient: its mean over draws of noise and times is 0 within its error."""
    flow = ContinuousFlow(GaussianField(0.6))
    objective = FlowMatching(Independent())
    found = []
    for step in range(60):
        loss = objective(flow, gaussian_batch(0.6, 200, step), rng.generator(0, "loss", step))
        found.append(torch.autograd.grad(loss.value, flow.field.width)[0])
    gradient = torch.stack(found)
    assert gradient.mean().abs() < 4.5 * gradient.std() / 60**0.5


def test_the_optimal_field_carries_the_base_to_the_data() -> None:
    flow = flow_of(GaussianField(0.6), 2, solver=TIGHT)
    batch = Clouds.from_dense(gaussian_batch(0.6, 5).x.reshape(5, 3, 2))
    base = CenteredNormal().log_prob(batch.x / 0.6, batch.ptr) - 4 * math.log(0.6)
    assert torch.allclose(flow.log_prob(batch), base, atol=1e-6)


def test_a_small_batch_has_the_gradient_of_a_large_one_on_average() -> None:
    """Stratified times do not bias the gradient: batches of 2 against batches of 500."""
    flow = ContinuousFlow(LinearField(0.3))
    objective = FlowMatching(Independent())

    def gradients(count: int, draws: int) -> Tensor:
        found = []
        for step in range(draws):
            source = rng.generator(0, "loss", count, step)
            loss = objective(flow, gaussian_batch(0.6, count, step), source).value
            found.append(torch.autograd.grad(loss, flow.field.rate)[0])
        return torch.stack(found)

    few, many = gradients(2, 800), gradients(500, 40)
    error = (few.var() / 800 + many.var() / 40) ** 0.5
    assert (few.mean() - many.mean()).abs() < 4.5 * error


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_power_of_time_moves_training_and_stays_an_average_over_a_density(power: float) -> None:
    """With a field that is only its network's mistake at t, the mean is that of u^p."""

    class Clock(AbstractField):
        """Off by the square root of t in each coordinate, if data and noise are at 0."""

        def forward(self, t, x, edges, context=None):
            return edges.clouds.expand(t.expand(edges.clouds.count)).sqrt().unsqueeze(1) + 0 * x

    class Still(AbstractCoupling):
        """All noise at the origin."""

        def __call__(self, x, clouds, types, source):
            return torch.zeros_like(x)

    clouds = Segments(torch.arange(0, 4001, 2))
    batch = Batch(torch.zeros(4000, 3, dtype=torch.float64), clouds)
    objective = FlowMatching(Still(), time_power=power)
    found = objective(ContinuousFlow(Clock()), batch, rng.generator(0)).terms["loss"]
    # Two points in three dimensions have three degrees of freedom, and E u^p = 1 / (p + 1).
    assert found == pytest.approx(2 * 1 / (power + 1), rel=2e-3)


def test_times_are_uniform_one_in_each_interval() -> None:
    like = torch.zeros((), dtype=torch.float64)
    t = stratified_times(50, like, rng.generator(0))
    assert sorted((t * 50).long().tolist()) == list(range(50))
    assert not torch.equal(t, t.sort().values)
    first = torch.stack([stratified_times(3, like, rng.generator(0, i))[0] for i in range(2000)])
    assert float(first.mean()) == pytest.approx(0.5, abs=4.5 * (1 / 12 / 2000) ** 0.5)
    assert float(first.var()) == pytest.approx(1 / 12, rel=0.1)
    assert stratified_times(0, like, rng.generator(0)).shape == (0,)


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 3)])
def test_lone_points_have_nothing_to_learn_and_finite_gradients(sizes: tuple[int, ...]) -> None:
    flow = ContinuousFlow(enlarged_field())
    batch = Batch(*ragged(sizes=sizes))
    for objective in (
        FlowMatching(EquivariantOT()),
        MaximumLikelihood(Solver(), Hutchinson(1), kinetic=0.1, jacobian=0.1),
    ):
        loss = objective(flow, batch, rng.generator(0)).value
        flow.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)
        if sizes == (1,):
            assert float(loss.detach()) == 0


def test_the_likelihood_loss_is_the_mean_negative_log_probability() -> None:
    batch = small_batch()
    field = enlarged_field()
    flow = flow_of(field, 2, solver=RK4)
    loss = MaximumLikelihood(RK4, Exact())(flow.continuous, batch, rng.generator(0))
    expected = -flow.log_prob(Clouds(batch.x, batch.clouds.ptr)).mean()
    assert torch.allclose(loss.value, expected, atol=1e-9)
    assert loss.terms["nll"] == loss.terms["loss"] == float(loss.value.detach())
    assert loss.terms["evaluations"] == 16


def test_an_estimated_likelihood_loss_is_right_on_average() -> None:
    batch = small_batch()
    flow = ContinuousFlow(enlarged_field(gain=100.0))
    with torch.no_grad():
        exact = MaximumLikelihood(RK4, Exact())(flow, batch, rng.generator(0)).value
        drawn = torch.stack(
            [
                MaximumLikelihood(RK4, Hutchinson(4))(flow, batch, rng.generator(0, i)).value
                for i in range(40)
            ]
        )
    assert (drawn.mean() - exact).abs() < 4.5 * drawn.std() / 40**0.5


@pytest.mark.parametrize(
    ("divergence", "weights"),
    [(Exact(), (0.0, 0.0)), (Hutchinson(2), (0.0, 0.0)), (Hutchinson(2), (0.3, 0.05))],
)
def test_the_gradient_is_the_same_direct_by_adjoint_and_by_differences(
    divergence: object, weights: tuple[float, float]
) -> None:
    batch = small_batch()
    torch.manual_seed(2)
    field = enlarged_field(width=4, layers=1, gain=100.0)
    flow = ContinuousFlow(field)
    weight = field.egnn.layers[0].coordinate_out.weight

    def loss(solver: Solver) -> Tensor:
        return MaximumLikelihood(solver, divergence, *weights)(flow, batch, rng.generator(0)).value

    fine = {"method": "rk4", "steps": 16}
    direct, adjoint = (
        torch.autograd.grad(loss(Solver(**fine, gradient=kind)), weight)[0]
        for kind in ("direct", "adjoint")
    )
    assert torch.allclose(direct, adjoint, rtol=1e-3, atol=1e-5)
    step = 1e-4
    with torch.no_grad():
        weight[0, 0] += step
        above = loss(Solver(**fine))
        weight[0, 0] -= 2 * step
        below = loss(Solver(**fine))
        weight[0, 0] += step
    assert torch.allclose(direct[0, 0], (above - below) / (2 * step), rtol=1e-4, atol=1e-6)


def test_regularisation_adds_the_integrals_along_the_path() -> None:
    """For `v = a x` both are known: `∫ a² e^{2 a t} ‖x‖² dt`, and `a² (n − 1) d` on average."""
    a = 0.7
    batch = Batch(*ragged(sizes=(4, 3), dimension=2))
    flow = ContinuousFlow(LinearField(a))
    objective = MaximumLikelihood(TIGHT, Hutchinson(1), kinetic=0.3, jacobian=0.05)
    found = objective(flow, batch, rng.generator(0))
    squares = batch.clouds.sum(batch.x.square().sum(1))
    kinetic = float((squares * a * (math.exp(2 * a) - 1) / 2).mean())
    assert found.terms["kinetic"] == pytest.approx(kinetic, rel=1e-6)
    probe = Hutchinson(1).probes(batch.x, batch.clouds, rng.generator(0))
    jacobian = a**2 * float(batch.clouds.sum(probe[0].square().sum(1)).mean())
    assert found.terms["jacobian"] == pytest.approx(jacobian, rel=1e-6)
    total = found.terms["nll"] + 0.3 * kinetic + 0.05 * jacobian
    assert found.terms["loss"] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        FlowMatching(Independent()),
        FlowMatching(EquivariantOT()),
        MaximumLikelihood(RK4, Hutchinson(1)),
        MaximumLikelihood(RK4, Hutchinson(1), kinetic=0.01, jacobian=0.01),
        MaximumLikelihood(Solver("rk4", steps=4, gradient="adjoint"), Hutchinson(1)),
    ],
)
def test_a_few_steps_lower_the_loss(objective: AbstractObjective) -> None:
    flow = ContinuousFlow(enlarged_field(gain=100.0))
    batch = gaussian_batch(0.3, 16)
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)

    def loss(step: int) -> Tensor:
        return objective(flow, batch, rng.generator(0, "step", step)).value

    with torch.no_grad():
        before = torch.stack([loss(-i) for i in range(1, 4)]).mean()
    for step in range(15):
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
    with torch.no_grad():
        after = torch.stack([loss(-i) for i in range(1, 4)]).mean()
    assert after < before - 0.05


def test_a_solve_that_fails_is_told_without_the_clouds_that_did_not() -> None:
    def sick(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
        alone = segments.expand(segments.lengths == 1).unsqueeze(1)
        return torch.where(alone, math.nan, x)

    objective = MaximumLikelihood(RK4, Hutchinson(1))
    with pytest.raises(SolverFailed, match=r"1 of 4 structures failed: [^;]*not finite\. "):
        objective(ContinuousFlow(FunctionField(sick)), small_batch(), rng.generator(0))


@pytest.mark.parametrize("weights", [{"kinetic": 0.1}, {"jacobian": 0.1}])
def test_regularisation_needs_an_estimate_of_the_norm(weights: dict) -> None:
    with pytest.raises(UsageError, match=r"needs objective.trace=hutchinson.*found Exact"):
        MaximumLikelihood(RK4, Exact(), **weights)


@pytest.mark.parametrize(
    "objective", [FlowMatching(EquivariantOT()), MaximumLikelihood(RK4, Hutchinson(1))]
)
def test_randomness_is_that_of_the_source(objective: AbstractObjective) -> None:
    flow = ContinuousFlow(enlarged_field())
    with torch.no_grad():
        losses = [
            float(objective(flow, small_batch(), rng.generator(seed)).value) for seed in (0, 0, 1)
        ]
    assert losses[0] == losses[1] != losses[2]


def test_context_reaches_the_field() -> None:
    batch = small_batch()
    context = torch.eye(2, dtype=torch.float64)[batch.clouds.place % 2]
    other = 1 - context
    flow = ContinuousFlow(enlarged_field(context_features=2))
    makers: list[Callable[[], AbstractObjective]] = [
        lambda: FlowMatching(Independent()),
        lambda: MaximumLikelihood(RK4, Exact()),
    ]
    for make in makers:
        values = [
            float(make()(flow, batch._replace(context=c), rng.generator(0)).value.detach())
            for c in (context, other)
        ]
        assert abs(values[0] - values[1]) > 1e-9
