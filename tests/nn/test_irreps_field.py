"""The field of spherical tensors: symmetry, derivatives, and what it is asked in a flow."""

import copy
import math

import pytest
import torch
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.flows import (
    ContinuousFlow,
    Exact,
    Hutchinson,
    HutchPlusPlus,
    MaximumLikelihood,
    Solver,
)
from eqflow.flows.exact import ExactForward, ExactReverse
from eqflow.flows.field_at import FieldAt
from eqflow.flows.objectives import Batch
from eqflow.geometry import Clouds, Segments, centred
from eqflow.nn import IrrepsField
from eqflow.testing import assert_equivariant, assert_independent, clouds

SHAPES = {
    f"{name}, {dimension}-D": batch
    for dimension in (2, 3)
    for name, batch in clouds(dimension=dimension)
}
# Where 1e-12 is asked for: far from the origin positions themselves have lost digits.
TIGHT = {name: batch for name, batch in SHAPES.items() if not name.startswith("far")}
PTR = torch.tensor([0, 3, 7])


def awake(field: IrrepsField) -> IrrepsField:
    """In float64, its last layer as large as the others: as if it had been trained."""
    torch.nn.init.normal_(field.readout[-1].weight)
    return field.double()


def small(**options) -> IrrepsField:
    return awake(IrrepsField(**{"width": 4, "layers": 2, "radial": 5, **options}))


def time(t: float = 0.3) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# Symmetry.


@pytest.mark.parametrize("batch", TIGHT.values(), ids=TIGHT)
def test_the_velocity_turns_and_mirrors_with_the_cloud_to_rounding(batch: Clouds) -> None:
    size = {"width": 2, "layers": 1} if len(batch.x) > 100 else {}
    require_symmetry(small(context_features=1, time_frequencies=2, **size), batch)


@pytest.mark.parametrize("lmax", [1, 3, 6])
@pytest.mark.parametrize(
    "name", ["generic, 2-D", "generic, 3-D", "methane, 3-D", "coincident, 3-D"]
)
def test_the_velocity_is_equivariant_whatever_the_order(name: str, lmax: int) -> None:
    require_symmetry(small(context_features=1, lmax=lmax), SHAPES[name])


def require_symmetry(field: IrrepsField, batch: Clouds) -> None:
    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(time(), x, Edges.complete(ptr), h / 10)

    for group in (f"E({batch.dimension})", "S(n)"):
        assert_equivariant(velocity, batch, group=group, output="vector", tolerance=1e-12)
    assert_independent(velocity, batch, tolerance=1e-12)
    mean = batch.segments.mean(velocity(batch.x, batch.ptr, batch.h))
    assert float(mean.detach().abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["far, 2-D", "far, 3-D"])
def test_far_from_the_origin_no_more_digits_are_lost_than_the_positions_have(name: str) -> None:
    field, batch = small(), SHAPES[name]

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(time(), x, Edges.complete(ptr))

    assert_equivariant(velocity, batch, group=f"E({batch.dimension})", output="vector")


@pytest.mark.parametrize("name", ["generic, 2-D", "generic, 3-D", "pyridine, 3-D", "large, 3-D"])
def test_a_field_with_a_cutoff_turns_with_the_cloud(name: str) -> None:
    field, batch = small(cutoff=2.0), SHAPES[name]

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(time(), x, field.connect(x, Segments(ptr)))

    for group in (f"E({batch.dimension})", "S(n)"):
        assert_equivariant(velocity, batch, group=group, output="vector")
    assert_independent(velocity, batch)


def test_the_mirror_image_of_a_chiral_cloud_has_the_mirror_image_of_its_velocity() -> None:
    field, x = small(lmax=3), normal(5, 3)
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    edges = Edges.complete(torch.tensor([0, 5]))
    found, expected = field(time(), mirror * x, edges), mirror * field(time(), x, edges)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_points_in_the_plane_move_as_they_do_in_space_and_stay_in_it() -> None:
    field, x = small(), normal(7, 2)
    edges = Edges.complete(PTR)
    flat = torch.nn.functional.pad(x, (0, 1))
    in_space = field(time(), flat, edges)
    torch.testing.assert_close(field(time(), x, edges), in_space[:, :2], rtol=1e-12, atol=1e-14)
    assert float(in_space[:, 2].detach().abs().max()) < 1e-14


def test_a_model_made_in_single_precision_is_as_equivariant_in_double() -> None:
    field, batch = copy.deepcopy(small().float()).double(), SHAPES["generic, 3-D"]

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(time(), x, Edges.complete(ptr))

    assert_equivariant(velocity, batch, group="E(3)", output="vector", tolerance=1e-12)
    assert all("weight" in name or "bias" in name for name in field.state_dict())


