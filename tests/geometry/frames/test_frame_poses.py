import pytest
import torch
from every_frame import FRAMES, poses_of, shapes
from torch import Tensor

from eqflow.geometry import Clouds, Segments
from eqflow.geometry.frames import OrbitFrame, Poses, StochasticFrame, WeightedFrame
from eqflow.geometry.rotations import random_orthogonal, rotate

every_frame = pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
CASES = [
    (dimension, name)
    for dimension in (1, 2, 3, 4)
    for name in shapes(dimension)
    if name != "c60" and (dimension < 4 or name in ("generic", "co2", "methane", "one_point"))
]
every_cloud = pytest.mark.parametrize(("dimension", "name"), CASES)


@every_cloud
@every_frame
def test_poses_are_orthogonal_and_their_weights_sum_to_one(frame, dimension, name) -> None:
    batch = shapes(dimension)[name]
    for proper in (False, True):
        poses = poses_of(frame, batch, proper)
        assert poses.rotation.shape == (poses.count, dimension, dimension)
        assert poses.owners.count == len(batch) == len(poses.rank)
        unit = torch.eye(dimension, dtype=torch.float64).expand_as(poses.rotation)
        gram = poses.rotation.mT @ poses.rotation
        torch.testing.assert_close(gram, unit, rtol=0, atol=1e-13)
        total = poses.owners.sum(poses.weight)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-13)
        assert (poses.weight > 0).all()
        if proper:
            assert (torch.linalg.det(poses.rotation) > 0).all()


RANKS = {"one_point": 0, "two_points": 1, "co2": 1}


@every_cloud
@every_frame
def test_the_rank_counts_axes_that_points_determine(frame, dimension, name) -> None:
    batch = shapes(dimension)[name]
    poses = poses_of(frame, batch)
    spanned = RANKS.get(name, 2 if name in ("water", "square", "pyridine", "benzene") else 3)
    spanned = min(spanned, 3 if name in ("methane", "ammonia") else dimension)
    expected = spanned if spanned <= dimension - 2 else dimension
    assert poses.rank.tolist() == [expected] * len(batch)
    opened = 0 if poses.opened is None else int(poses.opened[0])
    assert poses.is_free.sum().item() == poses.count * (dimension - expected - opened)
    # Points have no coordinates along free axes.
    rows, chosen = batch.segments.select(poses.owners.ids)
    placed = torch.einsum("nd,nde->ne", batch.x[chosen], poses.rotation[rows.ids])
    free = placed[poses.is_free[rows.ids]]
    torch.testing.assert_close(free, torch.zeros_like(free), rtol=0, atol=1e-14)


def assert_same_set(one: Tensor, other: Tensor, weights: tuple[Tensor, Tensor]) -> None:
    """The same matrices with the same weights, in any order and however often."""
    near = torch.cdist(one.flatten(1), other.flatten(1), compute_mode=EXACTLY) < 1e-9
    assert near.any(0).all()
    assert near.any(1).all()
    totals = near.double() @ weights[1], near.double() @ (near.T.double() @ weights[0])
    counts = near.double().sum(1)
    torch.testing.assert_close(totals[0] * counts, totals[1], rtol=1e-9, atol=1e-12)


EXACTLY = "donot_use_mm_for_euclid_dist"


@pytest.mark.parametrize("proper", [False, True], ids=["O", "SO"])
@pytest.mark.parametrize("frame", ["orbit", "pca", "weighted", "thinned"])
@pytest.mark.parametrize(
    "name", ["water", "ammonia", "square", "benzene", "methane", "sf6", "coincident"]
)
def test_poses_of_a_moved_cloud_are_the_moved_poses(name: str, frame: str, proper: bool) -> None:
    batch = shapes()[name]
    source = torch.Generator().manual_seed(0)
    turn = random_orthogonal(1, 3, batch.x, source, proper=proper)
    order = torch.randperm(len(batch.x), generator=source)
    moved = Clouds(rotate(batch.x, turn, batch.ptr)[order], batch.ptr, batch.numbers[order])
    before = poses_of(FRAMES[frame], batch, proper)
    after = poses_of(FRAMES[frame], moved, proper)
    assert before.count == after.count
    expected = turn @ before.rotation
    assert_same_set(after.rotation, expected, (after.weight, before.weight))


@every_frame
def test_poses_of_a_cloud_do_not_depend_on_those_that_follow(frame) -> None:
    alone = shapes()["methane"]
    for other in ("benzene", "co2", "one_point"):
        among = Clouds.join([alone, shapes()[other]])
        one, two = poses_of(frame, alone), poses_of(frame, among)
        count = one.count
        assert int(two.owners.lengths[0]) == count
        torch.testing.assert_close(two.rotation[:count], one.rotation, rtol=0, atol=1e-13)
        torch.testing.assert_close(two.weight[:count], one.weight, rtol=1e-12, atol=0)


@every_frame
def test_lengths_do_not_matter_only_their_ratios(frame) -> None:
    batch = shapes()["ammonia"]
    for factor in (1e-6, 1e6):
        poses = poses_of(frame, batch.with_positions(factor * batch.x))
        expected = poses_of(frame, batch)
        torch.testing.assert_close(poses.rotation, expected.rotation, rtol=0, atol=1e-12)


@every_frame
def test_batches_without_points_have_a_pose_for_each_cloud_and_none_for_none(frame) -> None:
    nothing = torch.zeros(0, 3, dtype=torch.float64)
    assert frame(nothing, Segments(torch.tensor([0]))).count == 0
    poses = frame(nothing, Segments(torch.tensor([0, 0, 0])))
    assert poses.rank.tolist() == [0, 0]
    assert (poses.owners.lengths >= 1).all()


def numbered(lengths: list[int], first: float) -> Poses:
    count = sum(lengths)
    rotation = (first + torch.arange(count).double()).reshape(-1, 1, 1)
    owners = Segments.of_lengths(torch.tensor(lengths))
    return Poses(rotation, rotation[:, 0, 0], owners, torch.tensor(lengths))


def test_poses_of_parts_are_joined_cloud_by_cloud() -> None:
    parts = [
        (torch.tensor([1, 3]), numbered([2, 1], 10)),
        (torch.tensor([0, 2]), numbered([1, 3], 20)),
    ]
    whole = Poses.joined(parts, 4)
    assert whole.rotation.flatten().tolist() == [20, 10, 11, 21, 22, 23, 12]
    assert whole.weight.tolist() == whole.rotation.flatten().tolist()
    assert whole.owners.lengths.tolist() == whole.rank.tolist() == [1, 2, 3, 1]
    assert whole.opened is not None
    assert not whole.opened.any()
    line = WeightedFrame()(
        torch.eye(3)[:1] * torch.tensor([[1.0], [-1.0]]), Segments(torch.tensor([0, 2]))
    )
    both = Poses.joined([(torch.tensor([1]), line), (torch.tensor([0]), line)], 2)
    assert both.opened.tolist() == [True, True]


def test_frames_say_what_they_promise() -> None:
    assert FRAMES["orbit"].shares_pose
    assert FRAMES["weighted"].jump_codimension is None
    assert FRAMES["orbit"].jump_codimension == 1
    assert FRAMES["drawn"].in_expectation
    assert not FRAMES["drawn"].tells_types
    assert StochasticFrame(OrbitFrame()).tells_types
