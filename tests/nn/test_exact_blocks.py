"""Traces and blocks of networks of positions and features, without autograd: the Jacobian's."""

import pytest
import torch
from torch import Tensor, nn

from eqflow import rng
from eqflow.edges import Edges
from eqflow.flows import ContinuousFlow, Exact, ExactForward, ExactReverse
from eqflow.geometry import Clouds, Segments, centred, random_orthogonal, rotate
from eqflow.nn import EGNN, JointEGNNField, exact_trace
from eqflow.nn.exact_trace import Traced, is_linearisable, shift_and_trace, shift_features_and_trace
from eqflow.testing import clouds as degenerate_clouds

CLOUDS = Segments.of_lengths(torch.tensor([4, 1, 6, 2, 4]))
FEATURES, KEPT = 3, 2  # features whose derivative is asked for, and others behind them
TIME = torch.tensor(0.3, dtype=torch.float64)


def enlarged(network: nn.Module, seed: int = 0) -> nn.Module:
    source = rng.generator(seed, "weights")
    for parameter in network.double().parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=source, dtype=torch.float64)
    return network


def a_network(layers: int = 3, **options) -> EGNN:
    options = {"input_distance": True, "output_features": 4, **options}
    return enlarged(EGNN(FEATURES + KEPT, 8, layers, **options))


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = rng.generator(seed, "state")
    return torch.randn(shape, generator=source, dtype=torch.float64)


def by_autograd(egnn: EGNN, x: Tensor, h: Tensor, clouds: Segments) -> Traced:
    """The same from the whole Jacobian."""
    edges = Edges.complete(clouds)
    moved, out = egnn(x, h, edges)
    by_x, _ = torch.func.jacrev(lambda x: egnn(x, h, edges))(x)
    _, by_h = torch.func.jacrev(lambda h: egnn(x, h, edges))(h)
    own = by_x.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1) - x.shape[1]
    blocks = by_h.diagonal(dim1=0, dim2=2)[:, :FEATURES].permute(2, 0, 1)
    return Traced(moved - x, out, clouds.sum(own), blocks)


def assert_close(found: Traced, expected: Traced) -> None:
    for name, one, other in zip(Traced._fields, found, expected, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("budget", "wide"), [(1, 48), (3000, 1), (2**19, 1)])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": True},
        {"attention": True, "coordinate_range": 15.0},
        {"coordinate_update": "mean"},
        {"input_distance": False, "attention": True},
        {"radial": 5},
        {"radial": 5, "attention": True},
    ],
    ids=str,
)
def test_trace_and_blocks_are_those_of_the_jacobian(
    options, layers, budget, wide, monkeypatch
) -> None:
    monkeypatch.setattr(exact_trace, "CPU_BUDGET", budget)
    monkeypatch.setattr(exact_trace, "WIDE", wide)
    egnn, x, h = a_network(layers, **options), draw(17, 3), draw(17, FEATURES + KEPT, seed=1)
    found = shift_features_and_trace(egnn, x, h, CLOUDS, FEATURES)
    expected = by_autograd(egnn, x, h, CLOUDS)
    assert_close(found, expected)
    assert expected.blocks.abs().min() > 1e-8


@pytest.mark.parametrize("dimension", [1, 2])
def test_any_dimension_is_fine(dimension) -> None:
    egnn, x, h = a_network(attention=True), draw(17, dimension), draw(17, FEATURES + KEPT)
    found = shift_features_and_trace(egnn, x, h, CLOUDS, FEATURES)
    assert_close(found, by_autograd(egnn, x, h, CLOUDS))


SHAPES = {name: batch for name, batch in degenerate_clouds() if len(batch.x) < 20}


@pytest.mark.parametrize("name", SHAPES)
def test_coincident_collinear_and_symmetric_clouds_are_no_exception(name) -> None:
    batch: Clouds = SHAPES[name]
    egnn, h = a_network(attention=True), draw(len(batch.x), FEATURES + KEPT)
    found = shift_features_and_trace(egnn, batch.x, h, batch.segments, FEATURES)
    assert_close(found, by_autograd(egnn, batch.x, h, batch.segments))


def test_a_network_that_puts_out_features_has_the_trace_of_positions_alone_as_well() -> None:
    egnn, x, h = a_network(), draw(17, 3), draw(17, FEATURES + KEPT, seed=1)
    shift, trace = shift_and_trace(egnn, x, h, CLOUDS)
    both = shift_features_and_trace(egnn, x, h, CLOUDS, FEATURES)
    torch.testing.assert_close(shift, both.shift)
    torch.testing.assert_close(trace, both.trace)