def test_single_precision_follows_double() -> None:
    field, batch = small(), SHAPES["far, 3-D"]
    x, edges = batch.x.float(), Edges.complete(batch.ptr)
    expected = field(time(), x.double(), edges)
    found = field.float()(torch.tensor(0.3), x, edges)
    error = (found.double() - expected).norm() / expected.norm()
    assert float(error.detach()) < TOLERANCE[torch.float32]


def test_a_lone_point_stays_where_it_is() -> None:
    x = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)
    assert (small()(time(), x, Edges.complete(torch.tensor([0, 1]))) == 0).all()


def test_a_velocity_leaves_a_plane_only_with_points_outside_of_it() -> None:
    """Vectors need no cross product: of points in a plane they lie in it, of others they do not."""
    field, x = small(), normal(4, 3)
    edges = Edges.complete(torch.tensor([0, 4]))
    x[:, 2] = 0
    assert float(field(time(), x, edges)[:, 2].detach().abs().max()) < 1e-14
    x[3, 2] = 1
    assert float(field(time(), x, edges)[:3, 2].detach().abs().max()) > 1e-3


# Derivatives.


@pytest.mark.parametrize("options", [{}, {"lmax": 1, "layers": 1}, {"cutoff": 2.5}], ids=str)
@pytest.mark.parametrize("dimension", [2, 3])
def test_the_velocity_can_be_differentiated_twice(dimension: int, options: dict) -> None:
    field = small(**{"width": 2, "radial": 3, "context_features": 1, **options})
    x, context, t = normal(4, dimension), normal(4, 1), time()
    edges = field.connect(x, Segments(torch.tensor([0, 3, 4])))
    inputs = tuple(part.requires_grad_() for part in (t, x, context))
    assert torch.autograd.gradcheck(lambda t, x, c: field(t, x, edges, c), inputs)
    assert torch.autograd.gradgradcheck(lambda t, x, c: field(t, x, edges, c), inputs)


@pytest.mark.parametrize(
    "shape", [[], [0.0], [0.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 1.0]], ids=str
)
@pytest.mark.parametrize("options", [{}, {"lmax": 3}, {"cutoff": 1.5}], ids=str)
def test_two_derivatives_are_finite_and_moderate_on_degenerate_clouds(
    shape: list[float], options: dict
) -> None:
    x = torch.tensor(shape, dtype=torch.float64).unsqueeze(1) * torch.ones(3, dtype=torch.float64)
    field, x = small(**options), x.requires_grad_()
    edges = field.connect(x, Segments(torch.tensor([0, len(x)])))
    loss = (field(time(), x, edges) * torch.arange(3 * len(x)).reshape(-1, 3)).sum()
    first = torch.autograd.grad(loss, x, create_graph=True)[0]
    parameters = [x, *field.parameters()]
    second = torch.autograd.grad(
        first.square().sum(), parameters, allow_unused=True, materialize_grads=True
    )
    for found in (loss, first, *second):
        assert found.isfinite().all()
        assert (found.abs() < 1e6).all()


def test_self_loops_isolated_nodes_and_directed_graphs_are_taken() -> None:
    field, x = small(), normal(4, 3).requires_grad_()
    edges = Edges.from_index(torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]]), 4)
    velocity = field(time(), x, edges)
    gradient = torch.autograd.grad(velocity.square().sum(), x)[0]
    assert velocity.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(velocity[2], velocity[3])  # neither receives anything


def test_forward_mode_batched_or_not_gives_the_derivative() -> None:
    field, edges = small(context_features=2), Edges.complete(PTR)
    x, context = normal(7, 3), normal(7, 2)

    def push(v: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: field(time(), x, edges, context), (x,), (v,))[1]

    basis = torch.eye(21, dtype=torch.float64).reshape(21, 7, 3)
    jacobian = torch.autograd.functional.jacobian(lambda x: field(time(), x, edges, context), x)
    for pushed in (torch.func.vmap(push)(basis), torch.stack([push(v) for v in basis])):
        found = pushed.reshape(21, 21).t()
        torch.testing.assert_close(found, jacobian.reshape(21, 21), rtol=1e-11, atol=1e-12)


# Divergence.


def by_differences(field: IrrepsField, x: Tensor, edges: Edges) -> Tensor:
    """Divergence of each cloud by central differences."""
    found, step = torch.zeros(x.shape, dtype=x.dtype), 1e-5
    for k in range(x.numel()):
        bump = torch.zeros(x.numel(), dtype=x.dtype)
        bump[k] = step
        bump = bump.reshape(x.shape)
        with torch.no_grad():
            ahead, behind = field(time(), x + bump, edges), field(time(), x - bump, edges)
        found.view(-1)[k] = (ahead - behind).view(-1)[k] / (2 * step)
    return edges.clouds.sum(found.sum(1))


