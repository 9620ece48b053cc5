"""The flow as a map: its inverse, its log-determinant, its symmetry, and clouds that fail."""

import pytest
import torch
from example_flows import (
    TIGHT,
    FunctionField,
    LinearField,
    element_flow,
    enlarged_field,
    flow_of,
    ragged,
    subspace_basis,
)
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.errors import ShapeError, UsageError
from eqflow.flows import ContinuousFlow, Exact, Hutchinson, Solver, Status, integrate
from eqflow.flows.continuous import DATA, LATENT
from eqflow.geometry import Clouds, Segments, centred
from eqflow.testing import assert_equivariant, assert_independent, clouds

# What goes through the solver at 1e-9 agrees this well.
SOLVED = 1e-6


def encode(flow: ContinuousFlow, x: Tensor, segments: Segments, **options: object) -> Tensor:
    there = flow.transport(x, segments, start=DATA, end=LATENT, solver=TIGHT, **options)
    assert bool(there.succeeded.all())
    return there.x


def test_there_and_back_is_where_it_started() -> None:
    flow = ContinuousFlow(enlarged_field())
    x, segments = ragged(sizes=(5, 1, 3, 2))
    z = encode(flow, x, segments)
    back = flow.transport(z, segments, start=LATENT, end=DATA, solver=TIGHT)
    assert (z - x).abs().max() > 0.1
    assert torch.allclose(back.x, x, atol=SOLVED)


def test_a_linear_field_scales_and_its_log_determinant_is_known() -> None:
    x, segments = ragged(sizes=(4, 1, 3))
    flow = ContinuousFlow(LinearField(0.7))
    there = flow.transport(x, segments, start=DATA, end=LATENT, solver=TIGHT, divergence=Exact())
    freedom = torch.tensor([[9.0], [0.0], [6.0]], dtype=torch.float64)
    assert torch.allclose(there.x, x * torch.tensor(0.7).double().exp(), atol=1e-8)
    assert torch.allclose(there.log_det, 0.7 * freedom, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(2, 2), (3, 1), (3, 2)])
