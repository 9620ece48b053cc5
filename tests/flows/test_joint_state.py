"""What features beside positions change: base density, probes, directions, the flow's density."""

import math

import pytest
import torch
from example_flows import TIGHT
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import NotCentered, UsageError
from eqflow.flows import (
    CenteredNormal,
    Compositions,
    ContinuousFlow,
    Exact,
    ExactForward,
    ExactReverse,
    Flow,
    Hutchinson,
    HutchPlusPlus,
)
from eqflow.flows.directions import Directions
from eqflow.geometry import Segments, centred, degrees_of_freedom, split_state
from eqflow.nn import AbstractField, JointEGNNField

CLOUDS = Segments.of_lengths(torch.tensor([4, 1, 3]))
TIME = torch.tensor(0.4, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source)


class Scaling(AbstractField):
    """`(ẋ, ḣ) = (a x, b h)` on centred positions: everything about its flow is known."""

    state_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.rates = torch.nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        positions, h = split_state(x, 2)
        return torch.cat([self.rates[0] * centred(positions, edges.clouds), self.rates[1] * h], -1)


def joint(dimension: int = 3, seed: int = 0) -> Tensor:
    return centred(draw(CLOUDS.rows, dimension + 2, seed=seed), CLOUDS, 2)


def test_only_positions_are_centred() -> None:
    state = draw(CLOUDS.rows, 5)
    moved = centred(state, CLOUDS, 2)
    assert CLOUDS.mean(moved[:, :3]).abs().max() < 1e-14
    assert torch.equal(moved[:, 3:], state[:, 3:])
    tangents = centred(draw(CLOUDS.rows, 6, 5), CLOUDS, 2)
    assert CLOUDS.mean(tangents[..., :3]).abs().max() < 1e-14
    assert degrees_of_freedom(CLOUDS, 3, 2).tolist() == [9 + 8, 2, 6 + 6]


def test_the_base_density_is_a_product_of_positions_and_features() -> None:
    state = joint()
    found = CenteredNormal(2).log_prob(state, CLOUDS)
    positions = CenteredNormal().log_prob(state[:, :3], CLOUDS)
    features = -0.5 * state[:, 3:].square() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found, positions + CLOUDS.sum(features.sum(1)))


def test_the_base_density_of_a_pair_integrates_to_one() -> None:
    """A pair on a line with one feature each: the plane of centred pairs times two features."""
    grid = torch.linspace(-6, 6, 25, dtype=torch.float64)
    u, a, b = torch.meshgrid(grid, grid, grid, indexing="ij")
    half = u.reshape(-1) / 2**0.5  # unit length along the subspace
    state = torch.stack([half, a.reshape(-1), -half, b.reshape(-1)], 1).reshape(-1, 2)
    log_prob = CenteredNormal(1).log_prob(state, Segments.of_lengths(torch.full((25**3,), 2)))
    assert float(log_prob.exp().sum() * 0.5**3) == pytest.approx(1, abs=1e-6)


def test_draws_of_the_base_are_centred_in_positions_and_free_in_features() -> None:
    clouds = Segments.of_lengths(torch.full((4000,), 2))
    z = CenteredNormal(1).sample(clouds, 2, draw(1), rng.generator(0, "base"))
    assert z.shape == (8000, 3)
    assert clouds.mean(z[:, :2]).abs().max() < 1e-14
    assert float(z[:, 2].var()) == pytest.approx(1, abs=0.06)
    assert float(clouds.sum(z[:, :2].square().sum(1)).mean()) == pytest.approx(2, abs=0.15)


def test_positions_off_the_centre_are_refused_but_not_features() -> None:
    state = joint()
    CenteredNormal(2).log_prob(state + torch.tensor([0, 0, 0, 5.0, 5.0]), CLOUDS)
    with pytest.raises(NotCentered):
        CenteredNormal(2).log_prob(state + torch.tensor([1.0, 0, 0, 0, 0]), CLOUDS)


