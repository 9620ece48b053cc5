"""Functions with a known jump jump by it, smooth ones do not, on symmetric clouds as well."""

import math

import pytest
import torch

from eqflow.errors import UsageError
from eqflow.geometry import Clouds, Segments, centred
from eqflow.testing import assert_continuous, clouds, continuity
from eqflow.testing.continuity import SIZES

SHAPES = dict(clouds())
SINGLE = dict(clouds(dtype=torch.float32))


def smooth(x, ptr, h):
    y = centred(x, ptr)
    return y * torch.exp(-0.1 * y.square().sum(-1, keepdim=True))


def covariance(x, ptr):
    y = centred(x, ptr)
    return y, Segments(ptr).mean(y[:, :, None] * y[:, None, :])


def first_axis(x, ptr, h):
    """Projections on the eigenvector of the largest eigenvalue, whose sign LAPACK chooses."""
    y, c = covariance(x, ptr)
    axis = torch.linalg.eigh(c)[1][:, :, -1]
    return (y * Segments(ptr).expand(axis)).sum(-1)


def pose(x, ptr, h):
    """The cloud seen from the frame of the point farthest out: an arg max over points."""
    y = Segments(ptr).to_dense(centred(x, ptr))
    far = y[torch.arange(len(y)), y.norm(dim=-1).argmax(1)]
    return (centred(x, ptr) * Segments(ptr).expand(far)).sum(-1)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("shapes", [SHAPES, SINGLE], ids=["float64", "float32"])
def test_a_smooth_function_is_continuous_on_every_cloud(shapes, name):
    found = continuity(smooth, shapes[name], "vector")
    assert found.verdict == "continuous"
    assert found.jump == 0
    assert_continuous(smooth, shapes[name], "vector")


def test_the_change_of_a_smooth_function_falls_as_the_size():
    found = continuity(smooth, SHAPES["methane"], "vector")
    assert found.sizes == SIZES
    assert found.order == pytest.approx(1, abs=0.01)
    for size, change in zip(found.sizes, found.changes, strict=True):
        assert 0.1 * size < change < 30 * size


@pytest.mark.parametrize("fn", [first_axis, pose])
@pytest.mark.parametrize("name", ["square", "methane", "sf6", "icosahedron", "c60"])
def test_a_pose_of_a_symmetric_cloud_jumps(name, fn):
    found = continuity(fn, SHAPES[name])
    assert found.verdict == "jumps"
    assert found.jump > 0.1
    assert abs(found.order) < 0.1
    with pytest.raises(AssertionError, match="jumps by"):
        assert_continuous(fn, SHAPES[name])


@pytest.mark.parametrize("fn", [first_axis, pose])
def test_a_pose_of_a_generic_cloud_does_not(fn):
    assert continuity(fn, SHAPES["generic"]).verdict == "continuous"


@pytest.mark.parametrize("height", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("at", [0.0, 0.3])
def test_a_step_is_as_high_as_it_is(height, at):
    """A step of known height in the first coordinate of a lone point, which stands on its edge."""
    batch = Clouds(torch.tensor([[at, 0.5]], dtype=torch.float64), torch.tensor([0, 1]))

    def fn(x, ptr, h):
        return 1 + height * torch.where(x[:, 0] > at, 1.0, 0.0).to(x)

    found = continuity(fn, batch)
    assert found.verdict == "jumps"
    assert found.jump == pytest.approx(height, rel=2 * height)
    away = batch.with_positions(batch.x + 1)
    assert continuity(fn, away).verdict == "continuous"


@pytest.mark.parametrize("distance", [1e-8, 1e-6, 3e-5, 2e-3])
def test_a_step_beside_the_cloud_is_found_with_its_height_and_distance(distance):
    """As where ties are broken with a tolerance: at the cloud itself all is smooth."""
    batch = Clouds(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0, 1]))

    def fn(x, ptr, h):
        return 1 + x.sum(-1) + 0.01 * (x.norm(dim=-1) > distance)

    found = continuity(fn, batch)
    assert found.verdict == "jumps"
    assert found.jump == pytest.approx(0.01, rel=0.05)
    # A ray is as long as its normal direction; the point has no width, and so the unit of length.
    assert 0.1 * distance < found.distance < 10 * distance
    with pytest.raises(AssertionError, match="jumps by 0"):
        assert_continuous(fn, batch)