def test_a_cloud_has_the_same_blocks_alone_and_turned() -> None:
    egnn, x, h = a_network(attention=True), draw(17, 3), draw(17, FEATURES + KEPT, seed=1)
    together = shift_features_and_trace(egnn, x, h, CLOUDS, FEATURES)
    rotation = random_orthogonal(CLOUDS.count, 3, x, rng.generator(1, "rotation"))
    turned = shift_features_and_trace(egnn, rotate(x, rotation, CLOUDS), h, CLOUDS, FEATURES)
    torch.testing.assert_close(turned.trace, together.trace, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(turned.blocks, together.blocks, rtol=1e-11, atol=1e-12)
    for k in range(CLOUDS.count):
        rows = slice(int(CLOUDS.ptr[k]), int(CLOUDS.ptr[k + 1]))
        one = Segments(torch.tensor([0, rows.stop - rows.start]))
        alone = shift_features_and_trace(egnn, x[rows], h[rows], one, FEATURES)
        torch.testing.assert_close(alone.trace[0], together.trace[k], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(alone.blocks, together.blocks[rows], rtol=1e-12, atol=1e-13)


def a_field(**options) -> JointEGNNField:
    return enlarged(JointEGNNField(2, width=8, **{"layers": 3, **options}))


@pytest.mark.parametrize("route", [Exact(), ExactForward(), ExactReverse()])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_route_to_the_trace_of_a_field_agrees(layers, route, monkeypatch) -> None:
    monkeypatch.setattr("eqflow.flows.exact.LITTLE_OF_FEATURES", 0)
    field = a_field(layers=layers, context_features=2, time_frequencies=2)
    state, context = centred(draw(17, 5), CLOUDS, 2), draw(17, 2, seed=3)
    velocity = ContinuousFlow(field).dynamics(CLOUDS, context)(TIME, state)
    with torch.no_grad():
        found = route(velocity, state, CLOUDS, state.new_zeros(0))
    full = torch.autograd.functional.jacobian(velocity, state)
    diagonal = full.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1)
    torch.testing.assert_close(found.velocity, velocity(state), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.estimates[:, 0], CLOUDS.sum(diagonal), rtol=1e-10, atol=1e-11)


def test_the_field_far_from_the_origin_has_the_same_trace() -> None:
    field, state = a_field(), draw(17, 5)
    edges = Edges.complete(CLOUDS)
    _, here = field.exact_trace(TIME, state, edges)
    _, there = field.exact_trace(TIME, state + torch.tensor([50.0, -70, 20, 0, 0]), edges)
    torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-10)


def test_float32_keeps_its_digits() -> None:
    field, state, edges = a_field(), draw(17, 5), Edges.complete(CLOUDS)
    _, expected = field.exact_trace(TIME, state, edges)
    _, found = field.float().exact_trace(TIME.float(), state.float(), edges)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_field_traces_itself_where_nothing_is_to_be_differentiated(monkeypatch) -> None:
    field, state = a_field(), centred(draw(40, 5), Segments.of_lengths(torch.tensor([20, 20])), 2)
    clouds = Segments.of_lengths(torch.tensor([20, 20]))
    velocity = ContinuousFlow(field).dynamics(clouds)(TIME, state)
    asked = []
    own = JointEGNNField.exact_trace
    monkeypatch.setattr(JointEGNNField, "exact_trace", lambda *args: asked.append(1) or own(*args))
    with torch.no_grad():
        Exact()(velocity, state, clouds, state.new_zeros(0))
    assert asked == [1]
    trace = Exact()(velocity, state, clouds, state.new_zeros(0)).estimates
    assert trace.requires_grad
    assert asked == [1]


def test_what_is_not_known_by_hand_is_left_to_others() -> None:
    state = draw(17, 5)
    with_cutoff = a_field(cutoff=2.0)
    edges = with_cutoff.connect(state, CLOUDS)
    assert with_cutoff.exact_trace(TIME, state, edges) is None
    hooked = a_field()
    hooked.egnn.readout.register_forward_hook(lambda *parts: None)
    assert hooked.exact_trace(TIME, state, Edges.complete(CLOUDS)) is None
    assert not is_linearisable(EGNN(3, 8, 2, infer_edges=True))
    assert not is_linearisable(EGNN(3, 8, 2, momentum=True))

    class Doubled(JointEGNNField):
        def forward(self, t, x, edges, context=None):
            return 2 * super().forward(t, x, edges, context)

    assert not Doubled(2, width=8, layers=2).traces_itself
    assert a_field().traces_itself
