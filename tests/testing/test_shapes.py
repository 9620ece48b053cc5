"""The clouds to test on have the symmetries and degeneracies they are named for."""

import pytest
import torch
from tolerances import TOLERANCE

from eqflow.geometry import Clouds, centred
from eqflow.testing import clouds

SHAPES = dict(clouds())
NINE = ("generic", "pyridine", "water", "ammonia", "benzene", "square", "methane", "sf6", "co2")
DEGENERATE = ("one_point", "two_points", "coincident", "icosahedron", "c60", "far", "large")

# Order of the point group, as the number of orthogonal matrices that permute the atoms. Where a
# molecule is planar or collinear, those that differ only outside its span are counted once.
SYMMETRIES = {"pyridine": 2, "water": 2, "ammonia": 6, "benzene": 12, "square": 8, "methane": 24}
SYMMETRIES |= {"sf6": 48, "co2": 2, "icosahedron": 120, "c60": 120}


def test_all_shapes_are_there_by_name():
    assert set(SHAPES) == {*NINE, *DEGENERATE}


def test_in_the_plane_there_are_those_that_fit_into_it():
    flat = dict(clouds(dimension=2))
    assert set(SHAPES) - set(flat) == {"ammonia", "methane", "sf6", "icosahedron", "c60"}
    for name, batch in flat.items():
        assert batch.dimension == 2
        if name in SYMMETRIES:
            torch.testing.assert_close(batch.x, SHAPES[name].x[:, :2])


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_any_dimension_and_type_can_be_had(dimension, dtype):
    for _, batch in clouds(dimension, dtype):
        assert (batch.dimension, batch.x.dtype) == (dimension, dtype)
        assert batch.x.isfinite().all()
        assert batch.numbers is not None


def test_they_are_the_same_every_time():
    for (_, one), (_, two) in zip(clouds(), clouds(), strict=True):
        assert torch.equal(one.x, two.x)


def test_they_can_be_joined_into_one_batch():
    batch = Clouds.join(list(SHAPES.values()))
    assert len(batch) == sum(len(part) for part in SHAPES.values())


def distances(x, y):
    """By differences: the product that torch takes for many points loses half of the digits."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def poses(x, numbers):
    """The matrices that bring a centred cloud onto itself, as permutations of its points."""
    found = set()
    rank = int(torch.linalg.matrix_rank(x, atol=1e-6))
    basis = torch.linalg.svd(x)[2][:rank]
    flat = x @ basis.T
    anchor = independent_rows(flat, rank)
    candidates = torch.cartesian_prod(*[torch.arange(len(x))] * rank).reshape(-1, rank)
    matrices = torch.linalg.solve(flat[anchor], flat[candidates])
    gram = matrices @ matrices.mT - torch.eye(rank, dtype=x.dtype)
    for matrix in matrices[gram.abs().amax((1, 2)) < 1e-6]:
        distance = distances(flat @ matrix, flat)
        nearest = distance.argmin(1)
        here = distance.gather(1, nearest[:, None])
        if here.max() < 1e-12 and torch.equal(numbers[nearest], numbers):
            found.add(tuple(nearest.tolist()))
    return found


def independent_rows(x, rank):
    chosen: list[int] = []
    for i in range(len(x)):
        if torch.linalg.matrix_rank(x[[*chosen, i]], atol=1e-6) > len(chosen):
            chosen.append(i)
    return chosen[:rank]


@pytest.mark.parametrize("name", SYMMETRIES)
def test_a_molecule_has_its_point_group_to_the_last_digits(name):
    batch = SHAPES[name]
    x = centred(batch.x, batch.ptr)
    assert len(poses(x, batch.numbers)) == SYMMETRIES[name]


def test_bonds_have_their_lengths():
    lengths = {"water": 0.958, "ammonia": 1.012, "methane": 1.087, "sf6": 1.561, "co2": 1.16}
    for name, length in lengths.items():
        x = SHAPES[name].x
        assert torch.allclose((x[1:] - x[0]).norm(dim=-1), x.new_tensor(length), atol=1e-3)
    pyridine = SHAPES["pyridine"].x
    assert float((pyridine[3] - pyridine[2]).norm()) == pytest.approx(1.34, abs=0.01)


def test_c60_is_a_cage_of_twelve_pentagons_with_bonds_of_two_lengths():
    x = SHAPES["c60"].x
    assert x.shape == (60, 3)
    radius = x.norm(dim=-1)
    assert float((radius.max() - radius.min()) / radius.max()) < 1e-15
    nearest = distances(x, x).sort().values[:, 1:5]
    expected = x.new_tensor([1.40, 1.45, 1.45]).expand(60, 3)
    torch.testing.assert_close(nearest[:, :3], expected, rtol=1e-14, atol=0)
    assert (nearest[:, 3] > 2.2).all()
    bonds = torch.cdist(x, x) < 1.425
    ring = (torch.cdist(x, x) < 1.5) & ~bonds & ~torch.eye(60, dtype=torch.bool)
    reached = torch.linalg.matrix_power(torch.eye(60).double() + ring.double(), 4) > 0
    assert (reached.sum(1) == 5).all()


def test_degenerate_clouds_are_degenerate():
    assert SHAPES["one_point"].sizes.tolist() == [1]
    assert SHAPES["two_points"].sizes.tolist() == [2]
    assert SHAPES["large"].sizes.min() >= 100
    distance = torch.cdist(SHAPES["coincident"].x, SHAPES["coincident"].x)
    assert int((distance == 0).sum()) == 6 + 4
    for name, rank in {"co2": 1, "benzene": 2, "methane": 3}.items():
        x = centred(SHAPES[name].x, SHAPES[name].ptr)
        assert int(torch.linalg.matrix_rank(x, atol=1e-9)) == rank
