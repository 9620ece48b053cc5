"""A backbone averaged over frames as a velocity field: symmetry, and derivatives that are right."""

import pytest
import torch
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.geometry import Clouds, Segments, centred
from eqflow.geometry.frames import OrbitFrame, PCAFrame, WeightedFrame
from eqflow.nn import FrameField
from eqflow.nn.backbones import AbstractBackbone, PointNetBackbone, TransformerBackbone
from eqflow.testing import assert_equivariant, assert_independent, clouds

SHAPES = {
    f"{name}, {dimension}-D": batch
    for dimension in (1, 2, 3)
    for name, batch in clouds(dimension=dimension)
    if name not in ("large", "c60")
}
every_cloud = pytest.mark.parametrize("batch", SHAPES.values(), ids=SHAPES)
TIME = torch.tensor(0.37, dtype=torch.float64)


def small(dimension: int = 3, **options) -> FrameField:
    def backbone(features: int) -> AbstractBackbone:
        return TransformerBackbone(dimension, features, dimension, width=8, layers=1, heads=2)

    with rng.seeded(0, "test"):
        field = FrameField(backbone, **options).double()
    return field.eval()


def velocity_of(field: FrameField, context: bool = True):
    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(TIME, x, Edges.complete(ptr), h / 10 if context else None)

    return velocity


@every_cloud
def test_the_velocity_turns_with_the_cloud_and_has_no_mean(batch: Clouds) -> None:
    velocity = velocity_of(small(batch.dimension, context_features=1, time_frequencies=2))
    for group in (f"E({batch.dimension})", "S(n)"):
        assert_equivariant(velocity, batch, group=group, output="vector")
    assert_independent(velocity, batch)
    mean = batch.segments.mean(velocity(batch.x, batch.ptr, batch.h))
    assert float(mean.detach().abs().max()) < 1e-12


def test_without_reflections_it_tells_a_cloud_from_its_mirror_image() -> None:
    batch = SHAPES["generic, 3-D"]
    velocity = velocity_of(small(context_features=1, reflections=False))
    assert_equivariant(velocity, batch, group="SE(3)", output="vector")
    with pytest.raises(AssertionError, match="reflection"):
        assert_equivariant(velocity, batch, group="E(3)", output="vector")


@pytest.mark.parametrize("frame", ["weighted", "pca", WeightedFrame(threshold=0.6)])
def test_derivatives_of_first_and_second_order_are_right(frame) -> None:
    field = small(2, frame=frame)
    edges = Edges.complete(torch.tensor([0, 3]))
    with rng.seeded(1, "test"):
        x = torch.nn.init.normal_(torch.empty(3, 2, dtype=torch.float64)).requires_grad_()

    def velocity(y: Tensor) -> Tensor:
        return field(TIME, y, edges)

    assert torch.autograd.gradcheck(velocity, x)
    assert torch.autograd.gradgradcheck(velocity, x)


@every_cloud
def test_gradients_are_finite_on_every_cloud(batch: Clouds) -> None:
    field = small(batch.dimension)
    x = batch.x.clone().requires_grad_()
    value = field(TIME, x, Edges.complete(batch.ptr))
    (first,) = torch.autograd.grad((value * torch.sin(batch.x + 1)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.cos(batch.x)).sum(), x)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_one_drawn_pose_in_training_is_right_on_average() -> None:
    field = small(context_features=1, training_draws=1).train()
    batch = SHAPES["ammonia, 3-D"]
    assert not field.is_equivariant
    copies = Clouds.from_dense(batch.x.expand(4000, *batch.x.shape))
    context = batch.h.repeat(4000, 1) / 10
    with rng.seeded(0, "draws"):
        drawn = field(TIME, copies.x, Edges.complete(copies.ptr), context).detach()
    drawn = drawn.reshape(4000, *batch.x.shape)
    exact = velocity_of(field.eval())(batch.x, batch.ptr, batch.h).detach()
    assert field.is_equivariant
    error = (drawn.mean(0) - exact) / (drawn.std(0) / 4000**0.5)
    assert float(drawn.std(0).max()) > 0.01
    assert float(error.abs().max()) < 4.5


def test_drawn_poses_follow_the_global_generator_as_dropout_does() -> None:
    field = small(training_draws=1).train()
    batch = SHAPES["generic, 3-D"]

    def drawn(seed: int) -> Tensor:
        with rng.seeded(seed, "step"):
            return field(TIME, batch.x, Edges.complete(batch.ptr))

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_a_pca_field_goes_on_where_moments_are_nearly_equal() -> None:
    field, batch = small(frame="pca"), SHAPES["square, 3-D"]
    x = batch.x.clone().requires_grad_()
    value = field(TIME, x, Edges.complete(batch.ptr))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_a_cloud_that_a_solver_lost_has_no_velocity_and_the_others_have_theirs() -> None:
    field, batch = small(), SHAPES["generic, 3-D"]
    edges = Edges.complete(batch.ptr)
    x = batch.x.clone()
    x[0] = torch.inf
    velocity = field(TIME, x, edges)
    expected = field(TIME, batch.x, edges)
    first = int(batch.ptr[1])
    assert velocity[:first].isnan().all()
    assert torch.equal(velocity[first:], expected[first:])


def test_frames_that_jump_on_the_way_are_refused() -> None:
    with pytest.raises(UsageError, match=r"OrbitFrame\(.*\) jump.*'weighted' or 'pca'"):
        small(frame="orbit")
    with pytest.raises(UsageError, match="OrbitFrame"):
        small(frame=OrbitFrame())
    for policy in ("error", "orbit"):
        with pytest.raises(UsageError, match="PCAFrame"):
            small(frame=PCAFrame(gap=0.1, on_degenerate=policy))
    assert small(frame="pca").average.frame.jump_codimension == 2


def test_a_backbone_whose_output_is_no_velocity_is_refused() -> None:
    with pytest.raises(UsageError, match="2 columns for points of 3"):
        FrameField(lambda features: TransformerBackbone(3, features, 2, width=8, heads=2))
    made = TransformerBackbone(3, 1, 3, width=8, heads=2)
    for wrong in (made, lambda features: torch.sin):
        with pytest.raises(UsageError, match="expected a function that makes an AbstractBackbone"):
            FrameField(wrong)
    with pytest.raises(UsageError, match="pooled=True"):
        FrameField(lambda features: PointNetBackbone(3, features, 3, pooled=True))


def test_it_is_symmetric_in_float32() -> None:
    field, batch = small().float(), dict(clouds(dtype=torch.float32))["methane"]

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(TIME.float(), x, Edges.complete(ptr))

    for group in ("E(3)", "S(n)"):
        assert_equivariant(velocity, batch, group, "vector", tolerance=TOLERANCE[torch.float32])


def test_the_centre_of_the_cloud_makes_no_difference() -> None:
    field, clouds_ = small(), Segments(torch.tensor([0, 4]))
    with rng.seeded(2, "test"):
        x = torch.nn.init.normal_(torch.empty(4, 3, dtype=torch.float64))
    edges = Edges.complete(clouds_)
    moved = field(TIME, x + 5, edges)
    assert torch.allclose(moved, field(TIME, centred(x, clouds_), edges), atol=1e-12)
