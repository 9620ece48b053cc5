"""Backbones that depend on the order of points, made symmetric under every permutation."""

import pytest
import torch
from torch import Tensor, nn

from eqflow import rng
from eqflow.errors import DataError, UsageError
from eqflow.nn import FrameAverage, OrderedPoints
from eqflow.nn.backbones import FlatMLPBackbone
from eqflow.testing import assert_equivariant, assert_independent, clouds, equivariance_error

SHAPES = {name: batch for name, batch in clouds() if name not in ("far", "large")}


class Numbered(nn.Module):
    """Rows that depend on a point's place in its cloud, its position and its features."""

    def forward(self, x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        place = torch.arange(len(x), dtype=x.dtype) - ptr[:-1].repeat_interleave(ptr.diff())
        features = 0 if h is None else h[:, :1]
        return torch.sin(x * (1 + place.unsqueeze(1)) + x.new_tensor([0.3, 0.7, 1.1]) + features)


@pytest.mark.parametrize("group", ["E(3)", "SE(3)"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_it_is_exact_on_every_cloud(name: str, group: str) -> None:
    model = FrameAverage(OrderedPoints(Numbered()), group=group, frame="orbit", output="vector")
    for symmetry in (group, "S(n)"):
        assert_equivariant(model, SHAPES[name], symmetry, "vector", tolerance=1e-12)


def test_the_backbone_alone_is_not() -> None:
    model = FrameAverage(Numbered(), group="E(3)", frame="orbit", output="vector")
    assert equivariance_error(model, SHAPES["benzene"], "S(n)", "vector") > 0.1


def test_a_flat_perceptron_becomes_symmetric_under_motions_and_permutations() -> None:
    with rng.seeded(0, "test"):
        backbone = FlatMLPBackbone(5, 3, 1, 3).double()
    model = FrameAverage(OrderedPoints(backbone), group="E(3)", frame="orbit", output="vector")
    for symmetry in ("E(3)", "S(n)"):
        assert_equivariant(model, SHAPES["methane"], symmetry, "vector", tolerance=1e-12)


def test_points_that_agree_in_everything_share_a_row() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    ptr, h = torch.tensor([0, 3]), torch.ones(3, 1, dtype=torch.float64)
    rows = OrderedPoints(Numbered())(x, ptr, h)
    assert torch.equal(rows[0], rows[2])
    h[2] = 2
    rows = OrderedPoints(Numbered())(x, ptr, h)
    assert not torch.equal(rows[0], rows[2])


def test_clouds_do_not_see_each_other() -> None:
    model = FrameAverage(OrderedPoints(Numbered()), group="E(3)", frame="orbit", output="vector")
    assert_independent(model, SHAPES["generic"])


def test_gradients_go_through() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    ptr = torch.tensor([0, 4])
    model = OrderedPoints(Numbered())
    assert torch.autograd.gradcheck(lambda y: model(y, ptr), x)


def test_empty_clouds_and_rows_a_cloud_pass_through() -> None:
    ptr = torch.tensor([0, 0])
    assert OrderedPoints(Numbered())(torch.zeros(0, 3), ptr, None).shape == (0, 3)
    pooled = OrderedPoints(lambda x, ptr, h: x.new_ones(len(ptr) - 1, 2))
    assert pooled(torch.zeros(3, 3), torch.tensor([0, 1, 3]), None).shape == (2, 2)


def test_a_position_that_is_not_finite_is_refused_by_the_average() -> None:
    model = FrameAverage(OrderedPoints(Numbered()))
    with pytest.raises(DataError, match="not finite"):
        model(torch.full((2, 3), torch.nan), torch.tensor([0, 2]))


@pytest.mark.parametrize("backbone", [None, 3, Numbered])
def test_what_cannot_be_called_is_refused(backbone: object) -> None:
    with pytest.raises(UsageError, match="OrderedPoints: found"):
        OrderedPoints(backbone)


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(UsageError, match="OrderedPoints: the backbone returned a NoneType"):
        OrderedPoints(lambda x, ptr, h: None)(torch.zeros(2, 3), torch.tensor([0, 2]))
