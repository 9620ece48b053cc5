"""Random rotations follow the Haar measure; Kabsch finds the best one."""

import pytest
import torch

from eqflow import rng
from eqflow.geometry import Clouds, Segments, centred, kabsch, random_orthogonal, rotate
from eqflow.testing import clouds

LIKE = torch.zeros((), dtype=torch.float64)
SHAPES = dict(clouds())


def draw(count, dimension, proper, *purpose):
    return random_orthogonal(count, dimension, LIKE, rng.generator(0, "test", *purpose), proper)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("proper", [True, False])
def test_matrices_are_orthogonal_and_proper_ones_have_determinant_one(dimension, proper):
    q = draw(200, dimension, proper)
    identity = torch.eye(dimension, dtype=q.dtype).expand_as(q)
    torch.testing.assert_close(q @ q.mT, identity, rtol=0, atol=1e-13)
    determinant = torch.linalg.det(q)
    if proper:
        torch.testing.assert_close(determinant, torch.ones_like(determinant))
    else:
        torch.testing.assert_close(determinant.abs(), torch.ones_like(determinant))
        # 200 fair coins: five standard deviations from their mean.
        assert abs(float(determinant.sum())) < 5 * 200**0.5


@pytest.mark.parametrize("dimension", [2, 3, 4])
@pytest.mark.parametrize("proper", [True, False])
def test_the_distribution_is_haar(dimension, proper):
    """For irreducible matrices of real type `E tr = 0`, `E tr² = 1`; SO(2) splits in two: 2."""
    q = draw(20_000, dimension, proper)
    trace = q.diagonal(dim1=1, dim2=2).sum(-1)
    square = 2 if proper and dimension == 2 else 1
    for sample, mean in ((trace, 0), (trace.square(), square)):
        error = float(sample.std()) / len(sample) ** 0.5
        assert abs(float(sample.mean()) - mean) < 5 * error


def test_the_distribution_does_not_change_under_a_fixed_rotation():
    """Every entry has mean 0 and variance 1/d: no direction of the lab frame is special."""
    q = draw(20_000, 3, True)
    assert float(q.mean(0).abs().max()) < 5 * (1 / 3 / 20_000) ** 0.5
    assert float((q.square().mean(0) - 1 / 3).abs().max()) < 5 * (0.09 / 20_000) ** 0.5


def test_rotating_is_applying_each_clouds_matrix_to_its_points():
    batch = SHAPES["generic"]
    q = draw(2, 3, True)
    expected = torch.cat([part.x @ q[i].T for i, part in enumerate(batch)])
    torch.testing.assert_close(rotate(batch.x, q, batch.ptr), expected)


@pytest.mark.parametrize("proper", [True, False])
@pytest.mark.parametrize("name", ["generic", "ammonia", "methane", "sf6", "icosahedron", "large"])
def test_kabsch_recovers_the_rotation_of_a_cloud_that_spans_space(name, proper):
    batch = SHAPES[name]
    x = centred(batch.x, batch.ptr)
    q = draw(len(batch), 3, proper, name)
    y = rotate(x, q.mT, batch.ptr)
    torch.testing.assert_close(kabsch(x, y, batch.ptr, proper), q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("proper", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_kabsch_superposes_any_cloud_degenerate_ones_included(name, proper):
    batch = SHAPES[name]
    x = centred(batch.x, batch.ptr)
    y = rotate(x, draw(len(batch), 3, proper, name).mT, batch.ptr)
    found = kabsch(x, y, batch.ptr, proper)
    torch.testing.assert_close(rotate(y, found, batch.ptr), x, rtol=0, atol=1e-11)
    if proper:
        torch.testing.assert_close(torch.linalg.det(found), torch.ones(len(batch)).double())


@pytest.mark.parametrize("proper", [True, False])
@pytest.mark.parametrize("dimension", [2, 3])
def test_no_other_rotation_comes_closer_than_kabsch(dimension, proper):
    count = 500
    batch = dict(clouds(dimension))["generic"][:1]
    x = centred(batch.x, batch.ptr)
    y = centred(rng.normal(tuple(x.shape), x, rng.generator(1, "test")), batch.ptr)
    # A mirror image of the best fit, so that the constraint on the determinant is felt.
    for target in (y, y * y.new_tensor([-1.0] + [1.0] * (dimension - 1))):
        best = kabsch(x, target, batch.ptr, proper)
        least = (x - rotate(target, best, batch.ptr)).square().sum()
        others = torch.cat([draw(count, dimension, proper), nearby(best[0], count, proper)])
        distance = (x - torch.einsum("bij,nj->bni", others, target)).square().sum((1, 2))
        assert float(distance.min()) >= float(least) - 1e-12


def nearby(rotation, count, proper):
    source = rng.generator(2, "test")
    skew = 0.05 * rng.normal((count, *rotation.shape), rotation, source)
    return torch.linalg.matrix_exp(skew - skew.mT) @ rotation


def test_kabsch_treats_each_cloud_by_itself():
    batch = Clouds.join([SHAPES[name] for name in ("ammonia", "generic", "icosahedron")])
    x = centred(batch.x, batch.ptr)
    y = centred(rng.normal(tuple(x.shape), x, rng.generator(3, "test")), batch.ptr)
    together = kabsch(x, y, batch.ptr)
    rows = Segments(batch.ptr)
    for i in range(len(batch)):
        picked, index = rows.select(torch.tensor([i]))
        alone = kabsch(x[index], y[index], picked)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-10)
