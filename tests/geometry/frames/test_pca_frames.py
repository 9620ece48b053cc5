import warnings

import pytest
import torch
from every_frame import poses_of, shapes

from eqflow.errors import DegenerateFrame, UsageError
from eqflow.geometry import Clouds, Segments, centred
from eqflow.geometry.frames import OrbitFrame, PCAFrame
from eqflow.geometry.frames.pca import relative_gaps, second_moments

UNIQUE = ("generic", "pyridine", "water", "coincident")
DEGENERATE = ("ammonia", "benzene", "square", "methane", "sf6", "icosahedron", "c60")
FLAT = ("co2", "two_points", "one_point")


@pytest.mark.parametrize("name", UNIQUE)
def test_poses_are_principal_axes_with_all_signs(name: str) -> None:
    batch = shapes()[name]
    for proper, each in ((False, 8), (True, 4)):
        poses = poses_of(PCAFrame(), batch, proper)
        assert poses.owners.lengths.tolist() == [each] * len(batch)
        moments = second_moments(batch.x, batch.segments)[poses.owners.ids]
        turned = poses.rotation.mT @ moments @ poses.rotation
        values = turned.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(turned, torch.diag_embed(values), rtol=0, atol=1e-12)
        assert (values[:, :-1] >= values[:, 1:]).all()
        signs = (poses.rotation[0].T @ poses.rotation[:each]).diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
        assert len({tuple(row) for row in signs.round().tolist()}) == each


def test_pyridine_has_the_published_moments_where_its_nitrogen_is_misplaced_as_there() -> None:
    batch = shapes()["pyridine"]
    for change, moments in ((0.0, [0.0, 17.8236, 23.2769]), (-0.4, [0.0, 16.6774, 23.2769])):
        x = batch.x.clone()
        x[3, 1] += change  # 1.2901835 is printed, 1.6901835 is right
        values = torch.linalg.eigvalsh(second_moments(centred(x, batch.ptr), batch.segments))[0]
        expected = torch.tensor(moments, dtype=torch.float64)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", DEGENERATE)
def test_clouds_without_unique_axes_are_refused_by_name_and_gap(name: str) -> None:
    batch = Clouds.join([shapes()["water"], shapes()[name]])
    with pytest.raises(
        DegenerateFrame, match=r"1 of 2 clouds.*cloud 1 has moments .* apart"
    ) as error:
        poses_of(PCAFrame(), batch)
    assert "gap=0.0001" in str(error.value)
    assert "PCAFrame(on_degenerate='orbit')" in str(error.value)


@pytest.mark.parametrize("name", DEGENERATE)
def test_clouds_without_unique_axes_are_warned_of_or_given_other_poses(name: str) -> None:
    batch = Clouds.join([shapes()["water"], shapes()[name]])
    with pytest.warns(UserWarning, match="cloud 1 has moments"):
        assert poses_of(PCAFrame(on_degenerate="warn"), batch).owners.lengths.tolist() == [8, 8]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        poses = poses_of(PCAFrame(on_degenerate="orbit"), batch)
    orbit = poses_of(OrbitFrame(), shapes()[name])
    assert poses.owners.lengths.tolist() == [8, orbit.count]
    torch.testing.assert_close(poses.rotation[8:], orbit.rotation, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", FLAT)
def test_clouds_on_a_line_or_in_a_point_need_no_policy(name: str) -> None:
    batch = shapes()[name]
    poses = poses_of(PCAFrame(), batch)
    orbit = poses_of(OrbitFrame(), batch)
    torch.testing.assert_close(poses.rotation, orbit.rotation)
    assert poses.rank.tolist() == orbit.rank.tolist() == [0 if name == "one_point" else 1]


def stretched(gap: float, size: float = 1.0) -> tuple[torch.Tensor, Segments]:
    """A cloud whose moments are 1, 1 − gap and 1/2."""
    source = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(6, 3, generator=source, dtype=torch.float64))[0]
    return size * x * torch.tensor([1, 1 - gap, 0.5], dtype=torch.float64).sqrt(), Segments(
        torch.tensor([0, 6])
    )


def test_the_gap_that_counts_is_relative() -> None:
    for size in (1e-3, 1.0, 1e3):
        for gap, refused in ((2e-3, False), (5e-4, True)):
            x, segments = stretched(gap, size)
            values = torch.linalg.eigvalsh(second_moments(x, segments))
            torch.testing.assert_close(float(relative_gaps(values)), gap, rtol=1e-9, atol=0)
            if refused:
                with pytest.raises(DegenerateFrame, match=r"5\.0e-04 of the largest"):
                    PCAFrame(gap=1e-3)(x, segments)
            else:
                PCAFrame(gap=1e-3)(x, segments)


def test_on_a_line_there_are_two_axes_and_one_without_reflections() -> None:
    batch = shapes(1)["two_points"]
    assert sorted(poses_of(PCAFrame(), batch).rotation.flatten().tolist()) == [-1, 1]
    assert poses_of(PCAFrame(), batch, proper=True).rotation.flatten().tolist() == [1]


@pytest.mark.parametrize("gap", [0.0, 1.0, -0.1, float("nan")])
def test_gaps_out_of_range_are_refused(gap: float) -> None:
    with pytest.raises(UsageError, match=f"gap: found {gap}, expected between 0 and 1"):
        PCAFrame(gap=gap)


def test_policies_that_do_not_exist_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"on_degenerate: found 'ignore'.*'error', 'warn', 'orbit'"
    ):
        PCAFrame(on_degenerate="ignore")