@pytest.mark.parametrize("method", [Hutchinson(3), Hutchinson(2, "gaussian"), HutchPlusPlus(2, 2)])
def test_probes_are_projected_in_positions_alone(method) -> None:
    source = rng.generator(0, "probes")
    probes = method.probes(joint(), CLOUDS, source, 2)
    for probe in probes:
        assert CLOUDS.mean(probe[:, :3]).abs().max() < 1e-14
    assert CLOUDS.mean(probes[0, :, 3:]).abs().max() > 1e-3


@pytest.mark.parametrize("method", [Hutchinson(2000), HutchPlusPlus(1000, 3)])
def test_estimates_have_the_trace_as_their_mean(method) -> None:
    torch.manual_seed(1)
    field = JointEGNNField(2, width=6, layers=2).double()
    for parameter in field.parameters():
        parameter.data.normal_(0, 0.4)
    state = joint()
    velocity = ContinuousFlow(field).dynamics(CLOUDS)(TIME, state)
    with torch.no_grad():
        exact = Exact()(velocity, state, CLOUDS, state.new_zeros(0)).estimates[:, 0]
        probes = method.probes(state, CLOUDS, rng.generator(0, "mean"), 2)
        drawn = method(velocity, state, CLOUDS, probes).estimates
    error = drawn.std(1) / drawn.shape[1] ** 0.5
    assert ((drawn.mean(1) - exact).abs() <= 5 * error + 1e-9).all()


def test_features_are_directions_of_their_own() -> None:
    state = joint()
    assert Directions(state, CLOUDS, features=2).count == 3 * 3 + 4 * 2
    assert Directions(state, CLOUDS, features=2, rotations=True).count == 3 * 3 + 4 * 2 - 3
    asked = Directions(state, CLOUDS, features=2)
    tangents = torch.cat([block for block, _ in asked.blocks(3)], 1)
    assert CLOUDS.sum(tangents.sum((1, 2))).tolist() == [17, 2, 6 + 6]


@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_directions_and_what_is_known_give_the_trace_of_an_equivariant_jacobian(
    dimension, rotations
) -> None:
    torch.manual_seed(2)
    field = JointEGNNField(2, width=6, layers=2).double()
    for parameter in field.parameters():
        parameter.data.normal_(0, 0.4)
    state = joint(dimension)
    velocity = ContinuousFlow(field).dynamics(CLOUDS)(TIME, state)
    jacobian = torch.autograd.functional.jacobian(velocity, state)
    directions = Directions(state, CLOUDS, rotations=rotations, features=2)
    trace = directions.known(velocity(state).detach())
    for tangents, covectors in directions.blocks(5):
        pushed = torch.einsum("iajb,jsb->isa", jacobian, tangents)
        trace = trace + CLOUDS.sum((pushed * covectors).sum((1, 2)))
    diagonal = jacobian.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1)
    torch.testing.assert_close(trace, CLOUDS.sum(diagonal), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("divergence", [ExactForward(), ExactReverse(), Exact()])
def test_the_flow_of_two_rates_has_the_density_it_must(divergence) -> None:
    flow, state = ContinuousFlow(Scaling()), joint()
    with torch.no_grad():
        there = flow.transport(
            state, CLOUDS, start=0.0, end=1.0, solver=TIGHT, divergence=divergence
        )
    a, b = flow.field.rates.tolist()
    lengths = CLOUDS.lengths.double()
    expected = (lengths - 1) * 3 * a + lengths * 2 * b
    torch.testing.assert_close(there.log_det[:, 0], expected, rtol=1e-8, atol=1e-8)
    factors = torch.tensor([math.exp(a)] * 3 + [math.exp(b)] * 2, dtype=torch.float64)
    torch.testing.assert_close(there.x, state * factors, rtol=1e-8, atol=1e-8)


def test_a_flow_of_positions_refuses_a_field_of_more() -> None:
    make_up = Compositions((), torch.tensor([[3]]), torch.tensor([1]))
    with pytest.raises(UsageError, match="use MolecularFlow"):
        Flow(ContinuousFlow(Scaling()), 3, 1.0, make_up)
