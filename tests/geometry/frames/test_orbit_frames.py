import pytest
import torch
from every_frame import poses_of, shapes

from eqflow.errors import UsageError
from eqflow.geometry import Clouds, Segments
from eqflow.geometry.frames import OrbitFrame

# Order of the point group of E(3) and of its rotations, what turns about a line or point left out.
ORDERS = {
    "generic": (1, 1),
    "pyridine": (4, 2),
    "water": (4, 2),
    "ammonia": (6, 3),
    "benzene": (24, 12),
    "square": (16, 8),
    "methane": (24, 12),
    "sf6": (48, 24),
    "icosahedron": (120, 60),
    "c60": (120, 60),
    "co2": (2, 2),
    "two_points": (1, 1),
    "one_point": (1, 1),
    "coincident": (1, 1),
}
IN_THE_PLANE = {"benzene": (12, 6), "square": (8, 4), "water": (2, 1), "co2": (4, 2)}


@pytest.mark.parametrize(("name", "orders"), ORDERS.items())
def test_there_are_as_many_poses_as_the_point_group_has_elements(name, orders) -> None:
    batch = shapes()[name]
    for proper, order in zip((False, True), orders, strict=True):
        poses = poses_of(OrbitFrame(), batch, proper)
        assert poses.owners.lengths.tolist() == [order] * len(batch)
        assert poses.weight.tolist() == [1 / order] * poses.count


@pytest.mark.parametrize(("name", "orders"), IN_THE_PLANE.items())
def test_there_are_as_many_in_the_plane(name, orders) -> None:
    for proper, order in zip((False, True), orders, strict=True):
        assert poses_of(OrbitFrame(), shapes(2)[name], proper).count == order


@pytest.mark.parametrize("dimension", [2, 3, 4])
def test_simplices_and_cross_polytopes_have_the_poses_of_their_groups(dimension: int) -> None:
    unit = torch.eye(dimension, dtype=torch.float64)
    factorial = {2: 2, 3: 6, 4: 24}[dimension]
    cross = torch.cat([unit, -unit])
    segments = Segments(torch.tensor([0, len(cross)]))
    order = 2**dimension * factorial
    assert OrbitFrame()(cross, segments).count == order
    assert OrbitFrame()(cross, segments, proper=True).count == order // 2
    # The corners of a simplex: the unit vectors of one dimension more, in the plane they span.
    corners = torch.eye(dimension + 1, dtype=torch.float64) - 1 / (dimension + 1)
    basis = torch.linalg.svd(corners)[2][:dimension]
    simplex = corners @ basis.T
    segments = Segments(torch.tensor([0, dimension + 1]))
    assert OrbitFrame()(simplex, segments).count == factorial * (dimension + 1)


@pytest.mark.parametrize("name", ORDERS)
def test_a_cloud_looks_the_same_in_all_of_its_poses(name: str) -> None:
    batch = shapes()[name]
    for proper in (False, True):
        poses = poses_of(OrbitFrame(), batch, proper)
        rows, chosen = batch.segments.select(poses.owners.ids)
        posed = torch.einsum("nd,nde->ne", batch.x[chosen], poses.rotation[rows.ids])
        numbers = batch.numbers[chosen]
        for pose in range(poses.count):
            here = slice(int(rows.ptr[pose]), int(rows.ptr[pose + 1]))
            first = int(poses.owners.ptr[poses.owners.ids[pose]])
            there = slice(int(rows.ptr[first]), int(rows.ptr[first + 1]))
            near = (posed[here, None] - posed[None, there]).norm(dim=-1) < 1e-12
            alike = near & (numbers[here, None] == numbers[None, there])
            assert alike.any(0).all()
            assert alike.any(1).all()


def test_poses_depend_smoothly_on_a_cloud_that_stays_of_one_kind() -> None:
    batch = shapes()["generic"]
    source = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.x.shape, generator=source, dtype=torch.float64)
    before = poses_of(OrbitFrame(), batch)
    for size in (1e-10, 1e-7):
        after = poses_of(OrbitFrame(), batch.with_positions(batch.x + size * noise))
        assert float((after.rotation - before.rotation).abs().max()) < 10 * size


def test_a_cloud_that_is_symmetric_up_to_the_tolerance_counts_as_symmetric() -> None:
    batch = shapes()["methane"]
    noise = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(0)).double()
    for size, count in ((1e-9, 24), (1e-3, 1)):
        assert poses_of(OrbitFrame(), batch.with_positions(batch.x + size * noise)).count == count
    bent = batch.with_positions(batch.x + 1e-3 * noise)
    assert poses_of(OrbitFrame(tolerance=3e-2), bent).count == 24


def test_points_that_are_doubled_add_no_look() -> None:
    for name in ("generic", "methane"):
        batch = shapes()[name][0]
        twice = Clouds(
            batch.x.repeat(2, 1), torch.tensor([0, 2 * len(batch.x)]), batch.numbers.repeat(2)
        )
        once, doubled = poses_of(OrbitFrame(), batch), poses_of(OrbitFrame(), twice)
        assert doubled.count % once.count == 0
        near = torch.cdist(doubled.rotation.flatten(1), once.rotation.flatten(1)) < 1e-6
        assert (near.sum(0) == doubled.count // once.count).all()


def test_mirror_images_are_told_apart_by_rotations_alone() -> None:
    batch = shapes()["generic"][0]
    mirrored = batch.with_positions(batch.x * torch.tensor([1.0, 1.0, -1.0]).double())
    for proper, same in ((False, True), (True, False)):
        one, other = (poses_of(OrbitFrame(), cloud, proper) for cloud in (batch, mirrored))
        placed = batch.x @ one.rotation[0], mirrored.x @ other.rotation[0]
        assert torch.allclose(*placed, rtol=0, atol=1e-12) == same


def test_axes_are_those_of_points_far_enough_to_be_well_conditioned() -> None:
    x = torch.tensor([[1e-3, 0, 0], [0, 1.0, 0], [0, 0.2, 1.1], [0.3, -1.2, 0.4]]).double()
    poses = OrbitFrame()(x, Segments(torch.tensor([0, 4])))
    assert float((x[1:] @ poses.rotation)[:, :, 0].max()) > 0.9
    assert float((x[0] @ poses.rotation).abs().max()) <= 1e-3


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 0.1, float("nan")])
def test_tolerances_out_of_range_are_refused(tolerance: float) -> None:
    with pytest.raises(UsageError, match=f"tolerance: found {tolerance}, expected between 0 and"):
        OrbitFrame(tolerance)
