"""The trace without autograd is the Jacobian's, on every kind of complete graph."""

import pytest
import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Dual
from eqflow.errors import ShapeError
from eqflow.flows import ContinuousFlow, Exact
from eqflow.geometry import Segments, centred, random_orthogonal, rotate
from eqflow.nn import EGNNField, exact_trace
from eqflow.testing import clouds as degenerate_clouds

SIZES = (4, 7, 1, 2, 4)
TIME = torch.tensor(0.3, dtype=torch.float64)


def enlarged(layers: int, seed: int = 0, **options) -> EGNNField:
    with rng.seeded(seed, "weights"):
        field = EGNNField(width=8, layers=layers, **options).double()
        for parameter in field.parameters():
            parameter.data.normal_(0, 0.3)
    return field


def packed(dimension: int = 3) -> tuple[Tensor, Segments]:
    clouds = Segments.of_lengths(torch.tensor(SIZES))
    source = rng.generator(0, "x")
    x = rng.normal((clouds.rows, dimension), torch.zeros((), dtype=torch.float64), source)
    return centred(x, clouds), clouds


def by_autograd(field: EGNNField, x: Tensor, clouds: Segments, context=None) -> Tensor:
    edges = field.connect(x, clouds)
    full = torch.autograd.functional.jacobian(lambda moved: field(TIME, moved, edges, context), x)
    return clouds.sum(full.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1))


# Points at a time, and features from which on the ends of a network are carried by parts.
@pytest.mark.parametrize(("budget", "wide"), [(1, 1), (2000, 48), (2**19, 1)])
@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"attention": False},
        {"attention": True},
        {"coordinate_range": None, "attention": False},
        {"coordinate_update": "mean"},
    ],
    ids=str,
)
def test_velocity_and_trace_are_those_of_the_jacobian(
    options, layers, dimension, budget, wide, monkeypatch
) -> None:
    monkeypatch.setattr(exact_trace, "CPU_BUDGET", budget)
    monkeypatch.setattr(exact_trace, "WIDE", wide)
    field = enlarged(layers, **options)
    x, clouds = packed(dimension)
    edges = field.connect(x, clouds)
    velocity, trace = field.exact_trace(TIME, x, edges)
    expected = by_autograd(field, x, clouds)
    torch.testing.assert_close(velocity, field(TIME, x, edges), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(trace, expected, rtol=1e-10, atol=1e-11)


def test_the_context_enters() -> None:
    field = enlarged(3, context_features=2)
    x, clouds = packed()
    context = rng.normal((clouds.rows, 2), x, rng.generator(0, "context"))
    _, trace = field.exact_trace(TIME, x, field.connect(x, clouds), context)
    expected = by_autograd(field, x, clouds, context)
    torch.testing.assert_close(trace, expected, rtol=1e-10, atol=1e-11)


SHAPES = dict(degenerate_clouds())


@pytest.mark.parametrize("name", SHAPES)
def test_coincident_collinear_and_symmetric_clouds_have_the_trace_of_reverse_mode(name) -> None:
    x, clouds = SHAPES[name].x, SHAPES[name].segments
    if len(x) > 60:
        pytest.skip("the reverse loop takes a pass a coordinate")
    velocity = ContinuousFlow(enlarged(3)).dynamics(clouds)(TIME, x)
    with torch.no_grad():
        found = Exact()(velocity, x, clouds, x.new_zeros(0))
    expected = Exact()(lambda moved: velocity(moved), x, clouds, x.new_zeros(0))
    torch.testing.assert_close(found.estimates, expected.estimates.detach(), rtol=1e-8, atol=1e-9)


def test_rotations_leave_the_trace_and_a_cloud_is_the_same_alone() -> None:
    field = enlarged(4)
    x, clouds = packed()
    _, together = field.exact_trace(TIME, x, field.connect(x, clouds))
    rotation = random_orthogonal(clouds.count, 3, x, rng.generator(1, "rotation"))
    turned = rotate(x, rotation, clouds)
    _, rotated = field.exact_trace(TIME, turned, field.connect(turned, clouds))
    torch.testing.assert_close(rotated, together, rtol=1e-11, atol=1e-12)
    for k, size in enumerate(SIZES):
        own = x[clouds.ptr[k] : clouds.ptr[k + 1]]
        alone = Segments(torch.tensor([0, size]))
        _, trace = field.exact_trace(TIME, own, field.connect(own, alone))
        torch.testing.assert_close(trace[0], together[k], rtol=1e-12, atol=1e-13)


def test_a_cutoff_leaves_it_to_reverse_mode() -> None:
    field = enlarged(2, cutoff=2.0)
    x, clouds = packed()
    velocity = ContinuousFlow(field).dynamics(clouds)(TIME, x)
    assert velocity.exact_trace(x) is None
    with torch.no_grad():
        trace = Exact()(velocity, x, clouds, x.new_zeros(0)).estimates.squeeze(1)
    full = torch.autograd.functional.jacobian(velocity, x)
    expected = clouds.sum(full.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1))
    torch.testing.assert_close(trace, expected, rtol=1e-9, atol=1e-9)


def test_where_gradients_are_wanted_reverse_mode_gives_them() -> None:
    field = enlarged(2)
    x, clouds = packed()
    velocity = ContinuousFlow(field).dynamics(clouds)(TIME, x)
    trace = Exact()(velocity, x, clouds, x.new_zeros(0))
    assert trace.estimates.requires_grad


def test_float32_keeps_its_digits() -> None:
    field = enlarged(3)
    x, clouds = packed()
    edges = field.connect(x, clouds)
    _, expected = field.exact_trace(TIME, x, edges)
    _, found = field.float().exact_trace(TIME.float(), x.float(), edges)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_positions_and_weights_of_two_types_are_told() -> None:
    field = enlarged(2).float()
    x, clouds = packed()
    edges = field.connect(x, clouds)
    for call in (
        lambda: field.exact_trace(TIME, x, edges),
        lambda: field.pushforward(TIME, Dual(x, x.unsqueeze(1)), edges),
    ):
        with pytest.raises(ShapeError, match=r"positions of torch\.float64 and weights"):
            call()
    assert field.half().exact_trace(TIME.half(), x.half(), edges) is None
