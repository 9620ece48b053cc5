"""`Flow`: a normalised, invariant density in the data's own units, and draws that follow it."""

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from example_flows import (
    TIGHT,
    FunctionField,
    LinearField,
    element_flow,
    enlarged_field,
    flow_of,
    subspace_basis,
)
from torch import Tensor

from eqflow import rng
from eqflow.errors import SolverFailed, UnknownElement, UsageError
from eqflow.flows import (
    Batch,
    Compositions,
    ContinuousFlow,
    EquivariantOT,
    ExactForward,
    Flow,
    FlowMatching,
    Hutchinson,
    HutchPlusPlus,
    Solver,
    Status,
)
from eqflow.flows.groups import GROUP
from eqflow.geometry import Clouds, Segments, centre_of_mass
from eqflow.testing import assert_independent, assert_invariant, clouds

NORMALISED = Solver("rk4", steps=8)
MEDIUM = Solver(rtol=1e-6, atol=1e-6)
COARSE = Solver("rk4", steps=3)


def trained(dimension: int, points: int, scale: float) -> Flow:
    """A flow after a few steps of flow matching on clouds that are either small or large."""
    flow = flow_of(enlarged_field(gain=100.0), dimension, scale, (points,), NORMALISED)
    objective = FlowMatching(EquivariantOT())
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    segments = Segments.of_lengths(torch.full((64,), points))
    like = torch.zeros((), dtype=torch.float64)
    for step in range(60):
        source = rng.generator(0, "train", step)
        x = flow.continuous.base.sample(segments, dimension, like, source)
        small = rng.uniform((64,), like, source) < 0.5
        x = x * segments.expand(torch.where(small, 0.6, 1.5)).unsqueeze(1)
        loss = objective(flow.continuous, Batch(x, segments), source)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
    return flow


def untrained(dimension: int, points: int, scale: float) -> Flow:
    return flow_of(enlarged_field(gain=150.0), dimension, scale, (points,), NORMALISED)


