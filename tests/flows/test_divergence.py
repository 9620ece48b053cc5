"""Exact traces equal the full Jacobian's, estimators are unbiased and say how far off they are."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from example_flows import enlarged_field, ragged
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.edges.reference import messages
from eqflow.edges.reference.by_hand import parts
from eqflow.errors import UsageError
from eqflow.flows import (
    AbstractDivergence,
    ContinuousFlow,
    Exact,
    ExactForward,
    Hutchinson,
    HutchPlusPlus,
)
from eqflow.flows.exact import ExactReverse
from eqflow.geometry import Segments, centre_of_mass, centred

SIZES = (4, 1, 3, 2)
EXACT = [Exact(), ExactReverse(), ExactForward(chunk=2), ExactForward()]
ESTIMATORS = [
    Hutchinson(1, "rademacher"),
    Hutchinson(1, "gaussian"),
    HutchPlusPlus(probes=1, sketch=2),
]


def name_of(divergence: AbstractDivergence) -> str:
    return "-".join([type(divergence).__name__, *map(str, vars(divergence).values())])


def egnn_velocity(clouds: Segments, seed: int = 0) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(seed)
    field = enlarged_field()
    return ContinuousFlow(field).dynamics(clouds)(torch.tensor(0.3).double(), torch.empty(0))


def mixing_velocity(clouds: Segments) -> Callable[[Tensor], Tensor]:
    """Centred and translation invariant, but symmetric in no other way."""
    n = clouds.rows
    weight = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = weight * (clouds.ids.unsqueeze(1) == clouds.ids)
    return lambda x: centred(torch.tanh(weight @ centred(x, clouds)) @ weight[:3, :3], clouds)


VELOCITIES = [egnn_velocity, mixing_velocity]


def jacobians(velocity: Callable[[Tensor], Tensor], x: Tensor, clouds: Segments) -> list[Tensor]:
    """The Jacobian of each cloud's velocity by its own positions, ((n d), (n d))."""
    full = torch.autograd.functional.jacobian(velocity, x)
    found = []
    for start, end in zip(clouds.ptr[:-1].tolist(), clouds.ptr[1:].tolist(), strict=True):
        size = (end - start) * x.shape[1]
        found.append(full[start:end, :, start:end].reshape(size, size))
    return found


def traces(velocity: Callable[[Tensor], Tensor], x: Tensor, clouds: Segments) -> Tensor:
    return torch.stack([torch.trace(j) for j in jacobians(velocity, x, clouds)])


def drawn_estimates(
    divergence: AbstractDivergence,
    velocity: Callable[[Tensor], Tensor],
    x: Tensor,
    clouds: Segments,
    count: int,
) -> Tensor:
    """Estimates of `count` solves, shape (B, count)."""
    source = rng.generator(0, "test", "probes")
    with torch.no_grad():
        found = [
            divergence(velocity, x, clouds, divergence.probes(x, clouds, source)).estimates
            for _ in range(count)
        ]
    return torch.cat(found, 1)


@pytest.mark.parametrize("make", VELOCITIES)
@pytest.mark.parametrize("divergence", EXACT, ids=name_of)
def test_an_exact_trace_is_the_trace_of_the_full_jacobian(
    divergence: AbstractDivergence, make: Callable[[Segments], Callable[[Tensor], Tensor]]
) -> None:
    x, clouds = ragged(sizes=SIZES)
    velocity = make(clouds)
    probes = divergence.probes(x, clouds, rng.generator(0))
    assert probes.shape == (0, *x.shape)
    trace = divergence(velocity, x, clouds, probes)
    expected = traces(velocity, x, clouds)
    assert trace.estimates.shape == (len(SIZES), divergence.estimates())
    assert torch.allclose(trace.estimates[:, 0], expected, atol=TOLERANCE[x.dtype], rtol=0)
    assert torch.allclose(trace.velocity, velocity(x), atol=TOLERANCE[x.dtype])


