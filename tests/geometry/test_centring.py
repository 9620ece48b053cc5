"""Centring is the orthogonal projection onto the zero-mean subspace of each cloud."""

import pytest
import torch
from tolerances import TOLERANCE
from torch.autograd import gradcheck, gradgradcheck

from eqflow.errors import NotCentered, ShapeError
from eqflow.geometry import (
    Clouds,
    centre_of_mass,
    centred,
    degrees_of_freedom,
    require_centred,
)
from eqflow.testing import assert_equivariant, assert_independent, clouds

RAGGED = Clouds.join([batch for name, batch in clouds() if name != "large"])
TINY = dict(clouds())["water"]


def as_matrix(batch):
    size = batch.x.numel()
    basis = torch.eye(size, dtype=batch.x.dtype).reshape(size, *batch.x.shape)
    return torch.stack([centred(v, batch.segments).reshape(-1) for v in basis], 1)


@pytest.mark.parametrize("batch", [TINY, dict(clouds())["generic"]], ids=["one", "two"])
def test_centring_is_an_orthogonal_projection_of_the_right_rank(batch):
    projection = as_matrix(batch)
    torch.testing.assert_close(projection @ projection, projection, rtol=0, atol=1e-14)
    torch.testing.assert_close(projection, projection.T, rtol=0, atol=1e-14)
    rank = int(degrees_of_freedom(batch.ptr, batch.dimension).sum())
    assert int(torch.linalg.matrix_rank(projection)) == rank
    assert float(projection.trace()) == pytest.approx(rank)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_centred_clouds_have_their_centre_at_the_origin_and_pass_the_check(dtype):
    for _, batch in clouds(dtype=dtype):
        x = centred(batch.x, batch.ptr)
        offset = centre_of_mass(x, batch.ptr).norm(dim=-1)
        assert float(offset.max()) <= TOLERANCE[dtype] * (1 + float(x.norm(dim=-1).max()))
        require_centred(x, batch.ptr)


def test_differences_within_a_cloud_stay_as_they_are():
    for _, batch in clouds():
        before, after = torch.cdist(batch.x, batch.x), centred(batch.x, batch.ptr)
        same = batch.segments.ids[:, None] == batch.segments.ids[None, :]
        error = (torch.cdist(after, after) - before)[same].abs().max()
        assert float(error) < 1e-6


def test_centring_moves_with_rotations_and_not_with_translations():
    for _, batch in clouds():
        assert_equivariant(lambda x, ptr, h: centred(x, ptr), batch, "E(3)", "vector")
        assert_equivariant(lambda x, ptr, h: centre_of_mass(x, ptr), batch, "E(3)", "point")
        assert_equivariant(lambda x, ptr, h: centred(x, ptr), batch, "S(n)", "vector")
    assert_independent(lambda x, ptr, h: centred(x, ptr), RAGGED)


def test_centring_differentiates_twice_and_forward():
    batch = dict(clouds())["generic"]
    x = batch.x.clone().requires_grad_()
    assert gradcheck(lambda x: centred(x, batch.ptr), x, check_forward_ad=True)
    assert gradgradcheck(lambda x: centred(x.sin(), batch.ptr), x)


def test_a_cloud_off_the_origin_is_refused_by_its_index():
    batch = Clouds.from_dense(torch.stack([centred(TINY.x, TINY.ptr), TINY.x + 0.01]))
    with pytest.raises(NotCentered, match="cloud 1"):
        require_centred(batch.x, batch.ptr)


def test_degrees_of_freedom_count_the_subspace():
    ptr = torch.tensor([0, 0, 1, 5])
    assert degrees_of_freedom(ptr, 3).tolist() == [0, 0, 9]


def test_a_type_without_a_tolerance_is_refused_by_name():
    with pytest.raises(ShapeError, match="float16"):
        require_centred(TINY.x.half(), TINY.segments)
