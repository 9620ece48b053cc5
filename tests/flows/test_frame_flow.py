"""A flow along a frame-averaged field: an invariant and normalised density, by divergences."""

import math

import pytest
import torch
from example_flows import flow_of, ragged
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.flows import Exact, ExactForward, ExactReverse, Flow, MaximumLikelihood, Solver
from eqflow.flows.field_at import FieldAt
from eqflow.flows.objectives import Batch
from eqflow.geometry import Clouds, Segments, centred
from eqflow.nn import FrameField
from eqflow.nn.backbones import AbstractBackbone, TransformerBackbone
from eqflow.testing import assert_independent, assert_invariant

COARSE = Solver("rk4", steps=3)
FINE = Solver("rk4", steps=24)
FRAMES = ["weighted", "pca"]


def frame_field(
    dimension: int, frame: str = "weighted", gain: float = 3.0, **options
) -> FrameField:
    """An untrained transformer that moves points by about their distances, in float64."""

    def backbone(features: int) -> AbstractBackbone:
        return TransformerBackbone(dimension, features, dimension, width=8, layers=1, heads=2)

    with rng.seeded(3, "test"):
        field = FrameField(backbone, frame=frame, time_frequencies=1, **options).double().eval()
    with torch.no_grad():
        for weight in field.average.backbone.readout.parameters():
            weight.mul_(gain)
    return field


def frame_flow(
    dimension: int, points: int, frame: str = "weighted", solver: Solver = COARSE
) -> Flow:
    return flow_of(frame_field(dimension, frame), dimension, 1.3, (points,), solver)


def differences(velocity: FieldAt, x: Tensor, clouds: Segments, step: float = 1e-5) -> Tensor:
    """The divergence of each cloud without any derivative."""
    total = x.new_zeros(clouds.count)
    for point in range(clouds.rows):
        for axis in range(x.shape[1]):
            shift = torch.zeros_like(x)
            shift[point, axis] = step
            slope = (velocity(x + shift) - velocity(x - shift))[point, axis] / (2 * step)
            total[clouds.ids[point]] += slope.detach()
    return total


