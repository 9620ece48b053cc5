"""Tangents carried by hand are those of forward mode, and can be trained through."""

import pytest
import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Dual, Edges
from eqflow.errors import UsageError
from eqflow.flows import ContinuousFlow, Exact, Hutchinson
from eqflow.geometry import Segments, centred
from eqflow.nn import EGCL, EGNN, AbstractField, EGNNField

TIME = torch.tensor(0.3, dtype=torch.float64)
CLOUDS = Segments.of_lengths(torch.tensor([4, 7, 1, 2]))
OPTIONS = [
    {"attention": False, "coordinate_range": None},
    {"attention": True},
    {"cutoff": 1.5},
    {"coordinate_update": "mean"},
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = rng.generator(seed, "pushforward", *map(str, shape))
    return rng.normal(shape, torch.zeros((), dtype=torch.float64), source)


def enlarged(module):
    module = module.double()
    for k, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * draw(*parameter.shape, seed=k)
    return module


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_velocity_and_tangents_are_those_of_forward_mode(options, directions) -> None:
    field = enlarged(EGNNField(width=6, layers=3, **options))
    x, moved = draw(CLOUDS.rows, 3), draw(CLOUDS.rows, directions, 3)
    edges = field.connect(x, CLOUDS)
    value, tangents = field.pushforward(TIME, Dual(x, moved), edges)
    for s in range(directions):
        expected = torch.func.jvp(lambda x: field(TIME, x, edges), (x,), (moved[:, s],))
        torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(tangents[:, s], expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_gradient_of_an_estimate_is_that_of_reverse_mode(options) -> None:
    field = enlarged(EGNNField(width=6, layers=2, **options))
    x = centred(draw(CLOUDS.rows, 3), CLOUDS).requires_grad_()
    velocity = ContinuousFlow(field).dynamics(CLOUDS)(TIME, x)
    probe = Hutchinson().probes(x, CLOUDS, rng.generator(0, "probe"))
    leaves = [x, *field.parameters()]
    forward = Hutchinson()(velocity, x, CLOUDS, probe)
    reverse = Hutchinson()(lambda moved: velocity(moved), x, CLOUDS, probe)
    torch.testing.assert_close(forward.estimates, reverse.estimates, rtol=1e-10, atol=1e-11)
    found, expected = (
        torch.autograd.grad(trace.estimates.sum() + trace.velocity.square().sum(), leaves)
        for trace in (forward, reverse)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_both_directions_of_the_product_estimate_one_norm() -> None:
    field = enlarged(EGNNField(width=6, layers=2))
    x = centred(draw(CLOUDS.rows, 3), CLOUDS)
    velocity = ContinuousFlow(field).dynamics(CLOUDS)(TIME, x)
    probes = Hutchinson(400).probes(x, CLOUDS, rng.generator(1, "probe"))
    with torch.no_grad():
        forward = [Hutchinson()(velocity, x, CLOUDS, probe[None]).jacobian for probe in probes]
        reverse = Hutchinson(400)(velocity, x, CLOUDS, probes).jacobian
    forward = torch.stack(forward)
    error = forward.std(0) / 20
    assert ((forward.mean(0) - reverse).abs() <= 5 * (2**0.5) * error + 1e-12).all()


def test_features_come_out_with_their_tangents() -> None:
    egnn = enlarged(EGNN(features=2, width=6, layers=2, infer_edges=True, attention=True))
    edges, x, h = Edges.complete(CLOUDS), draw(CLOUDS.rows, 3), draw(CLOUDS.rows, 2)
    moved = draw(CLOUDS.rows, 2, 3)
    here, features = egnn.pushforward(Dual(x, moved), Dual(h), edges)
    for s in range(2):
        value, tangent = torch.func.jvp(lambda x: egnn(x, h, edges), (x,), (moved[:, s],))
        for dual, expected, along in zip((here, features), value, tangent, strict=True):
            torch.testing.assert_close(dual.value, expected, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(dual.tangent[:, s], along, rtol=1e-10, atol=1e-10)


def test_a_layer_with_momentum_says_that_it_carries_no_tangents() -> None:
    layer, x, h = EGCL(3, momentum=True), torch.zeros(3, 2), torch.zeros(3, 3)
    with pytest.raises(UsageError, match="without momentum"):
        layer.pushforward(Dual(x, x[:, None]), Dual(h), Edges.complete(torch.tensor([0, 3])))


def test_a_field_without_tangents_says_so_and_is_differentiated_backwards() -> None:
    class Plain(AbstractField):
        def forward(self, t, x, edges, context=None):
            return centred(torch.tanh(x), edges.clouds)

    field, x = Plain(), centred(draw(CLOUDS.rows, 3), CLOUDS)
    assert not field.carries_tangents
    with pytest.raises(UsageError, match="Plain carries no tangents"):
        field.pushforward(TIME, Dual(x, x[:, None]), Edges.complete(CLOUDS))
    velocity = ContinuousFlow(field).dynamics(CLOUDS)(TIME, x)
    probe = Hutchinson().probes(x, CLOUDS, rng.generator(0, "probe"))
    with torch.no_grad():
        found = Hutchinson()(velocity, x, CLOUDS, probe)
    slope = 1 - torch.tanh(x).square()
    expected = CLOUDS.sum((probe[0].square() * slope).sum(-1))
    torch.testing.assert_close(found.estimates[:, 0], expected)


def test_a_subclass_with_a_forward_of_its_own_is_not_given_its_parents_derivatives() -> None:
    class Doubled(EGNNField):
        def forward(self, t, x, edges, context=None):
            return 2 * super().forward(t, x, edges, context)

    class Renamed(EGNNField):
        pass

    x = centred(draw(CLOUDS.rows, 3), CLOUDS)
    parent, child = (enlarged(kind(width=6, layers=2)) for kind in (EGNNField, Doubled))
    assert Renamed(width=6, layers=2).carries_tangents
    assert not child.carries_tangents
    assert not child.traces_itself
    probe = Hutchinson().probes(x, CLOUDS, rng.generator(0, "probe"))
    for divergence in (Exact(), Hutchinson()):
        with torch.no_grad():
            one, two = (
                divergence(ContinuousFlow(field).dynamics(CLOUDS)(TIME, x), x, CLOUDS, probe)
                for field in (parent, child)
            )
        torch.testing.assert_close(two.velocity, 2 * one.velocity)
        torch.testing.assert_close(two.estimates, 2 * one.estimates)


def test_a_hook_on_the_field_is_heard() -> None:
    field, x = enlarged(EGNNField(width=6, layers=2)), centred(draw(CLOUDS.rows, 3), CLOUDS)
    field.register_forward_hook(lambda module, inputs, velocity: 3 * velocity)
    velocity = ContinuousFlow(field).dynamics(CLOUDS)(TIME, x)
    with torch.no_grad():
        trace = Exact()(velocity, x, CLOUDS, x.new_zeros(0))
    torch.testing.assert_close(trace.velocity, velocity(x))


class Faster(EGNN):
    """A network whose forward is not the one that its parent's tangents belong to."""

    def forward(self, x: Tensor, h: Tensor, edges: Edges, *rest: Tensor | None) -> tuple:
        """Moves twice as far."""
        moved, h = super().forward(x, h, edges, *rest)
        return x + 2 * (moved - x), h


def exchange_network(field: EGNNField) -> None:
    field.egnn.__class__ = Faster


def exchange_activation(field: EGNNField) -> None:
    field.egnn.layers[0].feature_update[1] = torch.nn.Tanh()


def hook_network(field: EGNNField) -> None:
    field.egnn.register_forward_hook(lambda module, inputs, found: (2 * found[0], found[1]))


@pytest.mark.parametrize("change", [exchange_network, exchange_activation, hook_network])
@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(1)], ids=["exact", "one probe"])
@torch.no_grad()
def test_what_is_changed_inside_the_network_is_heard(change, divergence) -> None:
    field, x = enlarged(EGNNField(width=6, layers=2)), centred(draw(CLOUDS.rows, 3), CLOUDS)
    assert field.carries_tangents
    change(field)
    assert not field.carries_tangents
    velocity = ContinuousFlow(field).dynamics(CLOUDS)(TIME, x)
    probes = divergence.probes(x, CLOUDS, rng.generator(0))
    found = divergence(velocity, x, CLOUDS, probes)
    expected = divergence(lambda y: velocity(y), x, CLOUDS, probes)  # which knows no field
    torch.testing.assert_close(found.velocity, velocity(x))
    torch.testing.assert_close(found.estimates, expected.estimates)


def test_func_transforms_pass_through_tangents() -> None:
    field = enlarged(EGNNField(width=6, layers=2))
    x, moved = draw(CLOUDS.rows, 3), draw(CLOUDS.rows, 1, 3)
    edges = field.connect(x, CLOUDS)

    def trace(x: Tensor) -> Tensor:
        return (field.pushforward(TIME, Dual(x, moved), edges)[1] * moved).sum()

    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(
        torch.func.grad(trace)(x), torch.autograd.grad(trace(leaf), leaf)[0], rtol=1e-9, atol=1e-9
    )
