"""Directions left out by symmetry leave the trace what it is, on every kind of cloud."""

import pytest
import torch
from example_flows import FunctionField, ragged
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.flows import (
    AbstractDivergence,
    ContinuousFlow,
    Exact,
    ExactForward,
    directions,
    exact,
)
from eqflow.flows.directions import Directions, at_once
from eqflow.flows.exact import ExactReverse
from eqflow.flows.field_at import FieldAt
from eqflow.geometry import Segments, centred
from eqflow.nn import AbstractField, EGNNField

TIME = torch.tensor(0.3, dtype=torch.float64)
ROUTES = [Exact(), ExactReverse(), ExactForward(), ExactForward(chunk=2)]
NAMES = ["cheapest", "reverse", "forward", "two at once"]
EXACTLY = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _rotations_always_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clouds of tests are too small for a forward route to look at their rotations."""
    monkeypatch.setattr(exact, "WORTH_TURNING", 0)


def enlarged(seed: int = 0, kind: type[EGNNField] = EGNNField, **options) -> EGNNField:
    """A field whose cutoff leaves its trace to the generic routes."""
    with rng.seeded(seed, "weights"):
        field = kind(**{"width": 6, "layers": 2, "cutoff": 3.0, **options}).double()
        for parameter in field.parameters():
            parameter.data.normal_(0, 0.4)
    return field


def every_kind(d: int) -> tuple[Tensor, Segments]:
    """Generic, thin, collinear, planar, coincident, single, paired and empty: all in one batch."""
    draw = ragged(d, (5, 7, 4, 3, 5, 4, 1, 2, 0))
    x, clouds = draw[0].clone(), draw[1]
    rows = [slice(a, b) for a, b in zip(clouds.ptr[:-1], clouds.ptr[1:], strict=True)]
    along = torch.tensor([1.0, -2.0, 0.5, 0.7], dtype=x.dtype)[:d]
    x[rows[1]] = x[rows[1], :1] * along + 1e-3 * x[rows[1]]  # thin
    x[rows[2]] = x[rows[2], :1] * along  # on a line
    x[rows[3]] = x[rows[3], :1] * along
    x[rows[4], -1] = 0  # on a plane
    x[rows[5]] = 1.5  # coincident
    x[rows[0]] *= 1.3
    return centred(x, clouds), clouds


def velocity_of(field: AbstractField, x: Tensor, clouds: Segments) -> FieldAt:
    return ContinuousFlow(field).dynamics(clouds)(TIME.to(x.dtype), x)


def traced(route: AbstractDivergence, field: AbstractField, x: Tensor, clouds: Segments) -> Tensor:
    return route(velocity_of(field, x, clouds), x, clouds, x.new_zeros(0)).estimates[:, 0]


def by_jacobian(field: AbstractField, x: Tensor, clouds: Segments) -> Tensor:
    full = torch.autograd.functional.jacobian(velocity_of(field, x, clouds), x)
    return clouds.sum(full.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1))


def plainly(field: AbstractField, x: Tensor, clouds: Segments) -> Tensor:
    """By a loop over all directions: of a plain function nothing but translations is known."""
    velocity = velocity_of(field, x, clouds)
    none = x.new_zeros(0)
    return ExactReverse()(lambda moved: velocity(moved), x, clouds, none).estimates[:, 0]


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_every_route_gives_the_trace_of_the_jacobian_on_every_kind_of_cloud(
    route, dimension, with_gradient
) -> None:
    x, clouds = every_kind(dimension)
    field = enlarged()
    with torch.set_grad_enabled(with_gradient):
        found = traced(route, field, x, clouds)
    torch.testing.assert_close(found, by_jacobian(field, x, clouds), **EXACTLY)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_clouds_of_one_size_take_the_same_routes(route) -> None:
    field = enlarged(coordinate_range=None, attention=False)
    for dimension in (2, 3):
        x, clouds = ragged(dimension, (5, 5, 5))
        found = traced(route, field, x, clouds)
        torch.testing.assert_close(found, by_jacobian(field, x, clouds), **EXACTLY)


@pytest.mark.parametrize(
    ("points", "dimension", "count"),
    [(13, 3, 33), (4, 2, 5), (4, 1, 3), (5, 4, 10), (3, 3, 3), (2, 3, 1), (2, 2, 1), (1, 3, 0)],
)
def test_rotations_spare_their_number_of_directions(points, dimension, count) -> None:
    x, clouds = ragged(dimension, (points,))
    if points == 3:
        x = torch.eye(3, dtype=x.dtype)  # an equilateral triangle, not a thin one
    assert Directions(x, clouds).count == (points - 1) * dimension
    assert Directions(x, clouds, rotations=True).count == count


@pytest.mark.parametrize(
    ("cloud", "count"),
    [
        ([[0, 0, -1], [0, 0, 0], [0, 0, 1]], 6 - 2),
        ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], 6),
        ([[0, 0, -1], [0, 1e-9, 0], [0, 0, 1]], 6 - 2),
        ([[0, 0, -1], [0, 1, 0], [0, 0, 1]], 6 - 3),
    ],
    ids=["on a line", "coincident", "all but on a line", "triangle"],
)
def test_a_rotation_that_moves_nothing_spares_nothing(cloud, count) -> None:
    x = torch.tensor(cloud, dtype=torch.float64)
    assert Directions(x, Segments(torch.tensor([0, 3])), rotations=True).count == count


def test_a_batch_asks_for_as_many_directions_as_the_cloud_that_needs_most() -> None:
    line = torch.tensor([[0, 0, -1], [0, 0, 0], [0, 0, 1.0]])
    triangle = torch.tensor([[0, 0, -1], [0, 1, 0], [0, 0, 1.0]])
    clouds = Segments(torch.tensor([0, 3, 6]))
    asked = Directions(torch.cat([line, triangle]), clouds, rotations=True)
    assert asked.count == 4
    tangents = torch.cat([block for block, _ in asked.blocks(3)], 1)
    assert clouds.sum(tangents.sum((1, 2))).tolist() == [4, 3]


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("budget", [1, 2**30])
def test_the_cheapest_route_is_reverse_where_no_directions_go_together(
    budget, with_gradient, monkeypatch
) -> None:
    monkeypatch.setattr(directions, "CPU_BUDGET", budget)
    x, clouds = ragged(3, (5, 4))
    field = enlarged()
    passes = []
    monkeypatch.setattr(
        field,
        "pushforward",
        lambda *given: passes.append(1) or EGNNField.pushforward(field, *given),
    )
    with torch.set_grad_enabled(with_gradient):
        found = traced(Exact(), field, x, clouds)
    torch.testing.assert_close(found, by_jacobian(field, x, clouds), **EXACTLY)
    assert bool(passes) == (with_gradient or budget > 1)


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_blocks_hold_every_direction_once_and_no_more_than_asked_for(size) -> None:
    x, clouds = ragged(3, (5, 3))
    blocks = list(Directions(x, clouds).blocks(size))
    assert all(tangents.shape == covectors.shape for tangents, covectors in blocks)
    sizes = [tangents.shape[1] for tangents, _ in blocks]
    assert sum(sizes) == 12
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    together = torch.cat([tangents for tangents, _ in blocks], 1).sum(1)
    assert (together == (clouds.place < clouds.expand(clouds.lengths - 1)).unsqueeze(1)).all()


def test_directions_at_once_keep_to_the_budget() -> None:
    x = torch.zeros(1, dtype=torch.float64)
    assert at_once(x, 2**21) == 1
    assert at_once(x, 2**15) == 4  # float64
    assert at_once(x.float(), 2**15) == 8
    assert at_once(x, 0) > 1000


class Pulled(EGNNField):
    """An EGNN in an outer field, which picks an axis."""

    def forward(self, t, x, edges, context=None):
        pull = torch.tanh(centred(x, edges.clouds)) * torch.arange(1.0, 1 + x.shape[1]).to(x)
        return centred(super().forward(t, x, edges, context) + pull, edges.clouds)


class Claimed(Pulled):
    """The same, and says what is not so."""

    is_equivariant = True

    def forward(self, t, x, edges, context=None):
        return super().forward(t, x, edges, context)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_a_field_that_is_not_equivariant_never_takes_the_shortcut(route) -> None:
    x, clouds = ragged(3, (5, 4))
    field = enlarged(kind=Pulled)
    assert not field.turns_with_state
    torch.testing.assert_close(
        traced(route, field, x, clouds), by_jacobian(field, x, clouds), **EXACTLY
    )


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_the_trace_of_a_field_that_claims_what_is_not_so_is_wrong(route) -> None:
    x, clouds = ragged(3, (5, 4))
    field = enlarged(kind=Claimed)
    assert field.turns_with_state
    error = (traced(route, field, x, clouds) - by_jacobian(field, x, clouds)).abs()
    assert (error > 1e-3).all()


def test_equivariance_is_said_of_one_forward_and_no_hook() -> None:
    class Renamed(EGNNField):
        pass

    assert EGNNField(width=4, layers=1).turns_with_state
    assert Renamed(width=4, layers=1).turns_with_state
    assert not Pulled(width=4, layers=1).turns_with_state
    assert not FunctionField(lambda t, x, clouds: x).turns_with_state
    hooked = EGNNField(width=4, layers=1)
    hooked.register_forward_hook(lambda module, inputs, velocity: velocity)
    assert not hooked.turns_with_state
    denied = EGNNField(width=4, layers=1)
    denied.is_equivariant = False
    assert not denied.turns_with_state


def test_a_users_field_may_say_so_and_is_traced_with_fewer_reverse_passes() -> None:
    class Spring(AbstractField):
        is_equivariant = True

        def forward(self, t, x, edges, context=None):
            x = centred(x, edges.clouds)
            size = edges.clouds.expand(edges.clouds.sum(x.square().sum(-1)))
            return x * torch.tanh(size).unsqueeze(1)

    passes = 0

    def count(gradient: Tensor) -> None:
        nonlocal passes
        passes += 1

    x, clouds = every_kind(3)
    field = Spring()
    torch.testing.assert_close(
        traced(Exact(), field, x, clouds), by_jacobian(field, x, clouds), **EXACTLY
    )
    x, clouds = ragged(3, (6,))
    velocity = velocity_of(field, x, clouds)
    leaf = x.clone().requires_grad_()
    leaf.register_hook(count)
    ExactReverse()(velocity, leaf, clouds, x.new_zeros(0))
    assert passes == 18 - 3 - 3


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_gradients_are_those_of_the_loop_over_all_directions(route, dimension) -> None:
    x, clouds = every_kind(dimension)
    x.requires_grad_()
    field = enlarged()
    weights = torch.arange(1.0, 1 + clouds.count, dtype=x.dtype)
    leaves = [x, *field.parameters()]
    found, expected = (
        torch.autograd.grad((trace * weights).sum(), leaves, materialize_grads=True)
        for trace in (traced(route, field, x, clouds), plainly(field, x, clouds))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("route", ROUTES[1:3], ids=NAMES[1:3])
def test_a_trace_can_be_differentiated_twice(route) -> None:
    x, clouds = ragged(2, (3, 2))
    field = enlarged(cutoff=6.0, time_frequencies=0)
    graph = velocity_of(field, x, clouds)

    def trace(x: Tensor) -> Tensor:
        return route(graph, x, clouds, x.new_zeros(0)).estimates

    x.requires_grad_()
    assert torch.autograd.gradcheck(trace, x)
    assert torch.autograd.gradgradcheck(trace, x)


@pytest.mark.parametrize("route", ROUTES[1:3], ids=NAMES[1:3])
@pytest.mark.parametrize("width", [0.3, 0.1, 0.03, 1e-3, 1e-6, 0.0])
def test_float32_keeps_its_digits_as_a_cloud_becomes_a_line(width, route) -> None:
    x, clouds = ragged(3, (5, 5))
    x = centred(x * torch.tensor([1.0, width, width], dtype=x.dtype), clouds)
    field = enlarged()
    expected = by_jacobian(field, x, clouds)
    found = traced(route, field.float(), x.float(), clouds)
    tolerance = TOLERANCE[torch.float32] * (1 + float(expected.abs().max()))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3])
def test_the_unit_of_length_does_not_matter(scale) -> None:
    x, clouds = ragged(3, (5, 4))

    class Cubic(AbstractField):
        is_equivariant = True

        def forward(self, t, x, edges, context=None):
            x = centred(x, edges.clouds) / scale
            return centred(x * x.square().sum(-1, keepdim=True), edges.clouds) * scale

    expected = by_jacobian(Cubic(), x * scale, clouds)
    torch.testing.assert_close(traced(Exact(), Cubic(), x * scale, clouds), expected, **EXACTLY)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_a_cloud_that_is_not_finite_leaves_the_others_alone(route) -> None:
    x, clouds = ragged(3, (5, 4, 4))
    field = enlarged()
    expected = traced(route, field, x, clouds)
    graph = velocity_of(field, x, clouds)
    x[6, 1] = float("nan")
    found = route(graph, x, clouds, x.new_zeros(0)).estimates[:, 0]
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
@pytest.mark.parametrize("sizes", [(), (0, 0), (1,), (0, 1, 3)], ids=str)
def test_empty_batches_and_empty_clouds_have_no_divergence(route, sizes) -> None:
    x, clouds = ragged(3, sizes)
    trace = traced(route, enlarged(), x, clouds)
    assert trace.shape == (len(sizes),)
    assert (trace[clouds.lengths < 2] == 0).all()


def test_a_batch_beyond_the_threshold_looks_at_its_rotations_as_shipped(monkeypatch):
    monkeypatch.undo()
    clouds = Segments.of_lengths(torch.tensor([13] * 4))
    x = centred(rng.normal((52, 3), torch.zeros(()).double(), rng.generator(0, "x")), clouds)
    field = enlarged(width=64)
    velocity = ContinuousFlow(field).dynamics(clouds)(TIME, x)
    assert exact._numbers(velocity, clouds) * 3 >= exact.WORTH_TURNING
    found = [route(velocity, x, clouds, x[:0]).estimates for route in (Exact(), ExactReverse())]
    torch.testing.assert_close(*found, **EXACTLY)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_a_flow_in_half_precision_has_a_trace(route):
    clouds = Segments.of_lengths(torch.tensor([5, 4]))
    x = centred(rng.normal((9, 3), torch.zeros(()).double(), rng.generator(0, "x")), clouds)
    field = enlarged()
    expected = route(ContinuousFlow(field).dynamics(clouds)(TIME, x), x, clouds, x[:0])
    half = ContinuousFlow(field.bfloat16()).dynamics(clouds)(TIME.bfloat16(), x)
    found = route(half, x.bfloat16(), clouds, x[:0].bfloat16())
    assert found.estimates.isfinite().all()
    scale = expected.estimates.abs().max()
    assert ((found.estimates.double() - expected.estimates).abs() < 0.2 * scale).all()