@pytest.mark.parametrize("frame", FRAMES)
def test_the_divergence_is_that_of_finite_differences(frame: str) -> None:
    field, (x, clouds) = frame_field(3, frame), ragged(3, (4, 3))
    velocity = FieldAt(field, torch.tensor(0.4, dtype=torch.float64), Edges.complete(clouds))
    expected = differences(velocity, x, clouds)
    assert float(expected.abs().min()) > 0.01
    for divergence in (Exact(), ExactReverse(), ExactForward()):
        found = divergence(velocity, x, clouds, x.new_zeros(0)).estimates[:, 0]
        assert torch.allclose(found.detach(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("reflections", [True, False])
def test_the_divergence_on_a_line_is_that_of_bending_it(reflections: bool) -> None:
    """CO2 and four points on a line: no velocity across it, and yet a derivative."""
    field = frame_field(3, reflections=reflections)
    along = torch.tensor([0.0, 1.16, -1.16, -1.5, -0.3, 0.9, 2.1], dtype=torch.float64)
    direction = torch.tensor([0.48, 0.6, -0.64], dtype=torch.float64)
    clouds = Segments(torch.tensor([0, 3, 7]))
    x = centred(along.unsqueeze(1) * direction, clouds)
    velocity = FieldAt(field, torch.tensor(0.4, dtype=torch.float64), Edges.complete(clouds))
    value = velocity(x).detach()
    across = value - (value @ direction).unsqueeze(1) * direction
    assert float(across.abs().max()) < 1e-14
    found = Exact()(velocity, x, clouds, x.new_zeros(0)).estimates[:, 0].detach()
    assert torch.allclose(found, differences(velocity, x, clouds), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frame", FRAMES)
def test_the_density_of_two_points_in_the_plane_integrates_to_one(frame: str) -> None:
    """Over the plane of their difference, not taking for granted that only distance counts."""
    flow = frame_flow(2, 2, frame, FINE)
    u, weight = (torch.from_numpy(part) for part in _legendre(60))
    r, along = 7 * (u + 1) ** 2 / 2, 7 * (u + 1) * weight
    angle = 2 * math.pi * (torch.arange(5, dtype=torch.float64) + 0.3) / 5
    y = r[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)
    x = flow.scale * torch.stack([y, -y], -2).reshape(-1, 2, 2) / math.sqrt(2)
    density = flow.log_prob(Clouds.from_dense(x)).exp().reshape(60, 5) * flow.scale**2
    assert torch.allclose(density, density[:, :1].expand_as(density), rtol=1e-8)
    total = float((density * (r * along).unsqueeze(1)).sum()) * 2 * math.pi / 5
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_the_density_of_three_points_in_the_plane_integrates_to_one() -> None:
    """Turned and mirrored so that the first Jacobi vector is `(a, 0)`, the second above it."""
    flow = frame_flow(2, 3, solver=Solver("rk4", steps=12))
    u, weight = (torch.from_numpy(part) for part in _legendre(24))
    a, along = 7 * (u + 1) ** 2 / 2, 7 * (u + 1) * weight
    angles = 12
    angle = math.pi * (torch.arange(angles, dtype=torch.float64) + 0.5) / angles
    first = torch.stack([a, torch.zeros_like(a)], 1)[:, None, None]
    second = (a[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1))[None]
    first, second = (v.expand(24, 24, angles, 2) for v in (first, second))
    basis = torch.tensor([[1, -1, 0], [1, 1, -2]], dtype=torch.float64)
    basis = basis / basis.norm(dim=1, keepdim=True)
    x = basis[0][:, None] * first.unsqueeze(-2) + basis[1][:, None] * second.unsqueeze(-2)
    clouds = Clouds.from_dense(flow.scale * x.reshape(-1, 3, 2))
    density = flow.log_prob(clouds).exp().reshape(24, 24, angles) * flow.scale**4
    measure = (2 * math.pi * a * along)[:, None, None] * (a * along)[:, None] * 2 * math.pi / angles
    assert float((density * measure).sum()) == pytest.approx(1, abs=2e-3)


def _legendre(count: int):
    import numpy as np

    return np.polynomial.legendre.leggauss(count)


@pytest.mark.parametrize("frame", FRAMES)
def test_the_density_is_invariant_and_independent_of_the_batch(frame: str) -> None:
    flow = frame_flow(3, 3, frame)
    x, clouds = ragged(3, (3, 2))

    def log_prob(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return flow.log_prob(Clouds(x, ptr))

    batch = Clouds(x, clouds.ptr)
    for group in ("E(3)", "S(n)"):
        assert_invariant(
            log_prob, batch, group, motions=1, tolerance=100 * TOLERANCE[torch.float64]
        )
    assert_independent(log_prob, batch, tolerance=100 * TOLERANCE[torch.float64])


def test_a_sample_has_the_density_it_was_drawn_with() -> None:
    flow = frame_flow(2, 3, solver=Solver(rtol=1e-6, atol=1e-6))
    drawn, log_prob = flow.sample_and_log_prob(3, seed=1)
    assert torch.allclose(flow.log_prob(drawn), log_prob, atol=1e-4)


def test_a_likelihood_can_be_trained_on() -> None:
    flow = frame_flow(2, 3)
    x, clouds = ragged(2, (3, 3))
    objective = MaximumLikelihood(Solver("rk4", steps=2), Exact())
    source = rng.generator(0, "test")

    def loss() -> Tensor:
        return objective(flow.continuous, Batch(x, clouds), source).value

    loss().backward()
    weight = flow.continuous.field.average.backbone.embed.weight
    step = 1e-6
    with torch.no_grad():
        weight[0, 0] += step
        above = float(loss())
        weight[0, 0] -= 2 * step
        below = float(loss())
    assert float(weight.grad[0, 0]) == pytest.approx((above - below) / (2 * step), rel=1e-5)