@pytest.mark.parametrize("options", [{}, {"cutoff": 2.0}], ids=str)
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("divergence", [Exact(), ExactReverse(), ExactForward()], ids=type)
def test_the_divergence_is_that_of_finite_differences(
    divergence: Exact, dimension: int, options: dict
) -> None:
    field, x = small(**options), normal(9, dimension)
    clouds = Segments(torch.tensor([0, 4, 4, 5, 9]))
    edges = field.connect(x, clouds)
    trace = divergence(FieldAt(field, time(), edges), x, clouds, x.new_zeros(0))
    expected = by_differences(field, x, edges)
    torch.testing.assert_close(trace.estimates[:, 0], expected, rtol=1e-6, atol=1e-7)
    assert float(expected.abs().max()) > 0.01


@pytest.mark.parametrize("shape", ["methane, 3-D", "co2, 3-D", "benzene, 2-D", "coincident, 3-D"])
def test_the_divergence_is_right_where_rotations_say_less(shape: str) -> None:
    field, batch = small(), SHAPES[shape]
    edges = Edges.complete(batch.ptr)
    trace = Exact()(FieldAt(field, time(), edges), batch.x, batch.segments, batch.x.new_zeros(0))
    expected = by_differences(field, batch.x, edges)
    torch.testing.assert_close(trace.estimates[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_an_estimate_is_the_quadratic_form_of_its_probe() -> None:
    field, x, clouds = small(), normal(7, 3), Segments(PTR)
    velocity = FieldAt(field, time(), Edges.complete(clouds))
    jacobian = torch.autograd.functional.jacobian(velocity, x).reshape(21, 21)
    divergence = Hutchinson(2)
    probes = divergence.probes(x, clouds, rng.generator(0, "test"))
    found = divergence(velocity, x, clouds, probes).estimates
    expected = torch.stack(
        [clouds.sum(((jacobian @ p.flatten()).reshape(7, 3) * p).sum(1)) for p in probes], 1
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    sketched = HutchPlusPlus(2, 1)
    drawn = sketched.probes(x, clouds, rng.generator(0, "test"))
    assert sketched(velocity, x, clouds, drawn).estimates.isfinite().all()


@pytest.mark.parametrize("divergence", [Exact(), ExactForward(), Hutchinson(1)], ids=type)
def test_a_trace_is_differentiable_by_positions_and_parameters(divergence: Exact) -> None:
    field, clouds = small(width=2, radial=3), Segments(torch.tensor([0, 3, 5]))
    velocity, x = FieldAt(field, time(), Edges.complete(clouds)), normal(5, 2)
    probes = divergence.probes(x, clouds, rng.generator(0, "test"))

    def total(x: Tensor) -> Tensor:
        return divergence(velocity, x, clouds, probes).estimates.sum()

    assert torch.autograd.gradcheck(total, x.clone().requires_grad_())
    for weight in (field.embed.weight, field.layers[0].path_weights.weight):
        slope = torch.autograd.grad(total(x), weight)[0].view(-1)[0]
        ends = []
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                weight.view(-1)[0] += step
                ends.append(total(x))
                weight.view(-1)[0] -= step
        torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("trace", "weights"),
    [(Exact(), {}), (Hutchinson(1), {"kinetic": 0.01, "jacobian": 0.01})],
    ids=["exact", "regularised hutchinson"],
)
def test_maximum_likelihood_trains_it(trace: Exact, weights: dict[str, float]) -> None:
    field = small(width=3)
    objective = MaximumLikelihood(Solver("rk4", steps=2), trace, **weights)
    clouds = Segments(torch.tensor([0, 4, 8, 12]))
    batch = Batch(centred(normal(12, 2), clouds), clouds)

    def loss() -> Tensor:
        return objective(ContinuousFlow(field), batch, rng.generator(0, "test")).value

    loss().backward()
    gradients = {name: p.grad for name, p in field.named_parameters()}
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients.values())
    weight, ends = field.layers[1].scalars.weight, []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            weight[0, 0] += step
            ends.append(float(loss()))
            weight[0, 0] -= step
    slope = float(gradients["layers.1.scalars.weight"][0, 0])
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-9)


# Neighbours that come and go.


def test_field_and_divergence_are_continuous_where_neighbours_cross_the_cutoff() -> None:
    field, jumps = small(cutoff=2.0, layers=3), []
    for gap in (1e-3, 1e-4, 1e-5):
        found = []
        for side in (-gap, gap):
            points = [[0.0, 0.0, 0.0], [2.0 + side, 0.0, 0.0], [0.9, 0.9, 0.0], [1.2, -0.6, 0.8]]
            x, clouds = torch.tensor(points, dtype=torch.float64), Segments(torch.tensor([0, 4]))
            edges = field.connect(x, clouds)
            trace = Exact()(FieldAt(field, time(), edges), x, clouds, x.new_zeros(0))
            found.append((trace.velocity.detach(), trace.estimates.detach(), edges.count))
        inside, outside = found
        assert inside[2] == outside[2] + 2
        jumps.append([float((inside[k] - outside[k]).abs().max()) for k in (0, 1)])
    assert jumps[0][0] > 0  # otherwise the points do not move at all
    assert jumps[2][0] < 0.02 * jumps[0][0]
    assert jumps[2][1] < 0.02 * jumps[0][1]


