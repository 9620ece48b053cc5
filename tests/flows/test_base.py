"""The base density is normalised on the zero-mean subspace, and its draws follow it."""

import math

import pytest
import torch
from example_flows import ragged, subspace_basis
from tolerances import TOLERANCE

from eqflow import rng
from eqflow.errors import NotCentered
from eqflow.flows import CenteredNormal
from eqflow.geometry import Clouds, Segments, centre_of_mass


def grid_of(freedom: int, reach: float, count: int) -> tuple[torch.Tensor, float]:
    """Coordinates of a grid, shape (count^freedom, freedom), and the volume of a cell."""
    line = torch.linspace(-reach, reach, count, dtype=torch.float64)
    mesh = torch.meshgrid(*[line] * freedom, indexing="ij")
    return torch.stack([m.reshape(-1) for m in mesh], 1), float(line[1] - line[0]) ** freedom


@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 1), (2, 2), (2, 3), (4, 1)])
def test_the_density_integrates_to_one_over_the_subspace(n: int, d: int) -> None:
    coordinates, cell = grid_of((n - 1) * d, reach=8.0, count=33)
    x = torch.einsum("gk,knd->gnd", coordinates, subspace_basis(n, d))
    clouds = Clouds.from_dense(x)
    total = CenteredNormal().log_prob(clouds.x, clouds.ptr).exp().sum() * cell
    assert float(total) == pytest.approx(1, abs=1e-9)


def test_the_density_is_that_of_independent_coordinates_in_an_orthonormal_basis() -> None:
    x, clouds = ragged(sizes=(5, 2))
    base = CenteredNormal().log_prob(x, clouds)
    for cloud, n in enumerate((5, 2)):
        rows = x[clouds.ptr[cloud] : clouds.ptr[cloud + 1]]
        k = torch.einsum("knd,nd->k", subspace_basis(n, 3), rows)
        expected = -0.5 * k.square().sum() - 0.5 * len(k) * math.log(2 * math.pi)
        assert float(base[cloud]) == pytest.approx(float(expected), rel=TOLERANCE[torch.float64])


def test_a_lone_point_has_log_density_zero_and_an_empty_cloud_too() -> None:
    clouds = Segments(torch.tensor([0, 1, 1]))
    found = CenteredNormal().log_prob(torch.zeros(1, 3), clouds)
    assert found.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_off_centre_are_refused(dtype: torch.dtype) -> None:
    x, clouds = ragged()
    CenteredNormal().log_prob(x.to(dtype), clouds)
    with pytest.raises(NotCentered, match=r"cloud 0.*centred"):
        CenteredNormal().log_prob(x.to(dtype) + 0.1, clouds)


def test_draws_are_centred_and_have_unit_variance_on_the_subspace() -> None:
    clouds = Segments.of_lengths(torch.full((4000,), 4))
    like = torch.zeros((), dtype=torch.float64)
    x = CenteredNormal().sample(clouds, 2, like, rng.generator(0, "test"))
    assert centre_of_mass(x, clouds).abs().max() < TOLERANCE[torch.float64]
    k = torch.einsum("knd,bnd->bk", subspace_basis(4, 2), x.reshape(4000, 4, 2))
    assert torch.allclose(k.mean(0), torch.zeros_like(k[0]), atol=4 / 4000**0.5)
    assert torch.allclose(k.T.cov(), torch.eye(6).double(), atol=6 / 4000**0.5)


def test_draws_are_a_function_of_the_generator() -> None:
    clouds = Segments(torch.tensor([0, 3]))
    like = torch.zeros((), dtype=torch.float64)
    first, again = (
        CenteredNormal().sample(clouds, 3, like, rng.generator(1, "test")) for _ in range(2)
    )
    assert torch.equal(first, again)
