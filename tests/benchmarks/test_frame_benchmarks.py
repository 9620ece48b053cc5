"""What the benchmarks of frames measure on is what they say."""

from importlib.util import find_spec

import pytest
import torch
from frames_errors import Backbone
from frames_faenet import averaged
from frames_smoothness import SUBJECTS, gradient_of_product
from pyridine_frames import moments
from rotated_clouds import chairs, exchanged, turn
from tolerances import TOLERANCE

from eqflow import rng
from eqflow.geometry import Clouds
from eqflow.nn import FrameAverage
from eqflow.testing import clouds, equivariance_error

EXACT = TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_larger_moments_are_apart_by_the_gap(name: str) -> None:
    gap = torch.tensor([1e-6, 1e-3, 0.2], dtype=torch.float64)
    batch = SUBJECTS[name](gap)
    for cloud, expected in zip(batch, gap, strict=True):
        first, second, third = moments(cloud.x).tolist()
        assert (first - second) / first == pytest.approx(float(expected), abs=EXACT)
        assert third < second


def test_the_gradient_of_a_product_is_that_of_the_formula() -> None:
    # f(x) = x³ elementwise: vᵀJv = Σ 3 x² v², with the gradient 6 x v², where v = ±1.
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=rng.generator(0, "cubes"))
    cubes = FrameAverage(lambda x, ptr, h: x**3, "T(3)", output="vector")
    centred = x - x.mean(1, keepdim=True)
    # Of the centred positions: J = diag(3 y²) P and the gradient is P of what is left.
    found = gradient_of_product(cubes, Clouds.from_dense(x))

    def product(points: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        jacobian = torch.autograd.functional.jacobian(
            lambda y: (y - y.mean(0)) ** 3, points, create_graph=True
        )
        return torch.einsum("ia,iajb,jb->", v, jacobian, v)

    source = rng.generator(0, "frames", "probe", 4)
    v = rng.rademacher((1, 4, 3), x, source)[0]
    for cloud, norm in zip(centred, found, strict=True):
        points = cloud.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(product(points, v), points)
        assert float(gradient.norm()) == pytest.approx(float(norm), rel=EXACT)


def test_halves_that_change_places_twice_are_where_they_were() -> None:
    x = torch.rand(5, 40, 3, dtype=torch.float64, generator=rng.generator(0, "halves"))
    x[:, 0, 2], x[:, 1, 2] = 0.0, 1.0  # both ends are taken, and stay the ends
    once = exchanged(x)
    assert not torch.allclose(once, x, atol=0.1)
    assert torch.equal(once[..., :2], x[..., :2])
    moved = (once[..., 2] - x[..., 2]).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.5), atol=EXACT)


def test_chairs_to_train_and_test_on_are_different_ones_half_of_each_changed(shared_data) -> None:
    train, test = chairs(shared_data / "point_clouds" / "chair_32.npz", seed=0)
    assert len(train) + len(test) < 889  # repeated chairs are taken once
    for part in (train, test):
        assert abs(float(part.label.double().mean()) - 0.5) < 1e-2
    distances = torch.cdist(train.x.flatten(1), test.x.flatten(1))
    assert float(distances.min()) > 0


def test_turned_clouds_keep_their_distances() -> None:
    x = torch.randn(8, 3, dtype=torch.float64, generator=rng.generator(0, "turned"))
    turned = turn(x, torch.tensor([0, 3, 8]), rng.generator(1, "turned"))
    for part in (slice(0, 3), slice(3, 8)):
        expected = torch.cdist(x[part], x[part])
        assert torch.allclose(torch.cdist(turned[part], turned[part]), expected, atol=EXACT)
    assert not torch.allclose(turned, x, atol=0.1)


@pytest.mark.skipif(find_spec("faenet") is None, reason="faenet is not installed")
def test_faenets_average_is_ours_over_principal_axes() -> None:
    backbone = Backbone()
    for group, method in (("E(3)", "all"), ("SE(3)", "se3-all")):
        ours, theirs = FrameAverage(backbone, group, "pca"), averaged(backbone, method)
        for name in ("generic", "pyridine", "water"):
            batch = dict(clouds())[name]
            given = batch.x, batch.ptr, batch.h
            with torch.no_grad():
                assert torch.allclose(ours(*given), theirs(*given), rtol=EXACT, atol=EXACT)


def test_the_backbone_of_the_errors_is_not_equivariant_by_itself() -> None:
    batch = dict(clouds())["generic"]
    with torch.no_grad():
        assert equivariance_error(Backbone(), batch, "SO(3)", "vector") > 0.1
        assert equivariance_error(Backbone(), batch, "S(n)", "vector") < EXACT
