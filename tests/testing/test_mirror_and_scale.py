"""Chirality and degree of functions that are known to have them."""

import math

import pytest
import torch
from tolerances import TOLERANCE

from eqflow.geometry import Clouds, Segments, centred
from eqflow.testing import chirality, clouds, scaling

SHAPES = dict(clouds())
DTYPES = list(TOLERANCE)


def signed_volume(x, ptr, h):
    """Of the first three arms; a cloud of fewer points has none."""
    y = Segments(ptr).to_dense(centred(x, ptr))
    return torch.linalg.det(y[:, :3])


def arms(x, ptr, h):
    return centred(x, ptr)


def swirl(x, ptr, h):
    """A pseudovector: the moment of the points about their centre, weighted by place."""
    y = centred(x, ptr)
    first = Segments(ptr).expand(y[ptr[:-1]])
    return torch.linalg.cross(first, y)


# Mirror images.


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_signed_volume_is_chiral_and_differs_by_twice_itself(dtype):
    found = chirality(signed_volume, dict(clouds(dtype=dtype))["generic"])
    assert found.verdict == "chiral"
    assert found.turned <= TOLERANCE[dtype]
    # The scale is the volume itself, or that of the jittered cloud where it is larger.
    assert 0.5 < found.mirrored <= 2.01
    assert str(found).startswith("chiral: mirror images differ by")


def test_a_flat_cloud_is_its_own_mirror_image():
    assert chirality(signed_volume, SHAPES["benzene"]).verdict == "achiral"


@pytest.mark.parametrize("name", SHAPES)
def test_a_true_vector_is_achiral_on_every_cloud(name):
    assert chirality(arms, SHAPES[name], "vector").verdict == "achiral"


def test_a_cross_product_is_chiral_as_a_vector_and_not_as_a_pseudovector():
    batch = SHAPES["generic"]
    assert chirality(swirl, batch, "vector").verdict == "chiral"
    assert chirality(swirl, batch, "1e").verdict == "achiral"


def test_what_rotations_change_is_no_matter_of_handedness():
    found = chirality(lambda x, ptr, h: centred(x, ptr)[:, 0], SHAPES["generic"])
    assert found.verdict == "undecided"
    assert "rotations fail" in str(found)


def test_one_handed_cloud_of_a_batch_is_named():
    batch = Clouds.join([SHAPES["benzene"], SHAPES["generic"][:1]])
    assert chirality(signed_volume, batch).cloud == 1


def test_in_the_plane_an_angle_has_a_sign():
    def area(x, ptr, h):
        y = Segments(ptr).to_dense(centred(x, ptr))
        return torch.linalg.det(y[:, :2])

    assert chirality(area, dict(clouds(2))["generic"]).verdict == "chiral"


# Scale.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("degree", [-6.0, -0.5, 1.0, 1 / 3, 2.0, 3.0])
def test_a_power_of_the_radius_has_its_degree(degree, dtype):
    def fn(x, ptr, h):
        return Segments(ptr).mean(centred(x, ptr).square().sum(-1)).pow(degree / 2)

    for name in ("generic", "methane", "c60"):
        found = scaling(fn, dict(clouds(dtype=dtype))[name])
        assert found.verdict == "homogeneous"
        assert found.degree == pytest.approx(degree, abs=1e-12)


def test_a_degree_that_is_no_fraction_is_measured():
    found = scaling(lambda x, ptr, h: x.norm(dim=-1).pow(math.pi), SHAPES["sf6"])
    assert found.verdict == "homogeneous"
    assert found.degree == pytest.approx(math.pi, abs=1e-9)


def test_directions_are_invariant():
    def fn(x, ptr, h):
        y = centred(x, ptr)
        return y / y.norm(dim=-1, keepdim=True)

    found = scaling(fn, SHAPES["generic"], "vector")
    assert (found.verdict, found.degree) == ("invariant", 0.0)
    assert str(found) == "invariant"


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, ptr, h: x + x.square(),
        lambda x, ptr, h: x.sin(),
        lambda x, ptr, h: x.square().sum(-1).log(),
        # One power a point is no power of the whole.
        lambda x, ptr, h: x.norm(dim=-1) ** (1 + Segments(ptr).place),
    ],
)
def test_most_functions_have_no_degree(fn):
    found = scaling(fn, SHAPES["generic"])
    assert found.verdict == "none"
    assert str(found) == "no degree"


def test_clouds_of_one_batch_have_one_degree():
    def fn(x, ptr, h):
        segments = Segments(ptr)
        power = torch.where(segments.lengths == 3, 1, 2).to(x)
        return segments.mean(x.square().sum(-1)).sqrt() ** power

    assert scaling(fn, SHAPES["water"]).degree == 1
    assert scaling(fn, SHAPES["methane"]).degree == 2
    assert scaling(fn, Clouds.join([SHAPES["water"], SHAPES["methane"]])).verdict == "none"


def test_an_output_that_is_zero_says_nothing_of_its_degree():
    found = scaling(lambda x, ptr, h: 0 * x, SHAPES["water"], "vector")
    assert found.verdict == "zero"
    assert math.isnan(found.degree)


def test_a_sum_of_forces_that_vanishes_by_symmetry_is_zero_too():
    found = scaling(lambda x, ptr, h: Segments(ptr).mean(x), SHAPES["sf6"], "vector")
    assert found.verdict in ("zero", "homogeneous")


def test_an_output_that_is_not_finite_has_no_degree():
    found = scaling(lambda x, ptr, h: x / 0, SHAPES["water"])
    assert found.verdict == "none"
    assert found.error == math.inf
