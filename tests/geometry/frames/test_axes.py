import pytest
import torch
from torch import Tensor

from eqflow.geometry.frames.axes import completion, perpendicular, pose, residual


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 6])
def test_poses_are_orthogonal_with_the_determinant_that_was_asked_for(d: int) -> None:
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    rotation = pose(drawn(3, d - 1, d), sign)
    unit = torch.eye(d, dtype=torch.float64).expand(3, d, d)
    torch.testing.assert_close(rotation.mT @ rotation, unit, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.linalg.det(rotation), sign, rtol=0, atol=1e-14)


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_axes_span_what_the_vectors_do_in_their_order(d: int) -> None:
    vectors = drawn(3, d - 1, d)
    rotation = pose(vectors, torch.ones(3, dtype=torch.float64))
    along = vectors @ rotation  # lower triangular, its diagonal positive: a QR decomposition
    assert float(along.triu(1).abs().max()) < 1e-14
    assert float(along.diagonal(dim1=1, dim2=2).min()) > 0


@pytest.mark.parametrize("d", [3, 4])
def test_poses_turn_with_their_vectors(d: int) -> None:
    vectors, turn = drawn(2, d - 1, d), torch.linalg.qr(drawn(d, d))[0]
    sign = torch.ones(2, dtype=torch.float64)
    turned = pose(vectors @ turn.T, sign * torch.linalg.det(turn))
    torch.testing.assert_close(turned, turn @ pose(vectors, sign), rtol=0, atol=1e-14)


def test_axes_of_vectors_that_are_nearly_parallel_are_perpendicular_to_rounding() -> None:
    first = drawn(1, 5)
    vectors = torch.stack([first, first + 1e-7 * drawn(2, 5)[1:], drawn(3, 5)[2:]], 1)
    rotation = pose(torch.cat([vectors, drawn(4, 5)[3:].unsqueeze(1)], 1), torch.ones(1).double())
    gram = rotation.mT @ rotation - torch.eye(5, dtype=torch.float64)
    assert float(gram.abs().max()) < 1e-14


def test_what_is_left_of_vectors_is_perpendicular_to_the_axes() -> None:
    axes = pose(drawn(4, 2, 3), torch.ones(4).double()).mT[:, :2]
    left = residual(drawn(4, 3), axes)
    assert float(torch.einsum("mkd,md->mk", axes, left).abs().max()) < 1e-15
    torch.testing.assert_close(residual(drawn(4, 3), axes[:, :0]), drawn(4, 3))


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_the_last_axis_completes_a_right_handed_set(d: int) -> None:
    axes = pose(drawn(3, d - 1, d), -torch.ones(3).double()).mT[:, : d - 1]
    last = perpendicular(axes)
    whole = torch.cat([axes, last.unsqueeze(1)], 1)
    torch.testing.assert_close(torch.linalg.det(whole), torch.ones(3).double())


@pytest.mark.parametrize("d", [2, 3, 4])
def test_a_completion_is_a_unit_vector_perpendicular_to_any_number_of_axes(d: int) -> None:
    for k in range(d):
        axes = pose(drawn(5, d - 1, d), torch.ones(5).double()).mT[:, :k]
        found = completion(axes)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5).double())
        along = torch.einsum("mkd,md->mk", axes, found)
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-15)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_poses_can_be_differentiated_twice(d: int) -> None:
    vectors = drawn(2, d - 1, d).requires_grad_()
    sign = torch.tensor([1.0, -1.0]).double()
    assert torch.autograd.gradcheck(lambda v: pose(v, sign), vectors)
    assert torch.autograd.gradgradcheck(lambda v: pose(v, sign), vectors)