@pytest.mark.parametrize("divergence", EXACT, ids=name_of)
def test_an_exact_trace_is_differentiable_by_positions_and_parameters(
    divergence: AbstractDivergence,
) -> None:
    x, clouds = ragged(sizes=(3, 1, 2), dimension=2)
    field = enlarged_field(layers=1, width=4)
    velocity = ContinuousFlow(field).dynamics(clouds)(torch.tensor(0.3).double(), torch.empty(0))

    def total(positions: Tensor) -> Tensor:
        none = positions.new_zeros(0, *positions.shape)
        return divergence(velocity, positions, clouds, none).estimates.sum()

    assert torch.autograd.gradcheck(total, x.requires_grad_())
    weight = field.egnn.layers[0].coordinate_out.weight
    (found,) = torch.autograd.grad(total(x.detach()), weight)
    step = torch.zeros_like(weight)
    step[0, 0] = 1e-5
    with torch.no_grad():
        weight += step
        above = total(x)
        weight -= 2 * step
        below = total(x)
    assert float(found[0, 0]) == pytest.approx(float(above - below) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("divergence", [*EXACT, *ESTIMATORS], ids=name_of)
def test_no_graph_is_kept_where_gradients_are_off(divergence: AbstractDivergence) -> None:
    x, clouds = ragged()
    with torch.no_grad():
        probes = divergence.probes(x, clouds, rng.generator(0))
        trace = divergence(egnn_velocity(clouds), x, clouds, probes)
    assert not trace.estimates.requires_grad
    assert not trace.velocity.requires_grad


SEVERAL_PROBES = [Hutchinson(2), HutchPlusPlus(1, 2)]


@pytest.mark.parametrize("divergence", [ExactReverse(), *SEVERAL_PROBES], ids=name_of)
@pytest.mark.parametrize("is_wanted", [False, True])
def test_a_pass_by_hand_makes_derivatives_by_weights_only_where_they_are_wanted(
    divergence: AbstractDivergence, is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "SMALL", 0)
    made: list[bool] = []
    begin = parts.WeightGradients.__init__

    def spied(self: parts.WeightGradients, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self.wanted)

    monkeypatch.setattr(parts.WeightGradients, "__init__", spied)
    x, clouds = ragged()
    velocity = egnn_velocity(clouds)
    with torch.set_grad_enabled(is_wanted):
        trace = divergence(velocity, x, clouds, divergence.probes(x, clouds, rng.generator(0)))
    if is_wanted:
        trace.velocity.square().sum().backward()
        assert all(weight.grad is not None for weight in velocity.field.egnn.embed.parameters())
    assert made
    assert set(made) == {is_wanted}


@pytest.mark.parametrize("divergence", [*EXACT, *SEVERAL_PROBES], ids=name_of)
def test_inference_mode_gives_what_no_grad_gives(divergence: AbstractDivergence) -> None:
    velocity = egnn_velocity(ragged()[1])
    found = []
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            x, clouds = ragged()
            probes = divergence.probes(x, clouds, rng.generator(0))
            found.append(divergence(velocity, x, clouds, probes).estimates)
    assert torch.equal(*found)


@pytest.mark.parametrize("make", [egnn_velocity, mixing_velocity])
@pytest.mark.parametrize("divergence", SEVERAL_PROBES, ids=name_of)
def test_an_estimate_is_the_same_where_gradients_are_off(
    divergence: AbstractDivergence, make: Callable[[Segments], Callable[[Tensor], Tensor]]
) -> None:
    x, clouds = ragged()
    velocity = make(clouds)
    probes = divergence.probes(x, clouds, rng.generator(0))
    with torch.no_grad():
        off = divergence(velocity, x, clouds, probes)
    on = divergence(velocity, x, clouds, probes)
    for one, other in zip(off, on, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other.detach(), rtol=0, atol=TOLERANCE[x.dtype])


@pytest.mark.parametrize("divergence", [*EXACT, *ESTIMATORS], ids=name_of)
def test_clouds_of_one_point_have_no_divergence(divergence: AbstractDivergence) -> None:
    x, clouds = ragged(sizes=(1, 1))
    probes = divergence.probes(x, clouds, rng.generator(0))
    trace = divergence(lambda y: centred(y, clouds), x, clouds, probes)
    assert trace.estimates.shape == (2, 1)
    assert (trace.estimates == 0).all()


@pytest.mark.parametrize("divergence", ESTIMATORS, ids=name_of)
def test_a_probe_has_zero_mean_in_every_cloud(divergence: AbstractDivergence) -> None:
    x, clouds = ragged()
    for probe in divergence.probes(x, clouds, rng.generator(0)):
        assert centre_of_mass(probe, clouds).abs().max() < TOLERANCE[x.dtype]


@pytest.mark.parametrize("make", VELOCITIES)
@pytest.mark.parametrize("divergence", ESTIMATORS, ids=name_of)
def test_an_estimate_is_right_on_average(
    divergence: AbstractDivergence, make: Callable[[Segments], Callable[[Tensor], Tensor]]
) -> None:
    x, clouds = ragged(sizes=SIZES)
    velocity = make(clouds)
    estimates = drawn_estimates(divergence, velocity, x, clouds, 600)
    error = (estimates.mean(1) - traces(velocity, x, clouds)).abs()
    se = estimates.std(1) / math.sqrt(600)
    assert (error <= 4.5 * se + 1e-9).all()


@pytest.mark.parametrize("divergence", ESTIMATORS, ids=name_of)
def test_the_gradient_of_an_estimate_is_right_on_average(divergence: AbstractDivergence) -> None:
    x, clouds = ragged(sizes=(4,))
    field = enlarged_field(layers=1, width=4)
    velocity = ContinuousFlow(field).dynamics(clouds)(torch.tensor(0.3).double(), torch.empty(0))
    weight = field.egnn.layers[0].coordinate_out.weight

    def gradient(method: AbstractDivergence, probes: Tensor) -> Tensor:
        trace = method(velocity, x, clouds, probes).estimates.mean(1).sum()
        return torch.autograd.grad(trace, weight)[0].flatten()

    source = rng.generator(0, "test", "gradient")
    drawn = [gradient(divergence, divergence.probes(x, clouds, source)) for _ in range(300)]
    found = torch.stack(drawn)
    error = found.mean(0) - gradient(Exact(), x.new_zeros(0, *x.shape))
    assert (error.abs() <= 4.5 * found.std(0) / math.sqrt(300) + 1e-9).all()


def test_several_probes_are_several_independent_estimates() -> None:
    x, clouds = ragged(sizes=(4, 3))
    velocity = mixing_velocity(clouds)
    many = drawn_estimates(Hutchinson(200), velocity, x, clouds, 1)
    assert many.shape == (2, 200)
    lag = many[:, 1:] - many.mean(1, keepdim=True), many[:, :-1] - many.mean(1, keepdim=True)
    correlation = (lag[0] * lag[1]).mean(1) / many.var(1)
    assert correlation.abs().max() < 4.5 / math.sqrt(200)


@pytest.mark.parametrize("divergence", [Hutchinson(8), HutchPlusPlus(8, 2)], ids=name_of)
def test_the_standard_error_covers_the_truth_as_often_as_it_should(
    divergence: AbstractDivergence,
) -> None:
    x, clouds = ragged(sizes=(5, 4))
    velocity = mixing_velocity(clouds)
    truth = traces(velocity, x, clouds)
    estimates = drawn_estimates(divergence, velocity, x, clouds, 300).reshape(2, 300, 8)
    se = estimates.std(2) / math.sqrt(8)
    inside = ((estimates.mean(2) - truth.unsqueeze(1)).abs() <= 2.365 * se).double().mean(1)
    # Student's t with 7 degrees of freedom: 95 %, within what 300 trials can tell.
    assert (inside > 0.90).all()
    assert (inside < 0.99).all()


def test_the_norm_of_the_jacobian_is_right_on_average() -> None:
    x, clouds = ragged(sizes=SIZES)
    velocity = mixing_velocity(clouds)
    method = Hutchinson(2000, "gaussian")
    with torch.no_grad():
        trace = method(velocity, x, clouds, method.probes(x, clouds, rng.generator(0)))
    expected = torch.stack([j.square().sum() for j in jacobians(velocity, x, clouds)])
    assert torch.allclose(trace.jacobian, expected, rtol=0.1)


@pytest.mark.parametrize("make", VELOCITIES)
def test_hutch_plus_plus_is_exact_where_the_sketch_spans_the_subspace(
    make: Callable[[Segments], Callable[[Tensor], Tensor]],
) -> None:
    x, clouds = ragged(sizes=(3, 2, 1))
    velocity = make(clouds)
    estimates = drawn_estimates(HutchPlusPlus(1, sketch=6), velocity, x, clouds, 3)
    expected = traces(velocity, x, clouds).unsqueeze(1).expand_as(estimates)
    assert torch.allclose(estimates, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_hutch_plus_plus_is_exact_for_a_jacobian_of_low_rank_of_any_size(
    size: float, dtype: torch.dtype
) -> None:
    x, clouds = ragged(sizes=(5,))
    x = x.to(dtype)
    u, v = ragged(sizes=(5,), seed=1)[0].to(dtype), ragged(sizes=(5,), seed=2)[0].to(dtype)

    def rank_one(y: Tensor) -> Tensor:
        return size * u * (v * y).sum()

    estimates = drawn_estimates(HutchPlusPlus(1, sketch=3), rank_one, x, clouds, 5)
    expected = size * (u * v).sum()
    assert torch.allclose(estimates, expected.expand_as(estimates), rtol=TOLERANCE[dtype])


def test_hutch_plus_plus_beats_hutchinson_at_equal_products_for_a_dominated_jacobian() -> None:
    x, clouds = ragged(sizes=(8,))
    basis = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis, _ = torch.linalg.qr(basis)
    values = torch.tensor([10.0, -6.0, *[0.1] * 22], dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ basis.T

    def velocity(y: Tensor) -> Tensor:
        return centred((matrix @ centred(y, clouds).reshape(-1)).reshape(-1, 3), clouds)

    # A sketch of 3 costs 3 products to make and 3 to use; with 2 probes that is 8.
    plain = drawn_estimates(Hutchinson(8), velocity, x, clouds, 100).reshape(100, 8).mean(1)
    sketched = drawn_estimates(HutchPlusPlus(2, 3), velocity, x, clouds, 100)
    assert sketched.reshape(100, 2).mean(1).var() < 0.1 * plain.var()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Hutchinson(0), "divergence.probes: found 0"),
        (lambda: Hutchinson(1, "uniform"), "divergence.distribution: found 'uniform'"),
        (lambda: HutchPlusPlus(0), "divergence.probes: found 0"),
        (lambda: HutchPlusPlus(1, 0), "divergence.sketch: found 0"),
        (lambda: ExactForward(0), "divergence.chunk: found 0"),
    ],
)
def test_an_option_out_of_range_is_named(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        make()
