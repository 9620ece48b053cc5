"""Laws of guidance: the two fields that it lies between, and their derivatives."""

import pytest
import torch
from per_edge import awake
from torch import Tensor

from eqflow.edges import Dual, Edges
from eqflow.errors import UsageError
from eqflow.flows import ContinuousFlow, Exact, ExactForward, Hutchinson
from eqflow.flows.exact import ExactReverse
from eqflow.geometry import Clouds, Segments
from eqflow.nn import (
    AbstractField,
    CategoricalEGNNField,
    EGNNField,
    GuidedField,
    JointEGNNField,
)
from eqflow.testing import assert_equivariant, assert_independent, clouds

RAGGED = Segments.of_lengths(torch.tensor([4, 6, 1, 2]))
TIME = torch.tensor(0.37, dtype=torch.float64)
CONDITION = 2
OPTIONS = {"context_features": 3, "width": 8, "layers": 2}
FIELDS = {
    "egnn": lambda: EGNNField(**OPTIONS),
    "joint": lambda: JointEGNNField(2, **OPTIONS),
    "categorical": lambda: CategoricalEGNNField(2, **OPTIONS),
}
every_field = pytest.mark.parametrize("name", FIELDS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source)


def given(name: str) -> tuple[AbstractField, Tensor, Tensor]:
    """A field, a state and a context."""
    field = awake(FIELDS[name]())
    return field, draw(RAGGED.rows, 3 + field.state_features), draw(RAGGED.rows, 3, seed=1)


def without(context: Tensor) -> Tensor:
    return torch.cat([context[:, :-CONDITION], torch.zeros(len(context), CONDITION)], 1)


@every_field
def test_weights_one_and_zero_are_the_field_with_and_without_the_condition(name: str) -> None:
    field, x, context = given(name)
    edges = Edges.complete(RAGGED)
    conditional = field(TIME, x, edges, context)
    unconditional = field(TIME, x, edges, without(context))
    assert not torch.allclose(conditional, unconditional)
    for weight in (0.0, 1.0, 2.5):
        found = GuidedField(field, CONDITION, weight)(TIME, x, edges, context)
        expected = unconditional + weight * (conditional - unconditional)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_logits_of_categories_are_weighted_as_velocities() -> None:
    field, x, context = given("categorical")
    edges = Edges.complete(RAGGED)
    guided = GuidedField(field, CONDITION, 2.5)
    velocity, logits = guided.velocity_and_logits(TIME, x, edges, context)
    torch.testing.assert_close(velocity, guided(TIME, x, edges, context))
    conditional, unconditional = (
        field.velocity_and_logits(TIME, x, edges, each)[1] for each in (context, without(context))
    )
    torch.testing.assert_close(logits, unconditional + 2.5 * (conditional - unconditional))
    assert given("joint")[0].velocity_and_logits(TIME, x, edges, context)[1] is None


@every_field
@pytest.mark.parametrize("cutoff", [None, 2.0])
def test_tangents_are_those_of_forward_mode(name: str, cutoff: float | None) -> None:
    field, x, context = given(name)
    field.cutoff = cutoff
    guided = GuidedField(field, CONDITION, 1.7)
    assert guided.carries_tangents
    edges, along = guided.connect(x, RAGGED), draw(*x.shape, seed=2)
    value, pushed = guided.pushforward(TIME, Dual(x, along.unsqueeze(1)), edges, context)
    plain, moved = torch.func.jvp(lambda x: guided(TIME, x, edges, context), (x,), (along,))
    torch.testing.assert_close(value, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pushed[:, 0], moved, rtol=1e-10, atol=1e-10)


@every_field
def test_every_way_to_the_exact_divergence_gives_that_of_the_jacobian(name: str) -> None:
    field, x, context = given(name)
    guided = GuidedField(field, CONDITION, 1.7)
    assert guided.traces_itself == field.traces_itself
    velocity = ContinuousFlow(guided).dynamics(RAGGED, context)(TIME, x)
    jacobian = torch.func.jacrev(velocity)(x)
    expected = RAGGED.sum(torch.einsum("icic->i", jacobian))
    none = x.new_zeros(0)
    for way in (Exact(), ExactForward(), ExactReverse()):
        with torch.no_grad():
            trace = way(velocity, x, RAGGED, none)
        torch.testing.assert_close(trace.estimates[:, 0], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(trace.velocity, velocity(x), rtol=1e-10, atol=1e-10)
    probes = Hutchinson(3).probes(
        x, RAGGED, torch.Generator().manual_seed(0), guided.state_features
    )
    found = Hutchinson(3)(velocity, x, RAGGED, probes).estimates
    quadratic = torch.einsum("sia,iajb,sjb->si", probes, jacobian, probes)
    torch.testing.assert_close(found, RAGGED.sum(quadratic.T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [b for _, b in clouds()], ids=[name for name, _ in clouds()])
def test_a_guided_field_turns_with_the_cloud_and_takes_clouds_one_by_one(batch: Clouds) -> None:
    guided = GuidedField(awake(FIELDS["egnn"]()), CONDITION, 2.0)

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return guided(TIME, x, Edges.complete(ptr), torch.cat([h / 10, h.sin(), h.cos()], 1))

    for group in ("E(3)", "S(n)"):
        assert_equivariant(velocity, batch, group=group, output="vector")
    assert_independent(velocity, batch)


def test_a_field_that_does_not_turn_with_the_cloud_is_not_said_to() -> None:
    class Askew(EGNNField):
        def forward(self, t, x, edges, context=None):  # type: ignore[no-untyped-def]
            return super().forward(t, x, edges, context) + x.flip(1)

    guided = GuidedField(Askew(context_features=2), 2, 2.0)
    claims = guided.turns_with_state, guided.carries_tangents, guided.traces_itself
    assert claims == (False, False, False)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_named(weight: float) -> None:
    with pytest.raises(UsageError, match=f"guidance: found {weight}"):
        GuidedField(FIELDS["egnn"](), 2, weight)


@pytest.mark.parametrize("condition", [0, 4])
def test_a_condition_that_the_context_does_not_hold_is_named(condition: int) -> None:
    with pytest.raises(UsageError, match=f"condition of {condition} features"):
        GuidedField(FIELDS["egnn"](), condition, 1.0)
