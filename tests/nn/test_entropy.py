"""The entropy of features, its exact gradient, and what ascends it."""

import math
from typing import Any

import pytest
import torch
from awkward_graphs import DIRECTED, GRAPHS, IRREGULAR, SYMMETRIC, adjacency, cloud_matrix, draws
from awkward_graphs import relative as relative_error
from tolerances import TOLERANCE
from torch import Tensor, nn

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.flows import ContinuousFlow, Exact, Solver, Status, integrate
from eqflow.geometry import Segments, centred
from eqflow.nn import (
    AbstractField,
    EGNNField,
    Entropic,
    EntropyAscent,
    entropy,
    entropy_gradient,
    node_entropic_energies,
)
from eqflow.testing import assert_equivariant, assert_independent, clouds

every_graph = pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
both_normalisations = pytest.mark.parametrize("normalised", [False, True])
both_scales = pytest.mark.parametrize("scaled", [True, False])
TOLERANCE_OF_SUMS = TOLERANCE[torch.float64]
CLOUDS = dict(clouds())


class Still(AbstractField):
    """The field that moves nothing."""

    is_equivariant = True

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


def dense_entropy(
    x: Tensor, edges: Edges, temperature: float, normalised: bool, scaled: bool
) -> Tensor:
    """The formula over all pairs of nodes, without primitives."""
    a = adjacency(edges)
    degree = a.sum(1)
    c = torch.where(degree > 0, (degree.clamp(min=1) * x.shape[1]) ** -0.5, 0.0)
    if not scaled:
        c = torch.ones_like(c)
    energy = 0.5 * c * (a * (x.unsqueeze(1) - x.unsqueeze(0)).square().sum(-1)).sum(1)
    p = torch.exp(-energy / temperature)
    graphs = cloud_matrix(edges)
    if normalised:
        p = p / (graphs.T @ (graphs @ p))
    return -(graphs @ (p * p.log()))


@every_graph
@both_normalisations
@both_scales
@pytest.mark.parametrize("temperature", [0.7, 5.0])
def test_the_entropy_is_that_of_the_dense_formula(
    edges: Edges, normalised: bool, scaled: bool, temperature: float
) -> None:
    x = draws(edges.nodes, 3)
    found = entropy(x, edges, temperature, normalised=normalised, scaled=scaled)
    assert found.shape == (edges.clouds.count,)
    expected = dense_entropy(x, edges, temperature, normalised, scaled)
    assert relative_error(found, expected) < TOLERANCE_OF_SUMS


@every_graph
@both_normalisations
@both_scales
@pytest.mark.parametrize("temperature", [0.7, 5.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 3.0])
def test_the_gradient_is_that_of_autograd_to_twelve_digits(
    edges: Edges, normalised: bool, scaled: bool, temperature: float, size: float
) -> None:
    options = {"normalised": normalised, "scaled": scaled}
    x = (size * draws(edges.nodes, 3)).requires_grad_()
    (expected,) = torch.autograd.grad(entropy(x, edges, temperature, **options).sum(), x)
    found = entropy_gradient(x, edges, temperature, **options)
    # In a distribution terms of the size x/T cancel, and autograd has their rounding.
    unit = size / temperature if normalised else torch.finfo(x.dtype).tiny
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=unit)


def test_twelve_digits_also_on_a_large_irregular_graph() -> None:
    index = torch.randint(200, (2, 900), generator=torch.Generator().manual_seed(0))
    for pairs in (index, torch.cat([index, index.flip(0)], 1)):
        edges = Edges.from_index(pairs, 200)
        x = draws(200, 16).requires_grad_()
        (expected,) = torch.autograd.grad(entropy(x, edges, 10.0).sum(), x)
        assert relative_error(entropy_gradient(x, edges, 10.0), expected) < 1e-12