def test_the_integral_of_the_trace_is_the_log_determinant_of_the_flow_map(n: int, d: int) -> None:
    flow = ContinuousFlow(enlarged_field())
    basis = subspace_basis(n, d)
    k = torch.randn(len(basis), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    step = 1e-4
    shifts = step * torch.eye(len(k)).double()
    points = torch.cat([k.unsqueeze(0), k + shifts, k - shifts])
    batch = Clouds.from_dense(torch.einsum("gk,knd->gnd", points, basis))
    there = flow.transport(
        batch.x, batch.ptr, start=DATA, end=LATENT, solver=TIGHT, divergence=Exact()
    )
    mapped = torch.einsum("gnd,knd->gk", there.x.reshape(-1, n, d), basis)
    jacobian = (mapped[1 : len(k) + 1] - mapped[len(k) + 1 :]) / (2 * step)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert expected.abs() > 0.05
    assert torch.allclose(there.log_det[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "batch"), list(clouds()), ids=[name for name, _ in clouds()])
@pytest.mark.parametrize("t", [0.0, 0.6])
def test_the_velocity_is_equivariant_on_every_cloud(name: str, batch: Clouds, t: float) -> None:
    flow = element_flow()

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        numbers = h[:, 0].round().to(torch.int64)
        encoded = flow.encode(Clouds(x, ptr, numbers))
        with torch.no_grad():
            return flow.continuous.velocity(
                x.new_tensor(t), x / flow.scale, encoded.clouds, encoded.context
            )

    for group in ("E(3)", "S(n)"):
        assert_equivariant(velocity, batch, group, "vector", motions=1)


def test_the_velocity_of_a_cloud_does_not_depend_on_its_batch() -> None:
    field = enlarged_field()
    flow = ContinuousFlow(field)
    batch = Clouds.join([batch for name, batch in clouds() if name not in ("large", "far")])

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        with torch.no_grad():
            return flow.velocity(x.new_tensor(0.3), centred(x, ptr), Segments(ptr))

    assert_independent(velocity, batch)


def sick_field(threshold: float) -> FunctionField:
    """`v = x` until the first coordinate of a cloud's first point exceeds `threshold`; then NaN."""

    def velocity(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
        first = x[segments.ptr[:-1], 0]
        sick = segments.expand(first > threshold).unsqueeze(1)
        return torch.where(sick, torch.full_like(x, float("nan")), x)

    return FunctionField(velocity)


@pytest.mark.parametrize("divergence", [None, Exact(), Hutchinson(2)])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_cloud_that_fails_does_not_harm_the_others(divergence: object, method: str) -> None:
    x, segments = ragged(sizes=(3, 4, 2, 3))
    x[3:7] *= 50  # the second is sick from the start
    x[3] = x[3].abs()
    x[3:7] = x[3:7] - x[3:7].mean(0)
    x[9:12] = torch.tensor([[1.5, 0, 0], [-0.7, 0, 0], [-0.8, 0, 0]])  # the last on the way
    flow = ContinuousFlow(sick_field(2.0))
    solver = Solver(method, rtol=1e-9, atol=1e-9)
    options = {"start": DATA, "end": LATENT, "solver": solver, "divergence": divergence}
    there = flow.transport(x, segments, **options, source=rng.generator(0))
    assert [status.name for status in there.status] == [
        "SUCCESS",
        "NON_FINITE",
        "SUCCESS",
        "NON_FINITE",
    ]
    assert there.succeeded.tolist() == [True, False, True, False]
    good, rows = segments.select(torch.tensor([0, 2]))
    alone = flow.transport(x[rows], good, **options, source=rng.generator(0))
    assert torch.allclose(there.x[rows], alone.x, atol=TOLERANCE[torch.float64])
    assert there.x[3:7].isnan().all()
    assert there.x[9:12].isnan().all()
    assert there.log_det[[1, 3]].isnan().all()
    assert there.log_det[[0, 2]].isfinite().all()
    assert (there.evaluations > 0).all()
    assert there.evaluations[0] > alone.evaluations[0]


def test_a_limit_that_no_cloud_in_particular_exceeds_is_found_by_halving() -> None:
    """Points go round the faster the further out: only the cloud that needs many steps is lost."""
    x, segments = ragged(sizes=(3, 3, 3, 3, 3), dimension=2)
    x[9:12] *= 30

    def whirl(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
        rate = segments.expand(segments.mean(x.square().sum(-1))).unsqueeze(1)
        return rate * torch.stack([x[:, 1], -x[:, 0]], 1)

    flow = ContinuousFlow(FunctionField(whirl))
    solver = Solver(rtol=1e-6, atol=1e-6, step_limit=300)
    there = flow.transport(x, segments, start=DATA, end=LATENT, solver=solver)
    assert there.succeeded.tolist() == [True, True, True, False, True]
    assert there.status[3] is Status.STEP_LIMIT
    assert there.x[9:12].isnan().all()
    assert there.x[:9].isfinite().all()


def test_all_clouds_may_fail() -> None:
    x, segments = ragged()
    flow = ContinuousFlow(sick_field(-1e9))
    there = flow.transport(x, segments, start=LATENT, end=DATA, solver=TIGHT)
    assert {status.name for status in there.status} == {"NON_FINITE"}
    assert there.x.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(1)])
def test_points_alone_or_in_one_place_stay_finite(dtype: torch.dtype, divergence: object) -> None:
    segments = Segments.of_lengths(torch.tensor([1, 3, 2]))
    x = torch.zeros(6, 3, dtype=dtype)
    flow = ContinuousFlow(enlarged_field(gain=100.0)).to(dtype)
    there = flow.transport(
        x,
        segments,
        start=DATA,
        end=LATENT,
        solver=Solver(),
        divergence=divergence,
        source=rng.generator(0),
    )
    assert there.x.dtype is dtype
    assert bool(there.succeeded.all())
    assert there.x.isfinite().all()
    loss = there.x.square().sum() + there.log_det.sum()
    loss.backward()
    gradients = [p.grad for p in flow.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def test_an_empty_batch_is_carried_nowhere() -> None:
    flow = ContinuousFlow(enlarged_field())
    x = torch.zeros(0, 3, dtype=torch.float64)
    there = flow.transport(
        x, torch.tensor([0]), start=DATA, end=LATENT, solver=TIGHT, divergence=Exact()
    )
    assert there.x.shape == (0, 3)
    assert there.log_det.shape == (0, 1)
    assert there.status == ()


def test_a_divergence_that_draws_needs_a_source() -> None:
    x, segments = ragged()
    flow = ContinuousFlow(enlarged_field())
    with pytest.raises(UsageError, match=r"pass source=rng\.generator"):
        flow.transport(x, segments, start=DATA, end=LATENT, solver=TIGHT, divergence=Hutchinson(1))


def test_a_path_is_not_measured_without_an_estimate_of_the_norm() -> None:
    x, segments = ragged()
    flow = ContinuousFlow(enlarged_field())
    with pytest.raises(UsageError, match="measure the path with Hutchinson"):
        flow.transport(
            x,
            segments,
            start=DATA,
            end=LATENT,
            solver=TIGHT,
            divergence=Exact(),
            measure_path=True,
        )


def test_the_path_integrals_are_those_of_an_independent_quadrature() -> None:
    x, segments = ragged(sizes=(3, 2), dimension=2)
    flow = ContinuousFlow(enlarged_field())
    divergence = Hutchinson(3, "gaussian")
    with torch.no_grad():
        there = flow.transport(
            x,
            segments,
            start=DATA,
            end=LATENT,
            solver=TIGHT,
            divergence=divergence,
            source=rng.generator(0),
            measure_path=True,
        )
    # Simpson's rule over states from a solve of the field alone.
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    weight = torch.tensor([1.0, *[4.0, 2.0] * 9, 4.0, 1.0], dtype=torch.float64) / 60
    solution = flow.trajectory(x, segments, grid, solver=TIGHT)
    probes = divergence.probes(x, segments, rng.generator(0))
    kinetic = torch.zeros(2, dtype=torch.float64)
    jacobian = torch.zeros(2, dtype=torch.float64)
    for t, state, w in zip(grid, solution.require()[0].detach(), weight, strict=True):
        velocity = flow.dynamics(segments)(t, state)
        kinetic += w * segments.sum(velocity(state).detach().square().sum(-1))
        full = torch.autograd.functional.jacobian(velocity, state)
        rows = torch.einsum("pia,iajb->pjb", probes, full)
        jacobian += w * segments.sum(rows.square().sum(-1).mean(0))
    assert torch.allclose(there.path[:, 0], kinetic, rtol=1e-4)
    assert torch.allclose(there.path[:, 1], jacobian, rtol=1e-4)


def test_a_cutoff_connects_at_the_state_and_not_at_the_start() -> None:
    """Two points that approach each other begin to interact on the way."""

    class Attraction(FunctionField):
        cutoff = 1.0

        def forward(
            self, t: Tensor, x: Tensor, edges: object, context: Tensor | None = None
        ) -> Tensor:
            seen.append(edges.count)
            return -x

    seen: list[int] = []
    flow = ContinuousFlow(Attraction(lambda t, x, segments: x))
    x = torch.tensor([[0.8], [-0.8]], dtype=torch.float64)
    flow.transport(x, torch.tensor([0, 2]), start=DATA, end=LATENT, solver=Solver("rk4"))
    assert seen[0] == 0
    assert seen[-1] == 2


def test_the_door_is_the_one_the_flow_goes_through() -> None:
    x, segments = ragged(sizes=(3,))
    field = enlarged_field()
    edges = field.connect(x, segments)
    direct = integrate(
        lambda t, state: (field(t, state[0], edges),),
        (x,),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        TIGHT,
        segments,
    )
    there = ContinuousFlow(field).transport(x, segments, start=DATA, end=LATENT, solver=TIGHT)
    assert torch.allclose(there.x, direct.final()[0], atol=1e-9)


@pytest.mark.parametrize("of_weights", [False, True])
@pytest.mark.parametrize("of_positions", [False, True])
def test_a_flow_in_float16_is_refused_by_name(of_weights: bool, of_positions: bool) -> None:
    flow = ContinuousFlow(enlarged_field()).float()
    x, segments = ragged(sizes=(3, 2))
    x = x.half() if of_positions else x.float()
    flow = flow.half() if of_weights else flow
    t = torch.tensor(0.5, dtype=x.dtype)
    for where, call in {
        "velocity": lambda: flow.velocity(t, x, segments),
        "transport": lambda: flow.transport(x, segments, start=1.0, end=0.0, solver=Solver()),
        "trajectory": lambda: flow.trajectory(x, segments, torch.tensor([1, 0]), solver=Solver()),
    }.items():
        if not (of_weights or of_positions):
            call()
            continue
        what = "positions" if of_positions else "weights"
        with pytest.raises(ShapeError, match=rf"{where}: found {what} of torch.float16, expected"):
            call()


def test_a_whole_flow_in_float16_says_so_when_it_samples_or_scores() -> None:
    flow = flow_of(enlarged_field(), 3).half()
    structures = Clouds(*ragged(sizes=(3, 3))[:1], torch.tensor([0, 3, 6]))
    for call in (
        lambda: flow.sample(2),
        lambda: flow.sample_and_log_prob(2),
        lambda: flow.trajectory(2),
        lambda: flow.log_prob(structures),
    ):
        with pytest.raises(ShapeError, match=r"found positions of torch.float16.*flow\.float\(\)"):
            call()


def test_a_flow_in_bfloat16_is_carried_in_it() -> None:
    flow = ContinuousFlow(enlarged_field()).bfloat16()
    x, segments = ragged(sizes=(3, 2))
    there = flow.transport(x.bfloat16(), segments, start=0.0, end=1.0, solver=Solver("rk4"))
    assert there.x.dtype is torch.bfloat16
    assert bool(there.succeeded.all())
