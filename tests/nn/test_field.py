import pytest
import torch
from per_edge import awake
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Clouds, Segments, centred
from eqflow.nn import EGNNField
from eqflow.testing import assert_equivariant, assert_independent, clouds

SHAPES = {
    f"{name}, {dimension}-D": batch
    for dimension in (2, 3)
    for name, batch in clouds(dimension=dimension)
}
every_cloud = pytest.mark.parametrize("batch", SHAPES.values(), ids=SHAPES)
TIMES = (0.0, 0.37, 1.0)


def small(**options) -> EGNNField:
    return awake(EGNNField(**{"width": 8, "layers": 2, **options}))


def time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def divergence(field: EGNNField, t: Tensor, x: Tensor, ptr: Tensor) -> Tensor:
    edges = field.connect(x, Segments(ptr))

    def flat(v: Tensor) -> Tensor:
        return field(t, v.reshape(x.shape), edges).reshape(-1)

    return torch.func.jacrev(flat)(x.reshape(-1)).trace()


@every_cloud
@pytest.mark.parametrize("t", TIMES)
def test_the_velocity_turns_with_the_cloud_and_has_no_mean(batch: Clouds, t: float) -> None:
    field = small(context_features=1, time_frequencies=2)

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(time(t), x, Edges.complete(ptr), h / 10)

    for group in (f"E({batch.dimension})", "S(n)"):
        assert_equivariant(velocity, batch, group=group, output="vector")
    assert_independent(velocity, batch)
    mean = batch.segments.mean(velocity(batch.x, batch.ptr, batch.h))
    assert float(mean.detach().abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["generic, 2-D", "generic, 3-D", "pyridine, 3-D", "large, 3-D"])
def test_a_field_with_a_cutoff_turns_with_the_cloud(name: str) -> None:
    field, batch = small(cutoff=2.0), SHAPES[name]

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(time(0.3), x, field.connect(x, Segments(ptr)))

    for group in (f"E({batch.dimension})", "S(n)"):
        assert_equivariant(velocity, batch, group=group, output="vector")
    assert_independent(velocity, batch)


def test_a_lone_point_stays_where_it_is() -> None:
    field = small()
    x = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    assert (field(time(0.5), x, Edges.complete(torch.tensor([0, 1]))) == 0).all()


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_the_divergence_is_that_of_finite_differences(dimension: int) -> None:
    field, ptr = small(), torch.tensor([0, 4])
    x = torch.randn(4, dimension, dtype=torch.float64)
    edges, step, total = Edges.complete(ptr), 1e-5, 0.0
    for k in range(x.numel()):
        bump = torch.zeros(x.numel(), dtype=torch.float64)
        bump[k] = step
        bump = bump.reshape(x.shape)
        ahead, behind = field(time(0.2), x + bump, edges), field(time(0.2), x - bump, edges)
        total += float((ahead - behind).detach().reshape(-1)[k]) / (2 * step)
    assert abs(float(divergence(field, time(0.2), x, ptr).detach()) - total) < 1e-7


def test_forward_mode_batched_or_not_gives_the_derivative() -> None:
    field, edges = small(context_features=2), Edges.complete(torch.tensor([0, 3, 7]))
    x, context = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)

    def velocity(x: Tensor) -> Tensor:
        return field(time(0.4), x, edges, context)

    def push(v: Tensor) -> Tensor:
        return torch.func.jvp(velocity, (x,), (v,))[1]

    basis = torch.eye(21, dtype=torch.float64).reshape(21, 7, 3)
    jacobian = torch.autograd.functional.jacobian(velocity, x).reshape(21, 21)
    batched = torch.func.vmap(push)(basis).reshape(21, 21).t()
    one_by_one = torch.stack([push(v) for v in basis]).reshape(21, 21).t()
    torch.testing.assert_close(batched, jacobian, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one_by_one, jacobian, rtol=1e-12, atol=1e-12)


# Neighbours that come and go.


def across(field: EGNNField, gap: float) -> tuple[Tensor, Tensor, int]:
    """Field and divergence of a pair and two bystanders as the pair's distance is `2 + gap`."""
    x = torch.tensor(
        [[0.0, 0.0, 0.0], [2.0 + gap, 0.0, 0.0], [0.9, 0.9, 0.0], [1.2, -0.6, 0.8]],
        dtype=torch.float64,
    )
    ptr = torch.tensor([0, 4])
    edges = field.connect(x, Segments(ptr))
    velocity = field(time(0.3), x, edges).detach()
    return velocity, divergence(field, time(0.3), x, ptr).detach(), edges.count


def test_field_and_divergence_are_continuous_where_neighbours_cross_the_cutoff() -> None:
    # Strong layers that pull points together: later ones see the pair well within the cutoff.
    field = small(cutoff=2.0, layers=3, coordinate_range=None)
    for layer in field.egnn.layers:
        torch.nn.init.constant_(layer.coordinate_out.weight, -1.0)
        torch.nn.init.constant_(layer.coordinate.bias, 1.0)
    jumps = []
    for gap in (1e-3, 1e-4, 1e-5):
        inside, outside = across(field, -gap), across(field, gap)
        assert inside[2] == outside[2] + 2
        jumps.append([(a - b).abs().max() for a, b in zip(inside[:2], outside[:2], strict=True)])
    velocity, trace = torch.tensor(jumps).t()
    assert velocity[0] > 0  # otherwise the points do not move at all
    # The differences shrink as the gap does: nothing is left that jumps.
    assert velocity[2] < 0.02 * velocity[0]
    assert trace[2] < 0.02 * trace[0]