@pytest.mark.parametrize("name", ["repeated edges", "directed and repeated", "a batch"])
@both_normalisations
def test_derivatives_of_both_orders_are_right(name: str, normalised: bool) -> None:
    edges = GRAPHS[name]
    x = draws(edges.nodes, 2).requires_grad_()

    def gradient(x: Tensor) -> Tensor:
        return entropy_gradient(x, edges, 2.0, normalised=normalised)

    assert torch.autograd.gradcheck(gradient, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(gradient, x)


def test_equal_nodes_have_no_energy_and_no_gradient_and_derivatives_that_are_finite() -> None:
    x = torch.ones(12, 3, dtype=torch.float64, requires_grad=True)
    assert entropy(x, IRREGULAR).item() == 0
    assert entropy(x, IRREGULAR, normalised=True).item() == pytest.approx(math.log(12))
    gradient = entropy_gradient(x, IRREGULAR)
    assert not gradient.any()
    (second,) = torch.autograd.grad(gradient.square().sum() + gradient.sum(), x)
    assert bool(second.isfinite().all())


def test_near_collapse_the_ascent_is_a_step_against_the_laplacian() -> None:
    """There `P̄ → 1`: the term grows the differences, where the published one vanishes."""
    deviation = 1e-5 * draws(12, 3)
    c = 1 / (3 * adjacency(IRREGULAR).sum(1)).sqrt()
    weights = adjacency(IRREGULAR) * (c.unsqueeze(1) + c.unsqueeze(0))
    laplacian = weights.sum(1).diag() - weights
    found = entropy_gradient(1 + deviation, IRREGULAR, temperature=2.0)
    expected = laplacian @ deviation / 2.0
    assert (found - expected).abs().max() < 1e-8 * expected.abs().max()


@both_normalisations
def test_energies_far_above_the_temperature_give_no_nan(normalised: bool) -> None:
    x = (1e6 * draws(12, 3)).requires_grad_()
    s = entropy(x, IRREGULAR, 1e-3, normalised=normalised)
    (gradient,) = torch.autograd.grad(s.sum(), x)
    found = entropy_gradient(x, IRREGULAR, 1e-3, normalised=normalised)
    for value in (s, gradient, found):
        assert bool(value.isfinite().all())


@both_normalisations
@pytest.mark.parametrize("exponent", [66, -50])
def test_in_single_precision_only_the_size_over_the_temperature_matters(
    normalised: bool, exponent: int
) -> None:
    """`S(s x, s² T) = S(x, T)`, with squares of `s x` beyond the range of floats."""
    s, x = 2.0**exponent, draws(12, 3).float()
    options = {"normalised": normalised}
    tolerance = TOLERANCE[torch.float32]
    found = entropy(s * x, IRREGULAR, 3 * s**2, **options)
    assert relative_error(found, entropy(x, IRREGULAR, 3.0, **options)) < tolerance
    gradient = s * entropy_gradient(s * x, IRREGULAR, 3 * s**2, **options)
    assert relative_error(gradient, entropy_gradient(x, IRREGULAR, 3.0, **options)) < tolerance


@pytest.mark.parametrize("size", [1e20, 1e-30])
def test_extreme_features_at_a_usual_temperature_have_their_limits_in_single_precision(
    size: float,
) -> None:
    x = (size * draws(12, 3).float()).requires_grad_()
    for normalised in (False, True):
        s = entropy(x, IRREGULAR, normalised=normalised)
        (by_autograd,) = torch.autograd.grad(s.sum(), x)
        gradient = entropy_gradient(x, IRREGULAR, normalised=normalised)
        assert bool(gradient.isfinite().all())
        assert bool(by_autograd.isfinite().all())
        # All probability on the node of least energy, or all nodes alike.
        limit = math.log(12) if normalised and size < 1 else 0.0
        assert s.item() == pytest.approx(limit, abs=1e-6)
    if size < 1:  # `∇S` is linear in features there.
        expected = entropy_gradient((x.detach() / size).double() * 1e-9, IRREGULAR) / 1e-9
        found = entropy_gradient(x, IRREGULAR).detach().double() / size
        assert relative_error(found, expected) < TOLERANCE[torch.float32]


@every_graph
@both_normalisations
def test_the_centroid_of_each_graph_stays(edges: Edges, normalised: bool) -> None:
    gradient = entropy_gradient(draws(edges.nodes, 3), edges, 3.0, normalised=normalised)
    moved = edges.clouds.sum(gradient)
    assert float(moved.abs().max()) < 1e-14 * max(1.0, float(gradient.abs().max())) * edges.nodes


@both_normalisations
def test_graphs_of_a_batch_do_not_see_each_other(normalised: bool) -> None:
    edges = GRAPHS["a batch"]
    x = draws(8, 3)
    whole = entropy_gradient(x, edges, normalised=normalised)
    x[3:] = torch.nan
    alone = entropy_gradient(x, edges, normalised=normalised)
    assert torch.equal(alone[:3], whole[:3])
    assert bool(alone[3:7].isnan().all())
    s = entropy(x, edges, normalised=normalised)
    assert s.isnan().tolist()[:2] == [False, True]


@pytest.mark.parametrize("name", CLOUDS)
@both_normalisations
def test_the_ascent_turns_with_positions_on_every_cloud(name: str, normalised: bool) -> None:
    batch = CLOUDS[name]
    ascent = EntropyAscent(0.5, 4.0, normalised=normalised)
    field = Entropic(Still(), 0.5, 4.0, normalised=normalised)

    def point(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return ascent(x, Edges.complete(ptr))

    def vector(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(torch.zeros(()), x, Edges.complete(ptr))

    for group in ("E(3)", "S(n)"):
        assert_equivariant(point, batch, group=group, output="point")
        assert_equivariant(vector, batch, group=group, output="vector")
    assert_independent(vector, batch)


def test_a_permutation_of_nodes_permutes_the_gradient() -> None:
    edges = DIRECTED["directed"]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    place = order.argsort()
    moved = Edges.from_index(torch.stack([place[edges.sender], place[edges.receiver]]), 6)
    x = draws(6, 2)
    expected = entropy_gradient(x, edges)[order]
    assert relative_error(entropy_gradient(x[order], moved), expected) < 1e-14


def test_on_a_graph_of_one_degree_scales_are_a_matter_of_the_temperature() -> None:
    edges = Edges.complete(torch.tensor([0, 5]))
    x, c = draws(5, 3), (4 * 3) ** -0.5
    for of in (entropy, entropy_gradient):
        plain = of(x, edges, 2.0, scaled=False)
        assert relative_error(of(x, edges, c * 2.0), plain) < 1e-14


# The layer.


def test_the_layer_takes_a_step_and_none_where_the_weight_is_zero() -> None:
    x = draws(12, 3)
    expected = x - 0.3 * entropy_gradient(x, IRREGULAR, 2.0, normalised=True)
    plain = EntropyAscent(0.5, 2.0, scaled=False)(x, IRREGULAR)
    moved = x + 0.5 * entropy_gradient(x, IRREGULAR, 2.0, scaled=False)
    assert relative_error(plain, moved) < 1e-15
    ascent = EntropyAscent(-0.3, 2.0, normalised=True)
    assert relative_error(ascent(x, IRREGULAR), expected) < 1e-15
    assert torch.equal(EntropyAscent(0.0)(x, IRREGULAR), x)
    assert "temperature=2.0" in repr(ascent)


def test_what_is_constant_changes_the_derivative_and_not_the_value() -> None:
    x = draws(12, 3).requires_grad_()
    layers = {name: EntropyAscent(0.4, constant=name) for name in ("nothing", "weights", "term")}
    values = {name: layer(x, IRREGULAR) for name, layer in layers.items()}
    slopes = {
        name: torch.autograd.grad((value * draws(12, 3, seed=1)).sum(), x)[0]
        for name, value in values.items()
    }
    assert torch.equal(values["weights"], values["nothing"])
    assert torch.equal(values["term"], values["nothing"])
    assert torch.equal(slopes["term"], draws(12, 3, seed=1))
    # With constant weights the term is linear in x and its own transpose.
    at = x.detach()
    linear = torch.func.vjp(lambda x: entropy_gradient(x, IRREGULAR, constant_weights=True), at)[1](
        draws(12, 3, seed=1)
    )[0]
    assert relative_error(slopes["weights"], slopes["term"] + 0.4 * linear) < 1e-14
    assert relative_error(slopes["nothing"], slopes["weights"]) > 1e-2


@both_normalisations
@pytest.mark.parametrize("name", ["irregular", "directed", "a batch"])
def test_the_entropy_of_each_graph_rises_along_the_flow(name: str, normalised: bool) -> None:
    edges = GRAPHS[name]
    field = Entropic(Still(), 1.0, 2.0, normalised=normalised)
    times = torch.linspace(0, 3, 7, dtype=torch.float64)
    x = 0.3 * draws(edges.nodes, 3)
    solution = integrate(
        lambda t, state: (field(t, state[0], edges),),
        (x,),
        times,
        Solver(rtol=1e-8, atol=1e-10),
        edges.clouds,
    )
    assert solution.status is Status.SUCCESS
    path = solution.states[0]
    s = torch.stack([entropy(x, edges, 2.0, normalised=normalised) for x in path])
    has_edges = torch.tensor(
        [bool((edges.clouds.ids[edges.sender] == b).any()) for b in range(s.shape[1])]
    )
    rises = s.diff(dim=0)[:, has_edges]
    assert bool((rises > -1e-12).all())
    assert bool((s[-1] > s[0] + 1e-6)[has_edges].all())
    drift = edges.clouds.mean(path[-1]) - edges.clouds.mean(path[0])
    assert float(drift.abs().max()) < 1e-12


# In an equivariant flow.


def entropic_flow(weight: float = 1.5) -> ContinuousFlow:
    field = EGNNField(width=8, layers=2).double().requires_grad_(False)
    with torch.no_grad():
        for layer in field.egnn.layers:
            layer.coordinate_out.weight.mul_(100)
    return ContinuousFlow(Entropic(field, weight, 3.0))


def test_a_flow_with_the_term_turns_with_its_clouds() -> None:
    field = entropic_flow().field
    assert field.turns_with_state
    assert not field.carries_tangents

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(torch.tensor(0.3, dtype=torch.float64), x, field.connect(x, Segments(ptr)))

    for name in ("generic", "methane", "coincident", "co2"):
        for group in ("E(3)", "S(n)"):
            assert_equivariant(velocity, CLOUDS[name], group=group, output="vector")


def test_the_flow_of_the_term_has_the_density_of_its_own_jacobian() -> None:
    flow = entropic_flow()
    segments = Segments.of_lengths(torch.tensor([3]))
    x = centred(draws(3, 2), segments)
    tight = Solver(rtol=1e-9, atol=1e-9)

    def there(x: Tensor) -> Tensor:
        return flow.transport(x, segments, start=0.0, end=1.0, solver=tight).x.detach()

    carried = flow.transport(x, segments, start=0.0, end=1.0, solver=tight, divergence=Exact())
    z = carried.x
    assert float(segments.mean(z).detach().abs().max()) < 1e-12
    plain = ContinuousFlow(flow.field.field)
    without = plain.transport(x, segments, start=0.0, end=1.0, solver=tight)
    assert relative_error(z, without.x) > 1e-2
    back = flow.transport(z, segments, start=1.0, end=0.0, solver=tight).x
    assert relative_error(back, x) < 1e-6
    # The map of the centred subspace, by differences along an orthonormal basis of it.
    basis = torch.linalg.svd(centred(torch.eye(3).double(), segments))[2][:2]
    moves = torch.einsum("ki,ab->kaib", basis, torch.eye(2).double()).reshape(4, 3, 2)
    step = 1e-4
    columns = [(there(x + step * m) - there(x - step * m)) / (2 * step) for m in moves]
    jacobian = torch.stack([(m * c).sum() for c in columns for m in moves]).reshape(4, 4)
    assert abs(float(carried.log_det[0, 0].detach()) - float(jacobian.det().log())) < 1e-5


def test_the_term_goes_with_features_beside_positions_and_logits() -> None:
    class WithLogits(Still):
        state_features = 2
        context_features = 5

        def velocity_and_logits(self, t, x, edges, context=None):
            return self(t, x, edges, context), torch.ones(x.shape[0], 4)

    field = Entropic(WithLogits(), 0.5)
    assert (field.state_features, field.context_features) == (2, 5)
    x, edges = draws(12, 5), IRREGULAR
    velocity, logits = field.velocity_and_logits(torch.zeros(()), x, edges)
    assert torch.equal(velocity, field(torch.zeros(()), x, edges))
    assert relative_error(velocity, 0.5 * entropy_gradient(x, edges)) < 1e-15
    assert logits.shape == (12, 4)


# Bad input.


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    x = draws(12, 3)
    for refused in (
        lambda: entropy(x, IRREGULAR, temperature),
        lambda: entropy_gradient(x, IRREGULAR, temperature),
        lambda: EntropyAscent(1.0, temperature),
        lambda: Entropic(Still(), 1.0, temperature),
    ):
        with pytest.raises(UsageError, match="found a temperature of"):
            refused()


def test_other_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="found a weight of nan"):
        EntropyAscent(math.nan)
    with pytest.raises(UsageError, match="'nothing', 'weights', 'term'"):
        EntropyAscent(constant=True)
    with pytest.raises(UsageError, match="cutoff=None"):
        Entropic(EGNNField(width=4, layers=1, cutoff=2.0))
    for shape in ((12,), (12, 0), (12, 2, 2), (11, 2)):
        with pytest.raises(ShapeError):
            entropy(torch.zeros(shape, dtype=torch.float64), IRREGULAR)
    with pytest.raises(ShapeError, match="floating point"):
        entropy(torch.zeros(12, 3, dtype=torch.int64), IRREGULAR)


def test_an_edge_index_and_whole_numbers_are_refused() -> None:
    pairs: Any = torch.tensor([[0], [1]])
    for function in (entropy, entropy_gradient, node_entropic_energies):
        with pytest.raises(UsageError, match=r"found edges of type Tensor.*Edges\.from_index"):
            function(torch.ones(2, 1), pairs)
        with pytest.raises(ShapeError, match=r"of torch\.int64, expected"):
            function(torch.ones(12, 3, dtype=torch.int64), IRREGULAR)


def test_isolated_nodes_have_the_energy_zero_and_stay() -> None:
    edges = SYMMETRIC["two components and an isolated node"]
    x = draws(7, 3)
    assert node_entropic_energies(x, edges)[6].item() == 0
    assert not entropy_gradient(x, edges)[6].any()
    assert not entropy_gradient(x, edges, normalised=True)[6].any()


def test_a_layer_is_a_module_that_can_be_saved() -> None:
    network = nn.ModuleList([EntropyAscent(0.1), Entropic(EGNNField(width=4, layers=1))])
    network.load_state_dict(network.state_dict())
