"""Laws of the field whose features move as the posterior of categories says."""

import math

import pytest
import torch
from per_edge import awake
from torch import Tensor

from eqflow.edges import Dual, Edges
from eqflow.errors import UsageError
from eqflow.flows import ContinuousFlow, Exact, ExactReverse, Solver
from eqflow.flows.field_at import FieldAt
from eqflow.geometry import Clouds, Segments, split_state
from eqflow.nn import CategoricalEGNNField
from eqflow.testing import assert_equivariant, assert_independent, clouds

every_cloud = pytest.mark.parametrize(
    "batch", [batch for _, batch in clouds()], ids=[name for name, _ in clouds()]
)
TIME = torch.tensor(0.37, dtype=torch.float64)
RAGGED = Segments.of_lengths(torch.tensor([4, 6, 1, 2]))
TIGHT = Solver(rtol=1e-10, atol=1e-10)


def small(**options) -> CategoricalEGNNField:
    return awake(CategoricalEGNNField(**{"categories": 2, "width": 8, "layers": 2, **options}))


def silent(categories: int = 3, a: float = 0.8, spread: float = 0.15) -> CategoricalEGNNField:
    """A network that says nothing: each point knows of itself alone."""
    field = CategoricalEGNNField(categories, a, spread, width=4, layers=1).double()
    for parameter in field.parameters():
        parameter.data.zero_()
    return field


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source)


@every_cloud
@pytest.mark.parametrize("part", ["vector", "scalar"])
def test_positions_turn_with_the_cloud_and_features_do_not(batch: Clouds, part: str) -> None:
    field = small(context_features=1, attention=True)

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        state = torch.cat([x, torch.sin(h), torch.cos(3 * h)], 1)
        v = field(TIME, state, Edges.complete(ptr), h / 10)
        return split_state(v, 2)[0 if part == "vector" else 1]

    for group in ("E(3)", "S(n)"):
        assert_equivariant(velocity, batch, group=group, output=part)
    assert_independent(velocity, batch)


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"attention": True}, {"cutoff": 2.0}, {"radial": 4}], ids=str
)
def test_tangents_are_those_of_forward_mode(options, directions: int) -> None:
    field, x = small(**options), draw(RAGGED.rows, 5)
    times = torch.tensor([0.2, 0.5, 0.9, 0.0], dtype=torch.float64)
    along = draw(RAGGED.rows, directions, 5, seed=1)
    edges = field.connect(x, RAGGED)
    value, pushed = field.pushforward(times, Dual(x, along), edges)
    for k in range(directions):
        plain, moved = torch.func.jvp(lambda x: field(times, x, edges), (x,), (along[:, k],))
        torch.testing.assert_close(value, plain, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pushed[:, k], moved, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"attention": True}, {"layers": 1}, {"radial": 4}], ids=str
)
def test_its_exact_trace_is_that_of_reverse_mode(options) -> None:
    field, x = small(**options), draw(RAGGED.rows, 5)
    x[:, :3] -= RAGGED.expand(RAGGED.mean(x[:, :3]))
    x[1, :3] = x[0, :3]
    times = torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    at = FieldAt(field, times, Edges.complete(RAGGED))
    found = field.exact_trace(times, x, Edges.complete(RAGGED))
    expected = ExactReverse()(at, x, RAGGED, x.new_zeros(0))
    torch.testing.assert_close(found[0], expected.velocity, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], expected.estimates[:, 0], rtol=1e-9, atol=1e-9)
    assert field.traces_itself
    assert small(cutoff=2.0).exact_trace(times, x, Edges.radius(x[:, :3], 2.0, RAGGED)) is None


def test_a_point_alone_has_the_density_of_the_mixture_of_categories() -> None:
    """The path of each category is exact, so with nothing learned the density is known."""
    a, spread, kinds = 0.8, 0.15, 3
    flow = ContinuousFlow(silent(kinds, a, spread))
    hot = a * torch.eye(kinds, dtype=torch.float64)
    h = torch.cat([hot + spread * draw(kinds, kinds), draw(4, kinds), hot.mean(0, keepdim=True)])
    state = torch.cat([torch.zeros(len(h), 3, dtype=torch.float64), h], 1)
    alone = Segments.of_lengths(torch.ones(len(h), dtype=torch.int64))
    there = flow.transport(state, alone, start=0.0, end=1.0, solver=TIGHT, divergence=Exact())
    found = flow.base.log_prob(there.x, alone) + there.log_det[:, 0]
    squares = (h.unsqueeze(1) - hot).square().sum(-1) / (2 * spread**2)
    each = -squares - kinds * math.log(spread * math.sqrt(2 * math.pi))
    mixture = each.logsumexp(1) - math.log(kinds)
    torch.testing.assert_close(found, mixture, rtol=1e-7, atol=1e-7)


def test_positions_come_to_rest_where_they_were_if_nothing_was_learned() -> None:
    """The rate of positions is that of normal data, whose noise is normal as well."""
    state = draw(RAGGED.rows, 6)
    state[:, :3] -= RAGGED.expand(RAGGED.mean(state[:, :3]))
    there = ContinuousFlow(silent()).transport(state, RAGGED, start=0.0, end=1.0, solver=TIGHT)
    torch.testing.assert_close(there.x[:, :3], state[:, :3], rtol=1e-8, atol=1e-8)


def test_noise_is_carried_into_a_category() -> None:
    flow, z = ContinuousFlow(silent(2, 1.0, 0.1)), draw(500, 5)
    z[:, :3] = 0
    alone = Segments.of_lengths(torch.ones(500, dtype=torch.int64))
    there = flow.transport(z, alone, start=1.0, end=0.0, solver=Solver(rtol=1e-7, atol=1e-7))
    h = there.x[:, 3:].detach()
    nearest = torch.eye(2, dtype=torch.float64)[h.argmax(1)]
    assert (h - nearest).abs().max() < 5 * 0.1
    assert 0.4 < nearest[:, 0].mean() < 0.6
    assert abs(float((h - nearest).std()) - 0.1) < 0.01


def test_logits_of_all_points_alike_are_what_features_say() -> None:
    field, state = silent(), draw(RAGGED.rows, 6)
    _, logits = field.velocity_and_logits(TIME, state, Edges.complete(RAGGED))
    variance = (1 - 0.37) ** 2 * 0.15**2 + 0.37**2
    torch.testing.assert_close(logits, (1 - 0.37) * 0.8 / variance * state[:, 3:])


@pytest.mark.parametrize(
    "options", [{"categories": 0}, {"feature_scale": 0.0}, {"feature_spread": -1.0}], ids=str
)
def test_options_out_of_range_are_named(options) -> None:
    with pytest.raises(UsageError, match=str(*options.values())):
        CategoricalEGNNField(**{"categories": 2, **options})
