from itertools import pairwise

import pytest
import torch
from every_frame import poses_of, shapes
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.geometry import Segments
from eqflow.geometry.frames import WeightedFrame

CLOUDS = ("generic", "water", "ammonia", "methane", "co2", "coincident", "one_point")


def lehmer(distance: Tensor) -> Tensor:
    return distance.pow(8).sum() / distance.pow(7).sum()


def in_words(x: Tensor, power: float, threshold: float) -> list[tuple[float, Tensor]]:
    """All pairs of points, one after the other, with the product of their weights."""
    found = []
    radius = x.norm(dim=1)
    first = (radius / lehmer(radius) - threshold).clamp(min=0) ** power
    for i in range(len(x)):
        if radius[i] == 0:
            continue
        axis = x[i] / radius[i]
        rest = x - (x @ axis).unsqueeze(1) * axis
        distance = rest.norm(dim=1)
        distance[distance < 1e-9] = 0
        second = (distance / lehmer(distance) - threshold).clamp(min=0) ** power
        for j in range(len(x)):
            weight = float(first[i] / first.sum() * second[j] / second.sum())
            if weight > 0:
                e2 = rest[j] / distance[j]
                found.append((weight, torch.stack([axis, e2, torch.linalg.cross(axis, e2)], 1)))
    return found


@pytest.mark.parametrize("proper", [False, True])
@pytest.mark.parametrize(("power", "threshold"), [(2.0, 0.0), (3.0, 0.0), (2.0, 0.6)])
@pytest.mark.parametrize("name", ["generic", "water", "methane", "coincident"])
def test_weights_are_the_products_of_those_of_their_points(name, power, threshold, proper) -> None:
    batch = shapes()[name]
    poses = poses_of(WeightedFrame(power, threshold), batch, proper)
    signs = [(1, 1, 1), (1, -1, -1)] if proper else [(1, a, b) for a in (1, -1) for b in (1, -1)]
    start = 0
    for cloud in batch:
        expected = [
            (weight / len(signs), axes * torch.tensor(sign))
            for weight, axes in in_words(cloud.x, power, threshold)
            for sign in signs
        ]
        here = slice(start, start + len(expected))
        weight = torch.tensor([entry[0] for entry in expected], dtype=torch.float64)
        rotation = torch.stack([entry[1] for entry in expected])
        torch.testing.assert_close(poses.weight[here], weight, rtol=1e-10, atol=0)
        torch.testing.assert_close(poses.rotation[here], rotation, rtol=0, atol=1e-12)
        start += len(expected)
    assert start == poses.count


def test_there_are_four_poses_a_pair_and_two_without_reflections() -> None:
    generic = shapes()["generic"]
    assert poses_of(WeightedFrame(), generic).count == 4 * (7 * 6 + 5 * 4)
    assert poses_of(WeightedFrame(), generic, proper=True).count == 2 * (7 * 6 + 5 * 4)
    plane = shapes(2)["generic"]
    assert poses_of(WeightedFrame(), plane).count == 2 * (7 + 5)
    assert poses_of(WeightedFrame(), plane, proper=True).count == 7 + 5


def test_a_threshold_leaves_out_light_poses_and_never_all() -> None:
    for name in CLOUDS:
        batch = shapes()[name]
        counts = [
            poses_of(WeightedFrame(threshold=t), batch).owners.lengths for t in (0, 0.5, 0.9, 0.999)
        ]
        assert all((a >= b).all() for a, b in pairwise(counts))
        assert (counts[-1] >= 1).all()


@pytest.mark.parametrize("power", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_the_mean_pose_is_continuous_where_points_pass_the_threshold(power, threshold) -> None:
    # Of the first axis alone, which no sign cancels: Σ w R e_1 along a path of clouds.
    source = torch.Generator().manual_seed(0)
    x, v = (torch.randn(5, 3, generator=source, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    path = x + t.reshape(-1, 1, 1) * v
    segments = Segments(torch.arange(2002) * 5)
    poses = WeightedFrame(power, threshold)(path.reshape(-1, 3), segments)
    mean = poses.owners.sum(poses.weight.unsqueeze(1) * poses.rotation[:, :, 0])
    steps = (mean[1:] - mean[:-1]).norm(dim=1)
    assert float(steps.max()) < 0.05
    assert poses.owners.lengths.unique().numel() > (1 if threshold else 0)


def test_a_cloud_on_a_line_up_to_rounding_is_on_it_in_all_poses_or_in_none() -> None:
    # Axes by points near the origin find others off the line when those by outer ones do not.
    source = torch.Generator().manual_seed(0)
    x = torch.zeros(300, 3, 3, dtype=torch.float64)
    x[..., 0] = torch.randn(300, 3, generator=source, dtype=torch.float64)
    x += 2e-12 * torch.randn(300, 3, 3, generator=source, dtype=torch.float64)
    poses = WeightedFrame()(x.reshape(-1, 3), Segments(torch.arange(301) * 3))
    assert set(poses.rank.tolist()) == {1, 3}
    assert poses.owners.lengths[poses.rank == 1].tolist() == [12] * int((poses.rank == 1).sum())
    assert poses.owners.lengths[poses.rank == 3].min() >= 12


def test_signs_of_axes_that_a_flat_cloud_determines_are_taken_both_ways() -> None:
    x = torch.zeros(4, 5, dtype=torch.float64)
    x[:, :3] = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    segments = Segments(torch.tensor([0, 4]))
    poses = WeightedFrame()(x, segments)
    assert poses.rank.tolist() == [3]
    for axis in (1, 2):
        mean = (poses.weight.unsqueeze(1) * poses.rotation[:, :, axis]).sum(0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 1.9}, "power: found 1.9, expected at least 2"),
        ({"power": float("inf")}, "power: found inf"),
        ({"power": float("nan")}, "power: found nan"),
        ({"threshold": -0.1}, "threshold: found -0.1, expected at least 0 and below 1"),
        ({"threshold": 1.0}, "threshold: found 1.0"),
        ({"threshold": float("nan")}, "threshold: found nan"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        WeightedFrame(**options)