def test_points_further_apart_than_the_cutoff_do_not_feel_each_other() -> None:
    field = small(cutoff=2.0)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [9.5, 0.5]], dtype=torch.float64)
    together = field(time(), x, field.connect(x, Segments(torch.tensor([0, 4]))))
    apart = field(time(), x, field.connect(x, Segments(torch.tensor([0, 2, 4]))))
    # Only the mean that is removed is one of more points.
    together = together - together.reshape(2, 2, 2).mean(1).repeat_interleave(2, 0)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-14)


# Time, context, options.


def test_a_time_for_each_cloud_is_the_time_of_that_cloud() -> None:
    field, x = small(time_frequencies=3), normal(7, 3)
    edges = Edges.complete(torch.tensor([0, 3, 3, 7]))
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = field(times, x, edges)
    first, last = field(times[0], x, edges), field(times[2], x, edges)
    torch.testing.assert_close(together, torch.cat([first[:3], last[3:]]), rtol=1e-12, atol=1e-13)
    assert (first - last).abs().max() > 1e-3


def test_context_changes_the_velocity() -> None:
    field, x = small(context_features=1), normal(4, 3)
    edges, context = Edges.complete(torch.tensor([0, 4])), torch.zeros(4, 1, dtype=torch.float64)
    one, other = field(time(), x, edges, context), field(time(), x, edges, context + 1)
    assert (one - other).abs().max() > 1e-3


def test_angles_are_noticed_within_one_layer() -> None:
    """Two clouds whose points have the same distances from the first, at other angles."""
    field, edges = small(layers=2), Edges.from_index(torch.tensor([[1, 2], [0, 0]]), 3)
    angles = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    speeds = []
    for pair in angles:
        x = torch.zeros(3, 3, dtype=torch.float64)
        x[1:, 0], x[1:, 1] = pair.cos(), pair.sin()
        speeds.append(float(field(time(), x, edges)[0].detach().norm()))
    assert abs(speeds[0] - speeds[1]) > 1e-3


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("lmax", [1, 2])
def test_every_parameter_has_a_gradient(layers: int, lmax: int) -> None:
    field, x = small(layers=layers, lmax=lmax, context_features=1), normal(4, 3)
    edges = Edges.complete(torch.tensor([0, 4]))
    field(time(), x, edges, x[:, :1]).square().sum().backward()
    dead = [name for name, p in field.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_a_new_field_moves_points_by_almost_nothing() -> None:
    field, x = IrrepsField(width=16), torch.randn(13, 3)
    velocity = field(torch.tensor(0.0), x, Edges.complete(torch.tensor([0, 13])))
    assert 0 < float(velocity.detach().norm(dim=1).max()) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width=0"),
        ({"layers": 0}, "layers=0"),
        ({"radial": 1}, "radial=1, expected whole numbers, each at least 2"),
        ({"lmax": 0}, r"lmax=0, expected 1 \(vectors\) to 6"),
        ({"lmax": 7}, "lmax=7"),
        ({"lmax": "2"}, "lmax='2', expected 1"),
        ({"lmax": 1.5}, "lmax=1.5, expected 1"),
        ({"width": "a", "layers": 1.5}, "width='a', layers=1.5, expected whole numbers"),
        ({"cutoff": 0.0}, "cutoff: found 0.0"),
        ({"cutoff": math.inf}, "cutoff: found inf"),
        ({"time_frequencies": -1}, "expected 0 or more"),
        ({"context_features": -1}, "expected 0 or more"),
    ],
)
def test_an_option_out_of_range_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        IrrepsField(**options)


@pytest.mark.parametrize("dimension", [1, 4])
def test_another_dimension_is_an_error(dimension: int) -> None:
    with pytest.raises(ShapeError, match="irreps are those of O"):
        small()(time(), normal(7, dimension), Edges.complete(PTR))


def test_inputs_that_do_not_fit_are_errors() -> None:
    edges = Edges.complete(PTR)
    with pytest.raises(ShapeError, match=r"x has shape \(6, 3\), expected \(7, 3\)"):
        small()(time(), normal(6, 3), edges)
    with pytest.raises(ShapeError, match="found 0 context features, expected 2"):
        small(context_features=2)(time(), normal(7, 3), edges)