def nodes(low: float, high: float, count: int) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights on an interval."""
    at, weight = np.polynomial.legendre.leggauss(count)
    middle, half = (low + high) / 2, (high - low) / 2
    return torch.from_numpy(middle + half * at), torch.from_numpy(half * weight)


def radii(reach: float, count: int) -> tuple[Tensor, Tensor]:
    """Nodes that crowd towards 0, where points meet and the field has a cusp."""
    u, weight = nodes(0, 1, count)
    return reach * u**2, 2 * reach * u * weight


def total(flow: Flow, coordinates: Tensor, weights: Tensor, n: int) -> float:
    """The sum of density and weight, at coordinates (G, (n − 1) d) in units of the scale."""
    basis = subspace_basis(n, flow.dimension)
    x = flow.scale * torch.einsum("gk,knd->gnd", coordinates, basis)
    density = flow.log_prob(Clouds.from_dense(x)).exp()
    return float((density * weights).sum()) * flow.scale ** len(basis)


@pytest.mark.parametrize("make", [untrained, trained])
@pytest.mark.parametrize(("d", "scale"), [(1, 1.0), (1, 0.4), (2, 2.5), (3, 0.7)])
def test_the_density_of_two_points_integrates_to_one(
    make: Callable[[int, int, float], Flow], d: int, scale: float
) -> None:
    flow = make(d, 2, scale)
    r, weight = radii(14, 120)
    direction = subspace_basis(d + 1, 1)[:, 0, 0]  # any: the density depends on the distance alone
    direction = direction / direction.norm()
    sphere = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    found = total(flow, r.unsqueeze(1) * direction, sphere * r ** (d - 1) * weight, 2)
    assert found == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("make", [untrained, trained])
def test_the_density_of_three_points_on_a_line_integrates_to_one(
    make: Callable[[int, int, float], Flow],
) -> None:
    """In polar coordinates, between the six rays on which two points meet."""
    flow = make(1, 3, 0.4)
    rays = meeting_angles()
    r, along = radii(14, 36)
    found = 0.0
    for start, end in pairwise([*rays, rays[0] + 2 * math.pi]):
        angle, across = nodes(start, end, 8)
        ray = torch.stack([angle.cos(), angle.sin()], 1)
        coordinates = (r[:, None, None] * ray).reshape(-1, 2)
        found += total(flow, coordinates, ((r * along)[:, None] * across).reshape(-1), 3)
    assert found == pytest.approx(1, abs=1e-3)


def meeting_angles() -> list[float]:
    """Where in the plane of `subspace_basis(3, 1)` two of three points coincide, rising."""
    first, second = subspace_basis(3, 1)[..., 0]
    angles = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        angle = math.atan2(float(first[j] - first[i]), float(second[i] - second[j]))
        angles += [angle % (2 * math.pi), (angle + math.pi) % (2 * math.pi)]
    return sorted(angles)


@pytest.mark.slow
@pytest.mark.parametrize("make", [untrained, trained])
def test_the_density_of_three_points_in_the_plane_integrates_to_one(
    make: Callable[[int, int, float], Flow],
) -> None:
    """Turned and mirrored so that the first Jacobi vector is `(a, 0)` and the second `(b, |c|)`."""
    flow = make(2, 3, 1.7)
    r, along = radii(14, 24)
    tilt, across = nodes(0, math.pi / 2, 16)
    angle, around = nodes(0, math.pi, 16)
    r, tilt, angle = (m.reshape(-1) for m in torch.meshgrid(r, tilt, angle, indexing="ij"))
    mesh = torch.meshgrid(along, across, around, indexing="ij")
    weight = torch.stack([m.reshape(-1) for m in mesh]).prod(0)
    a, other = r * tilt.cos(), r * tilt.sin()
    coordinates = torch.stack([a, 0 * a, other * angle.cos(), other * angle.sin()], 1)
    # d⁴k = (2π a) (2 other) d a d other d angle, and d a d other = r d r d tilt.
    found = total(flow, coordinates, 4 * math.pi * a * other * r * weight, 3)
    assert found == pytest.approx(1, abs=5e-3)


def test_the_scale_enters_by_the_degrees_of_freedom() -> None:
    field = enlarged_field()
    one, big = (flow_of(field, 3, scale, solver=COARSE) for scale in (1.0, 2.5))
    batch = dict(clouds())["generic"]
    stretched = batch.with_positions(batch.x * 2.5)
    freedom = (batch.sizes - 1) * 3
    expected = one.log_prob(batch) - freedom * math.log(2.5)
    assert torch.allclose(big.log_prob(stretched), expected, atol=1e-8)
    terms = big.score(stretched).terms
    assert torch.allclose(terms["log_det_scale"], -freedom.double() * math.log(2.5))


def test_a_linear_flow_has_the_density_of_a_gaussian() -> None:
    flow = flow_of(LinearField(0.5), 3, 1.4)
    batch = dict(clouds())["generic"]
    x = batch.x - batch.segments.expand(batch.segments.mean(batch.x))
    width = 1.4 * math.exp(-0.5)
    freedom = (batch.sizes - 1) * 3
    expected = -0.5 * batch.segments.sum((x / width).square().sum(1)) - freedom * (
        math.log(width) + 0.5 * math.log(2 * math.pi)
    )
    assert torch.allclose(flow.log_prob(batch), expected, atol=1e-6)
    drawn = flow.sample(3000, sizes=4)
    assert float(drawn.x.std()) == pytest.approx(width * math.sqrt(3 / 4), rel=0.03)


def small_clouds() -> Iterator[tuple[str, Clouds]]:
    """All clouds but that of 200 points, whose exact trace takes minutes."""
    return ((name, batch) for name, batch in clouds() if name != "large")


def log_prob_of(flow: Flow) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def log_prob(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return flow.log_prob(Clouds(x, ptr, h[:, 0].round().to(torch.int64)))

    return log_prob


@pytest.mark.parametrize(
    ("name", "batch"), list(small_clouds()), ids=[name for name, _ in small_clouds()]
)
def test_the_density_is_invariant_on_every_cloud(name: str, batch: Clouds) -> None:
    log_prob = log_prob_of(element_flow(COARSE))
    # Far away the positions themselves have fewer digits.
    tolerance = 1e-6 if name == "far" else 1e-9
    assert_invariant(log_prob, batch, "E(3)", motions=1, tolerance=tolerance)
    assert_invariant(log_prob, batch, "S(n)", motions=1, tolerance=tolerance)


@pytest.mark.parametrize("name", ["water", "coincident"])
def test_adaptive_steps_are_invariant_below_their_tolerance(name: str) -> None:
    flow = element_flow(MEDIUM)
    batch = dict(clouds())[name]
    for group in ("E(3)", "S(n)"):
        assert_invariant(log_prob_of(flow), batch, group, motions=1, tolerance=1e-6)


def test_a_cloud_has_the_same_density_alone_as_among_others() -> None:
    batch = Clouds.join([dict(clouds())[name] for name in ("water", "one_point", "sf6", "co2")])
    assert_independent(log_prob_of(element_flow(COARSE)), batch, tolerance=1e-9)
    assert_independent(log_prob_of(element_flow(MEDIUM)), batch[[0, 1, 3]], tolerance=1e-4)


def test_more_structures_than_a_group_are_scored_in_order() -> None:
    flow = flow_of(LinearField(0.5), 1, sizes=(2,), solver=COARSE)
    x = torch.linspace(0, 2, GROUP + 5, dtype=torch.float64)
    batch = Clouds.from_dense(torch.stack([x, -x], 1).unsqueeze(-1))
    found = flow.log_prob(batch)
    assert len(found) == GROUP + 5
    assert (found.diff() < 0).all()


def test_large_clouds_are_scored_in_groups_of_few_pairs() -> None:
    flow = flow_of(LinearField(0.1), 1, sizes=(150,), solver=Solver("euler", steps=1))
    x = torch.zeros(3, 150, 1, dtype=torch.float64)
    found = flow.score(Clouds.from_dense(x), divergence=Hutchinson(1))
    assert found.evaluations.tolist() == [1, 1, 1]
    assert found.log_prob.shape == (3,)


def test_the_terms_add_up_and_the_exact_trace_has_no_error() -> None:
    batch = dict(clouds())["generic"]
    scores = flow_of(enlarged_field(), 3, 1.3, solver=COARSE).score(batch)
    assert set(scores.terms) == {"log_prob_base", "log_det_flow", "log_det_scale"}
    assert torch.allclose(sum(scores.terms.values()), scores.log_prob)
    assert scores.log_prob_se.tolist() == [0, 0]
    assert (scores.evaluations > 0).all()
    assert scores.status == (Status.SUCCESS,) * 2
    assert scores.failures == ""


@pytest.mark.parametrize("divergence", [Hutchinson(100), HutchPlusPlus(50, 2)])
def test_an_estimated_density_is_within_its_standard_error_of_the_exact_one(
    divergence: object,
) -> None:
    flow = flow_of(enlarged_field(), 3, 1.3, solver=COARSE)
    batch = dict(clouds())["generic"]
    exact = flow.log_prob(batch)
    scores = flow.score(batch, divergence=divergence)
    assert (scores.log_prob_se > 0).all()
    assert ((scores.log_prob - exact).abs() < 4.5 * scores.log_prob_se).all()


def test_a_divergence_is_asked_for_by_name() -> None:
    flow = flow_of(enlarged_field(), 3, solver=COARSE)
    batch = dict(clouds())["generic"]
    scores = flow.score(batch, divergence="hutchinson", seed=3)
    again = flow.score(batch, divergence=Hutchinson(4), seed=3)
    assert torch.equal(scores.log_prob, again.log_prob)
    assert not torch.equal(scores.log_prob, flow.log_prob(batch, 4, divergence="hutchinson"))
    forward = flow.log_prob(batch, divergence=ExactForward())
    assert torch.allclose(flow.log_prob(batch), forward, atol=1e-9)
    assert flow.score(batch, divergence=Hutchinson(1)).log_prob_se.isnan().all()
    with pytest.raises(UsageError, match=r"found .exakt., expected one of exact, hutch_plus_plus"):
        flow.log_prob(batch, divergence="exakt")


def nan_for_sizes(*sizes: int) -> Flow:
    """A flow whose field is NaN for structures of these sizes."""

    def velocity(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
        sick = sum((segments.lengths == size).to(x.dtype) for size in sizes)
        return torch.where(segments.expand(sick).unsqueeze(1) > 0, math.nan, 0.3 * x)

    return flow_of(FunctionField(velocity), 2, 2.0, (2, 3, 4))


def test_a_structure_that_fails_gets_nan_and_a_warning_and_harms_no_other() -> None:
    flow = nan_for_sizes(3)
    x = torch.randn(9, 2, dtype=torch.float64)
    batch = Clouds(x, torch.tensor([0, 2, 5, 9]))
    with pytest.warns(RuntimeWarning, match=r"1 of 3 structures failed \(first: 1, .*finite"):
        found = flow.log_prob(batch)
    assert found.isnan().tolist() == [False, True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = flow.log_prob(batch[[0, 2]])
    assert torch.allclose(found[[0, 2]], alone, atol=1e-8)
    scores = flow.score(batch)
    assert [status.name for status in scores.status] == ["SUCCESS", "NON_FINITE", "SUCCESS"]


def test_positions_that_are_not_finite_fail_alone() -> None:
    flow = flow_of(enlarged_field(), 2)
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    x[2, 1, 0] = math.nan
    with pytest.warns(RuntimeWarning, match=r"first: 2"):
        found = flow.log_prob(Clouds.from_dense(x))
    assert found.isnan().tolist() == [False, False, True, False]


def test_a_draw_that_fails_is_raised_by_sample_and_marked_by_draw() -> None:
    flow = nan_for_sizes(3)
    with pytest.raises(SolverFailed, match=r"of 20 structures failed .*flow\.draw returns"):
        flow.sample(20, seed=0)
    with pytest.raises(SolverFailed):
        flow.sample_and_log_prob(20, seed=0)
    with pytest.raises(SolverFailed):
        flow.trajectory(20, seed=0)
    drawn = flow.draw(20, seed=0, with_log_prob=True)
    failed = torch.tensor([status is not Status.SUCCESS for status in drawn.status])
    assert torch.equal(failed, drawn.clouds.sizes == 3)
    assert torch.equal(drawn.scored().isnan(), failed)
    rows = drawn.clouds.segments.expand(failed)
    assert torch.equal(drawn.clouds.x.isnan().all(1), rows)
    with pytest.raises(UsageError, match="with_log_prob=True"):
        flow.draw(1, sizes=2).scored()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_structures_have_a_finite_density(dtype: torch.dtype) -> None:
    flow = element_flow(Solver()).to(dtype)
    for name in ("one_point", "two_points", "coincident", "co2", "far"):
        batch = dict(clouds(dtype=dtype))[name]
        found = flow.log_prob(batch)
        assert found.dtype is dtype
        assert found.isfinite().all()
    assert float(flow.log_prob(dict(clouds(dtype=dtype))["one_point"])) == 0


def test_float32_agrees_with_float64() -> None:
    batch = dict(clouds())["water"]
    double = element_flow(COARSE)
    expected = double.log_prob(batch)
    single = double.float().log_prob(batch)
    assert torch.allclose(single.double(), expected, rtol=1e-4, atol=1e-4)


def test_no_structures_have_no_densities() -> None:
    flow = flow_of(enlarged_field(), 3)
    empty = Clouds(torch.zeros(0, 3), torch.tensor([0]))
    assert flow.log_prob(empty).shape == (0,)


def test_a_sample_has_the_density_it_was_drawn_with() -> None:
    flow = flow_of(enlarged_field(), 2, 1.7, (1, 3, 4), MEDIUM)
    drawn, log_prob = flow.sample_and_log_prob(12, seed=1)
    assert torch.allclose(flow.log_prob(drawn), log_prob, atol=1e-4)
    assert torch.allclose(drawn.x, flow.sample(12, seed=1).x, atol=1e-5)
    assert centre_of_mass(drawn.x, drawn.ptr).abs().max() < 1e-12


def test_importance_weights_of_draws_average_to_one() -> None:
    """Draws follow the density: a normalised target reweights them to 1."""
    flow = flow_of(enlarged_field(gain=100.0), 2, 1.0, (2,), NORMALISED)
    drawn, log_prob = flow.sample_and_log_prob(1000, seed=0)
    difference = (drawn.x[0::2] - drawn.x[1::2]) / math.sqrt(2)
    width = 0.8 * difference.std()
    target = -0.5 * (difference / width).square().sum(1) - math.log(2 * math.pi) - 2 * width.log()
    weight = (target - log_prob).exp()
    assert float(weight.mean()) == pytest.approx(1, abs=4.5 * float(weight.std()) / 1000**0.5)


def test_draws_are_a_function_of_the_seed_alone() -> None:
    flow = flow_of(enlarged_field(), 3, sizes=(2, 3, 5), solver=COARSE)
    first = flow.sample(10, seed=4)
    torch.manual_seed(99)
    torch.randn(17)
    state = torch.get_rng_state()
    again = flow.sample(10, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.ptr, again.ptr)
    assert not torch.equal(first.x[:2], flow.sample(10, seed=5).x[:2])


def test_sizes_are_drawn_by_frequency_or_given() -> None:
    flow = flow_of(LinearField(0.1), 2, sizes=(2, 3), solver=COARSE)
    drawn = flow.sample(400)
    assert sorted(drawn.sizes.unique().tolist()) == [2, 3]
    assert abs(int((drawn.sizes == 2).sum()) - 200) < 45
    assert flow.sample(3, sizes=7).sizes.tolist() == [7, 7, 7]
    assert flow.sample(3, sizes=[1, 4, 2]).sizes.tolist() == [1, 4, 2]
    assert drawn.numbers is None


def test_elements_are_drawn_by_frequency_or_given() -> None:
    flow = element_flow(COARSE)
    drawn = flow.sample(100)
    assert drawn.numbers is not None
    made = {tuple(cloud.numbers.tolist()) for cloud in drawn}
    assert made == {(1, 1, 6), (1, 1, 8)}
    methane = flow.sample(2, numbers=[6, 1, 1, 1, 1])
    assert methane.numbers.tolist() == [6, 1, 1, 1, 1] * 2
    assert flow.sample(2, numbers=torch.tensor([8, 1])).sizes.tolist() == [2, 2]
    assert (flow.sample(3, sizes=3).sizes == 3).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sizes": 3, "numbers": [1, 1]}, UsageError, "contradict"),
        ({"numbers": [1, 92]}, UnknownElement, "found U, expected"),
        ({"numbers": []}, UsageError, "atomic numbers"),
        ({"numbers": [[1, 6]]}, UsageError, "atomic numbers"),
        ({"sizes": 17}, UsageError, "no training structure has 17 points; expected 3 to 3"),
        ({"sizes": 0}, UsageError, "expected at least 1"),
        ({"sizes": [3, 3, 3]}, UsageError, "found 3 for 2 structures"),
    ],
)
def test_a_make_up_that_cannot_be_drawn_is_an_error(
    options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        element_flow(COARSE).sample(2, **options)


def test_other_wrong_calls_are_errors() -> None:
    flow = flow_of(enlarged_field(), 3, solver=COARSE)
    with pytest.raises(UsageError, match="knows no elements; pass sizes"):
        flow.sample(2, numbers=[1, 1])
    for none in (flow.sample, flow.make_up, flow.trajectory):
        with pytest.raises(UsageError, match="found n = 0"):
            none(0)
    with pytest.raises(UsageError, match="found frames = 1"):
        flow.trajectory(2, frames=1)
    with pytest.raises(UsageError, match="found clouds in 2 dimensions, expected 3"):
        flow.log_prob(dict(clouds(dimension=2))["square"])
    with pytest.raises(UnknownElement, match="have no elements"):
        element_flow().log_prob(Clouds.from_dense(torch.zeros(1, 2, 3)))
    unknown = Clouds(torch.zeros(1, 3), torch.tensor([0, 1]), torch.tensor([92]), ("sheet.xyz:3",))
    with pytest.raises(UnknownElement, match=r"sheet\.xyz:3: found U, expected"):
        element_flow().log_prob(unknown)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="expected a positive length"):
            flow_of(enlarged_field(), 3, scale)


def test_a_trajectory_starts_at_noise_and_ends_at_the_sample() -> None:
    flow = flow_of(enlarged_field(), 2, 1.7, (1, 3, 4), MEDIUM)
    film = flow.trajectory(200, frames=5, seed=2)
    assert len(film) == 5
    sample = flow.sample(200, seed=2)
    assert torch.allclose(film[-1].x, sample.x, atol=1e-12)
    assert torch.equal(film[-1].ptr, sample.ptr)
    noise = film[0].x / 1.7
    freedom = int(((sample.sizes - 1) * 2).sum())
    assert float(noise.square().sum()) / freedom == pytest.approx(1, abs=0.2)
    z = flow.continuous.transport(
        sample.x / 1.7, sample.ptr, start=0.0, end=1.0, solver=TIGHT
    ).x.detach()
    assert torch.allclose(z, noise, atol=1e-3)


def test_a_trajectory_of_more_structures_than_a_group_ends_at_the_sample() -> None:
    flow = flow_of(LinearField(0.4), 1, sizes=(2,), solver=COARSE)
    film = flow.trajectory(GROUP + 3, frames=3)
    assert torch.allclose(film[-1].x, flow.sample(GROUP + 3).x, atol=1e-12)
    assert all(len(frame) == GROUP + 3 for frame in film)


def test_a_flow_of_elements_is_conditioned_on_them() -> None:
    flow = element_flow(COARSE)
    water = dict(clouds())["water"]
    other = Clouds(water.x, water.ptr, torch.tensor([7, 1, 1]))
    assert abs(float(flow.log_prob(water) - flow.log_prob(other))) > 1e-6


def test_make_ups_need_not_be_in_the_order_of_the_flow() -> None:
    make_up = Compositions.of(dict(clouds())["water"], (8, 1))
    assert make_up.elements == (1, 8)
    flow = Flow(ContinuousFlow(enlarged_field(2)), 3, 1.0, make_up, COARSE)
    assert flow.sample(1).numbers.tolist() == [1, 1, 8]
