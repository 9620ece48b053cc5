"""Laws of the field of positions and features together."""

import pytest
import torch
from per_edge import awake
from torch import Tensor

from eqflow.edges import Dual, Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.flows import ContinuousFlow, ExactForward, ExactReverse
from eqflow.geometry import Clouds, Segments, split_state
from eqflow.nn import EGNN, JointEGNNField
from eqflow.testing import assert_equivariant, assert_independent, clouds

SHAPES = {
    f"{name}, {dimension}-D": batch
    for dimension in (2, 3)
    for name, batch in clouds(dimension=dimension)
}
every_cloud = pytest.mark.parametrize("batch", SHAPES.values(), ids=SHAPES)
TIME = torch.tensor(0.37, dtype=torch.float64)
OPTIONS = [{}, {"attention": False, "coordinate_range": None}, {"cutoff": 2.0}]
RAGGED = Segments.of_lengths(torch.tensor([4, 6, 1, 2]))


def small(**options) -> JointEGNNField:
    return awake(JointEGNNField(**{"features": 2, "width": 8, "layers": 2, **options}))


def state_of(x: Tensor, h: Tensor) -> Tensor:
    """Positions with two features that tell points apart."""
    return torch.cat([x, torch.sin(h), torch.cos(3 * h)], 1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source)


@every_cloud
@pytest.mark.parametrize("part", ["vector", "scalar"])
def test_positions_turn_with_the_cloud_and_features_do_not(batch: Clouds, part: str) -> None:
    field = small(context_features=1, time_frequencies=2)

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        v = field(TIME, state_of(x, h), Edges.complete(ptr), h / 10)
        return split_state(v, 2)[0 if part == "vector" else 1]

    for group in (f"E({batch.dimension})", "S(n)"):
        assert_equivariant(velocity, batch, group=group, output=part)
    assert_independent(velocity, batch)


@pytest.mark.parametrize("name", ["generic, 3-D", "pyridine, 3-D", "generic, 2-D"])
def test_a_field_with_a_cutoff_turns_with_the_cloud(name: str) -> None:
    field, batch = small(cutoff=2.0), SHAPES[name]

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        state = state_of(x, h)
        v = field(TIME, state, field.connect(state, Segments(ptr)))
        return split_state(v, 2)[0]

    assert_equivariant(velocity, batch, group=f"E({batch.dimension})", output="vector")


def test_the_velocity_of_positions_has_no_mean_and_features_come_from_the_readout() -> None:
    field, state = small(), draw(RAGGED.rows, 5)
    v = field(TIME, state, Edges.complete(RAGGED))
    assert RAGGED.mean(v[:, :3]).abs().max() < 1e-12
    x = state[:, :3] - RAGGED.expand(RAGGED.mean(state[:, :3]))
    inputs = torch.cat([state[:, 3:], TIME.expand(RAGGED.rows, 1)], 1)
    moved, h = field.egnn(x, inputs, Edges.complete(RAGGED))
    shift = moved - x
    torch.testing.assert_close(v[:, :3], shift - RAGGED.expand(RAGGED.mean(shift)))
    assert torch.equal(v[:, 3:], h)


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tangents_are_those_of_forward_mode(options, directions) -> None:
    field = small(layers=3, **options)
    state, moved = draw(RAGGED.rows, 5), draw(RAGGED.rows, directions, 5, seed=1)
    edges = field.connect(state, RAGGED)
    value, tangents = field.pushforward(TIME, Dual(state, moved), edges)
    for s in range(directions):
        expected = torch.func.jvp(lambda y: field(TIME, y, edges), (state,), (moved[:, s],))
        torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(tangents[:, s], expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("route", [ExactForward(), ExactReverse(), ExactForward(chunk=2)])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_exact_trace_is_that_of_the_jacobian(dimension, route) -> None:
    field, state = small(), draw(RAGGED.rows, dimension + 2)
    velocity = ContinuousFlow(field).dynamics(RAGGED)(TIME, state)
    full = torch.autograd.functional.jacobian(velocity, state)
    diagonal = full.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1)
    with torch.no_grad():
        found = route(velocity, state, RAGGED, state.new_zeros(0)).estimates[:, 0]
    torch.testing.assert_close(found, RAGGED.sum(diagonal), rtol=1e-10, atol=1e-10)


def test_a_network_may_put_out_another_number_of_features() -> None:
    egnn, x, h = EGNN(3, 8, 2, output_features=7), draw(5, 3).float(), draw(5, 3).float()
    assert egnn(x, h, Edges.complete(torch.tensor([0, 5])))[1].shape == (5, 7)
    for options in ({"output_features": 0}, {"output_features": 2, "positions_only": True}):
        with pytest.raises(UsageError, match="output_features"):
            EGNN(3, 8, 2, **options)


def test_a_field_of_no_features_is_an_error() -> None:
    with pytest.raises(UsageError, match="use EGNNField"):
        JointEGNNField(0)


def test_a_state_without_positions_is_an_error() -> None:
    with pytest.raises(ShapeError, match="found 2 columns"):
        small()(TIME, draw(3, 2), Edges.complete(torch.tensor([0, 3])))


def test_every_parameter_gets_a_gradient() -> None:
    field, state = small(context_features=1), draw(RAGGED.rows, 5)
    field(TIME, state, Edges.complete(RAGGED), draw(RAGGED.rows, 1)).square().sum().backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
