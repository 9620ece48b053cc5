import pytest
import torch
from every_frame import poses_of, shapes
from torch import Tensor

from eqflow import rng
from eqflow.errors import DegenerateFrame, UsageError
from eqflow.geometry import Clouds, Segments
from eqflow.geometry.frames import OrbitFrame, PCAFrame, Poses, StochasticFrame, WeightedFrame
from eqflow.geometry.frames.draws import drawn

FRAMES = {"weighted": WeightedFrame(), "thinned": WeightedFrame(3.0, 0.3), "orbit": OrbitFrame()}
every_frame = pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
DRAWS = 4000


def quantity(poses: Poses, batch: Clouds) -> Tensor:
    """A generic function of a cloud in each pose, and its axes: (K, 10)."""
    rows, chosen = batch.segments.select(poses.owners.ids)
    posed = torch.einsum("nd,nde->ne", batch.x[chosen], poses.rotation[rows.ids])
    posed = posed.masked_fill(poses.is_free[rows.ids], 0)
    wave = posed @ torch.tensor([1.1, 0.7, -0.4]).double() + 0.3 * batch.h[chosen, 0]
    number = rows.sum(torch.sin(wave)).unsqueeze(1)
    determined = poses.rotation.masked_fill(poses.is_free.unsqueeze(1), 0)
    return torch.cat([number, number * determined.flatten(1)], 1)


@every_frame
@pytest.mark.parametrize("name", ["generic", "water", "methane", "co2", "one_point"])
def test_draws_are_unbiased(name: str, frame) -> None:
    batch = shapes()[name]
    for proper in (False, True):
        whole = poses_of(frame, batch, proper)
        expected = whole.owners.sum(whole.weight.unsqueeze(1) * quantity(whole, batch))
        some = poses_of(StochasticFrame(frame, DRAWS, seed=1), batch, proper)
        assert some.owners.lengths.tolist() == [DRAWS] * len(batch)
        found = quantity(some, batch).reshape(len(batch), DRAWS, -1)
        error = found.std(1) / DRAWS**0.5
        assert ((found.mean(1) - expected).abs() <= 5 * error + 1e-12).all()


@every_frame
def test_a_seed_fixes_the_draws(frame) -> None:
    batch = shapes()["generic"]
    one, again, other = (
        poses_of(StochasticFrame(frame, 6, seed), shapes()["methane"]) for seed in (0, 0, 1)
    )
    torch.testing.assert_close(one.rotation, again.rotation, rtol=0, atol=0)
    assert not torch.equal(one.rotation, other.rotation)
    first = poses_of(StochasticFrame(WeightedFrame(), 1, 0), Clouds.join([batch[:1], batch[:1]]))
    assert not torch.equal(first.rotation[0], first.rotation[1])  # each cloud has draws of its own


@every_frame
def test_draws_of_a_cloud_do_not_depend_on_those_that_follow(frame) -> None:
    sampler = StochasticFrame(frame, draws=3, seed=5)
    alone = poses_of(sampler, shapes()["water"])
    for other in ("ammonia", "co2", "one_point"):
        among = poses_of(sampler, Clouds.join([shapes()["water"], shapes()[other]]))
        torch.testing.assert_close(among.rotation[:3], alone.rotation, rtol=0, atol=1e-14)


def test_without_a_seed_draws_follow_the_global_generator() -> None:
    sampler = StochasticFrame(WeightedFrame(), draws=2)
    found = []
    for seed in (3, 3, 4):
        with rng.seeded(seed, "test"):
            found += [poses_of(sampler, shapes()["methane"]).rotation for _ in range(2)]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[4])


def test_clouds_that_are_nearly_on_a_line_have_all_of_their_draws() -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.zeros(300, 3, 3, dtype=torch.float64)
    x[..., 0] = torch.randn(300, 3, generator=source, dtype=torch.float64)
    # Some within the tolerance of the frame, some beyond.
    width = torch.finfo(torch.float64).eps ** 0.75
    x += width * torch.randn(300, 3, 3, generator=source, dtype=torch.float64)
    poses = StochasticFrame(WeightedFrame(), 5, 0)(
        x.reshape(-1, 3), Segments(torch.arange(301) * 3)
    )
    assert poses.rotation.shape == (1500, 3, 3)
    assert set(poses.rank.tolist()) == {1, 3}


def test_principal_axes_are_drawn_where_they_are_unique() -> None:
    sampler = StochasticFrame(PCAFrame(), 100, 0)
    poses = poses_of(sampler, shapes()["water"])
    assert len(torch.unique(poses.rotation.round(decimals=9), dim=0)) == 8
    with pytest.raises(DegenerateFrame):
        poses_of(sampler, shapes()["methane"])


def test_rows_are_drawn_as_often_as_they_weigh_and_never_where_that_is_nothing() -> None:
    weight = torch.tensor([0.0, 3.0, 1.0, 0.0, 2.0, 0.0]).double()
    segments = Segments(torch.tensor([0, 4, 6]))
    u = (torch.arange(400).double() + 0.5) / 400
    found = drawn(weight, segments, u.flip(0).expand(2, 400))
    assert torch.bincount(found, minlength=6).tolist() == [0, 300, 100, 0, 400, 0]
    ends = torch.tensor([[0.0, 1 - 2**-53], [0.0, 1 - 2**-53]], dtype=torch.float64)
    assert drawn(weight, segments, ends).tolist() == [1, 2, 4, 4]
    # Far along, where sums are rounded to more than what is left of u.
    many = Segments(torch.arange(100001) * 3)
    found = drawn(
        torch.tensor([0.1, 0.2, 0.0]).double().repeat(100000), many, ends[:1, 1:].expand(100000, 1)
    )
    assert (many.place[found] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws: found 0, expected at least 1"),
        ({"frame": "orbit"}, "StochasticFrame: found 'orbit', expected a frame"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StochasticFrame(**{"frame": OrbitFrame(), **options})