def test_an_abrupt_cutoff_would_have_been_noticed() -> None:
    field = small(cutoff=2.0, layers=3, coordinate_range=None)
    field.egnn.cutoff = None  # the graph still ends at 2, the messages no longer do
    jumps = []
    for gap in (1e-3, 1e-5):
        inside, outside = across(field, -gap), across(field, gap)
        jumps.append((inside[0] - outside[0]).abs().max())
    assert jumps[1] > 0.5 * jumps[0]


def test_points_further_apart_than_the_cutoff_do_not_feel_each_other() -> None:
    field = small(cutoff=2.0)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [9.5, 0.5]], dtype=torch.float64)
    together = field(time(0.1), x, field.connect(x, Segments(torch.tensor([0, 4]))))
    apart = field(time(0.1), x, field.connect(x, Segments(torch.tensor([0, 2, 4]))))
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-14)


# Time, context, connection.


def test_a_time_for_each_cloud_is_the_time_of_that_cloud() -> None:
    field = small(time_frequencies=3)
    ptr = torch.tensor([0, 3, 3, 7])
    x = torch.randn(7, 3, dtype=torch.float64)
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    edges = Edges.complete(ptr)
    together = field(times, x, edges)
    first, last = field(times[0], x, edges), field(times[2], x, edges)
    torch.testing.assert_close(together, torch.cat([first[:3], last[3:]]), rtol=1e-13, atol=1e-13)
    assert (first - last).abs().max() > 1e-3
    same = field(times[:1].expand(3), x, edges)
    assert torch.equal(same, first)


def test_the_velocity_has_a_derivative_by_time() -> None:
    field = small(time_frequencies=2)
    edges = Edges.complete(torch.tensor([0, 4]))
    x, t, step = torch.randn(4, 3, dtype=torch.float64), time(0.3), 1e-6
    _, slope = torch.func.jvp(lambda t: field(t, x, edges), (t,), (torch.ones_like(t),))
    difference = (field(t + step, x, edges) - field(t - step, x, edges)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-8)


def test_context_changes_the_velocity() -> None:
    field = small(context_features=1)
    edges = Edges.complete(torch.tensor([0, 4]))
    x = torch.randn(4, 3, dtype=torch.float64)
    context = torch.zeros(4, 1, dtype=torch.float64)
    one, other = field(time(0.0), x, edges, context), field(time(0.0), x, edges, context + 1)
    assert (one - other).abs().max() > 1e-3


def test_single_precision_follows_double() -> None:
    field, batch = small(), SHAPES["far, 3-D"]
    x = batch.x.float()
    edges = Edges.complete(batch.ptr)
    expected = field(time(0.4), x.double(), edges)
    found = field.float()(torch.tensor(0.4), x, edges)
    error = (found.double() - expected).norm() / expected.norm()
    assert float(error.detach()) < TOLERANCE[torch.float32]


def test_every_parameter_has_a_gradient() -> None:
    field = small(layers=3, context_features=1, time_frequencies=1)
    edges = Edges.complete(torch.tensor([0, 4]))
    x = torch.randn(4, 3, dtype=torch.float64)
    field(time(0.4), x, edges, x[:, :1]).square().sum().backward()
    dead = [name for name, p in field.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_connect_makes_complete_graphs_or_those_within_the_cutoff() -> None:
    x, ptr = torch.randn(9, 3), torch.tensor([0, 4, 9])
    assert small().connect(x, Segments(ptr)).is_complete
    near = small(cutoff=1.0).connect(x, Segments(ptr))
    assert torch.equal(near.sender, Edges.radius(x, 1.0, ptr).sender)


def test_the_velocity_is_the_displacement_of_the_network_without_its_mean() -> None:
    field = small()
    edges = Edges.complete(torch.tensor([0, 4]))
    x = centred(torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 4]))
    h = torch.full((4, 1), 0.6, dtype=torch.float64)
    displacement = field.egnn(x, h, edges)[0] - x
    expected = displacement - displacement.mean(0)
    torch.testing.assert_close(field(time(0.6), x, edges), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", [{"time_frequencies": -1}, {"context_features": -1}])
def test_a_negative_width_is_an_error(options: dict) -> None:
    with pytest.raises(UsageError, match="expected 0 or more"):
        EGNNField(**options)


def test_a_cutoff_with_a_mean_over_neighbours_is_an_error() -> None:
    with pytest.raises(UsageError, match="jumps at the cutoff"):
        EGNNField(cutoff=1.0, coordinate_update="mean")


def test_context_that_does_not_fit_is_an_error() -> None:
    edges = Edges.complete(torch.tensor([0, 2]))
    x = torch.zeros(2, 3)
    with pytest.raises(ShapeError, match="found 0 context features, expected 2"):
        EGNNField(2)(torch.tensor(0.0), x, edges)
    with pytest.raises(ShapeError, match="found 1 context features, expected 0"):
        EGNNField()(torch.tensor(0.0), x, edges, x[:, :1])