def test_an_order_of_points_with_a_tolerance_jumps_a_little_away():
    def first_of_the_farthest(x, ptr, h):
        y = Segments(ptr).to_dense(centred(x, ptr))
        radius = y.norm(dim=-1)
        far = radius > radius.amax(1, keepdim=True) * (1 - 1e-6)
        return (y * far.unsqueeze(-1)).sum(1) / far.sum(1, keepdim=True)

    found = continuity(first_of_the_farthest, SHAPES["methane"], "vector")
    assert found.verdict == "jumps"
    assert found.changes[0] < 1e-6
    assert 1e-8 < found.distance < 1e-5
    assert continuity(first_of_the_farthest, SHAPES["generic"], "vector").verdict == "continuous"


def test_each_cloud_of_a_batch_has_its_own_steepest_stretch():
    water, methane, generic = (SHAPES[name] for name in ("water", "methane", "generic"))
    alone = [continuity(pose, batch) for batch in (water, methane)]
    joined = continuity(pose, Clouds.join([generic, methane, generic]))
    assert joined.cloud == 2
    assert joined.jump > 0.1
    assert all(each.jump > 0.1 for each in alone)


def test_a_step_down_to_the_tolerance_is_rounding():
    batch = Clouds(torch.zeros(1, 2).double(), torch.tensor([0, 1]))
    found = continuity(lambda x, ptr, h: 1 + 1e-11 * (x[:, 0] > 0), batch)
    assert found.verdict == "continuous"


def test_a_root_is_continuous_and_its_order_a_half():
    batch = Clouds(torch.zeros(1, 2).double(), torch.tensor([0, 1]))
    found = continuity(lambda x, ptr, h: x.norm(dim=-1).sqrt(), batch)
    assert found.verdict == "continuous"
    assert found.order == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("slope", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("at", [0.0, 1e-5])
def test_a_steep_slope_is_no_jump(slope, at):
    batch = Clouds(torch.zeros(1, 2).double(), torch.tensor([0, 1]))
    found = continuity(lambda x, ptr, h: torch.tanh(slope * (x[:, 0] - at)), batch)
    assert found.verdict == "continuous"
    assert found.changes[-1] > 0.5


def test_what_grows_by_a_high_power_is_no_jump():
    batch = Clouds(torch.zeros(1, 2).double(), torch.tensor([0, 1]))
    found = continuity(lambda x, ptr, h: 1e12 * x.square().sum(-1) ** 3, batch)
    assert found.verdict == "continuous"


def test_the_cloud_that_jumps_is_named_with_the_changes():
    batch = Clouds.join([SHAPES["generic"][:1], SHAPES["methane"]])
    batch = Clouds(batch.x, batch.ptr, batch.numbers, ("a.xyz:1", "b.xyz:6"))
    assert continuity(pose, batch).cloud == 1
    with pytest.raises(AssertionError) as caught:
        assert_continuous(pose, batch)
    text = str(caught.value)
    for part in ("cloud 1", "5 points", "b.xyz:6", "perturbed by 1e-09", "perturbed by 1e-02"):
        assert part in text


def test_an_output_that_is_not_finite_nearby_is_found():
    def fn(x, ptr, h):
        return torch.where(x[:, 0] == 0, 0.0, math.nan)

    batch = Clouds(torch.zeros(1, 2).double(), torch.tensor([0, 1]))
    found = continuity(fn, batch)
    assert found.verdict == "not finite"
    assert found.jump == math.inf
    with pytest.raises(AssertionError, match="not finite"):
        assert_continuous(fn, batch)


def test_sizes_below_the_resolution_of_the_type_are_left_out():
    found = continuity(smooth, SINGLE["methane"], "vector")
    assert found.sizes[0] >= 1e-6
    with pytest.raises(UsageError, match="sizes"):
        continuity(smooth, SINGLE["methane"], "vector", sizes=(1e-9, 1e-8))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="draws"):
        continuity(smooth, SHAPES["water"], draws=1)
    with pytest.raises(UsageError, match="at least two"):
        continuity(smooth, SHAPES["water"], sizes=(1e-3,))
    with pytest.raises(UsageError, match="no clouds"):
        continuity(smooth, Clouds(torch.zeros(0, 3), torch.tensor([0])), "vector")


def test_it_is_a_function_of_the_seed():
    one, same, other = (continuity(smooth, SHAPES["water"], seed=seed) for seed in (1, 1, 2))
    assert one == same != other
