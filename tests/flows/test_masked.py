"""Molecules whose types are revealed: what they are distributed as, and what they depend on."""

from __future__ import annotations

import pytest
import torch
from masked_fields import Posterior, Told, alike, independent
from torch import Tensor

from eqflow import rng
from eqflow.errors import UnknownElement, UsageError
from eqflow.flows import (
    ContinuousFlow,
    Independent,
    MaskedMatching,
    MaskedMolecularFlow,
    Masking,
    Properties,
    PropertyDropout,
    Sizes,
    Solver,
    Status,
)
from eqflow.flows.revealing import revealed
from eqflow.geometry import Clouds, Segments, centred, random_orthogonal
from eqflow.nn import EGNNField, MaskedEGNNField

ELEMENTS = (1, 6, 8)
P = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
PAIRS = Sizes(torch.tensor([2]), torch.zeros(1).double())
SIZES = Sizes(torch.tensor([1, 3, 5]), torch.tensor([0.2, 0.5, 0.3]).double().log())
EULER = Solver(method="euler", steps=12)
RAGGED = Segments.of_lengths(torch.tensor([4, 6, 1, 2]))
MANY = 3000


def told(fn: Posterior, sizes: Sizes = PAIRS) -> MaskedMolecularFlow:
    return MaskedMolecularFlow(ContinuousFlow(Told(3, fn)), sizes, ELEMENTS, solver=EULER)


def learned(context_features: int = 0, **options) -> MaskedMolecularFlow:
    field = MaskedEGNNField(3, context_features, width=8, layers=2).double()
    for place, parameter in enumerate(field.parameters()):
        shape = tuple(parameter.shape)
        parameter.data = 0.3 * rng.normal(shape, parameter.data, rng.generator(0, place))
    return MaskedMolecularFlow(ContinuousFlow(field), SIZES, ELEMENTS, 1.7, solver=EULER, **options)


def noise(seed: int = 0) -> Tensor:
    x = torch.randn(RAGGED.rows, 3, dtype=torch.float64, generator=rng.generator(seed))
    return centred(x, RAGGED)


def carried(flow: MaskedMolecularFlow, z: Tensor, solver: Solver = EULER, seed: int = 0):
    return revealed(flow.continuous, z, RAGGED, None, path=Masking(3), solver=solver, seed=seed)


def pair_fractions(drawn: Clouds) -> Tensor:
    """How often each ordered pair of types was drawn, shape (3, 3)."""
    kinds = torch.searchsorted(torch.tensor(ELEMENTS), drawn.numbers).view(-1, 2)
    return torch.bincount(3 * kinds[:, 0] + kinds[:, 1], minlength=9).view(3, 3) / len(drawn)


def near(found: Tensor, expected: Tensor) -> bool:
    """Whether fractions are probabilities, within five standard errors."""
    allowed = 5 * (expected * (1 - expected) / MANY).sqrt() + 1e-12
    return bool(((found - expected).abs() <= allowed).all())


def test_a_network_that_says_nothing_gives_independent_uniform_types() -> None:
    drawn = told(lambda visible, clouds: torch.zeros(len(visible), 3).double()).sample(MANY)
    assert near(pair_fractions(drawn), torch.full((3, 3), 1 / 9).double())


def test_types_follow_an_exact_posterior_but_for_those_revealed_at_once() -> None:
    """Two atoms are always alike; in T steps they are revealed in the same one 1/T of the time."""
    steps = 12
    drawn = told(alike(P)).sample(MANY, seed=1)
    at_once = 1 / steps
    expected = (1 - at_once) * P.diag() + at_once * P.outer(P)
    assert near(pair_fractions(drawn), expected)


def test_remasking_leaves_the_law_as_it_is_as_steps_become_small() -> None:
    flow, different = told(alike(P)), {}
    for steps in (20, 80):
        solver = Solver(method="euler", steps=steps)
        found = pair_fractions(flow.sample(MANY, seed=1, solver=solver, remasking=2.0))
        different[steps] = 1 - float(found.diag().sum())
        assert near(found.sum(0), P)
        assert near(found.sum(1), P)
    assert different[80] < different[20] / 2


@pytest.mark.parametrize("method", ["euler", "heun", "midpoint", "rk4", "dopri5"])
def test_positions_flow_as_they_do_alone_and_nothing_stays_masked(method: str) -> None:
    """Where types count for nothing the positions are those of one integration."""
    flow, z = told(independent(P)), noise()
    solver = Solver(method=method, steps=5, rtol=1e-9, atol=1e-9)
    there, kinds = carried(flow, z, solver)
    context = torch.zeros(RAGGED.rows, 4).double()
    plain = flow.continuous.transport(z, RAGGED, context, start=1.0, end=0.0, solver=solver)
    torch.testing.assert_close(there.x, plain.x, rtol=1e-7, atol=1e-7)
    assert int(kinds.max()) < 3
    assert set(there.status) == {Status.SUCCESS}
    if method in ("euler", "heun", "rk4"):
        assert torch.equal(there.evaluations, plain.evaluations)


def test_by_torchdiffeq_it_is_the_same() -> None:
    flow, z = learned(), noise()
    first, kinds = carried(flow, z)
    other, again = carried(flow, z, Solver("euler", steps=12, implementation="torchdiffeq"))
    torch.testing.assert_close(other.x, first.x)
    assert torch.equal(kinds, again)


def test_noise_that_is_turned_gives_the_same_molecule_turned() -> None:
    flow, z = learned(), noise()
    turn = random_orthogonal(1, 3, z, rng.generator(3))[0]
    first, kinds = carried(flow, z)
    other, again = carried(flow, z @ turn.T)
    torch.testing.assert_close(other.x, first.x @ turn.T, rtol=1e-9, atol=1e-9)
    assert torch.equal(kinds, again)


def test_a_structure_does_not_depend_on_the_others() -> None:
    flow, z = learned(), noise()
    other = torch.where((RAGGED.ids == 1).unsqueeze(1), 2 * z, z)
    (first, kinds), (second, again) = carried(flow, z), carried(flow, other)
    rest = RAGGED.ids != 1
    torch.testing.assert_close(first.x[rest], second.x[rest], rtol=1e-12, atol=1e-12)
    assert torch.equal(kinds[rest], again[rest])
    assert not torch.allclose(first.x[~rest], second.x[~rest])


@pytest.mark.parametrize("last", [0.95, 0.5, 0.09])
def test_one_that_fails_is_marked_and_harms_no_other(
    last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, z = learned(), noise()
    first, kinds = carried(flow, z)
    field = flow.continuous.field
    whole = field.velocity_and_logits

    def failing(t, x, edges, context=None):
        """Not finite in the structure of four points, after a while."""
        v, logits = whole(t, x, edges, context)
        lost = edges.clouds.expand(edges.clouds.lengths == 4) & (t < last)
        return v.masked_fill(lost.unsqueeze(1), torch.nan), logits

    monkeypatch.setattr(field, "velocity_and_logits", failing)
    there, again = carried(flow, z)
    assert there.status == (Status.NON_FINITE, *[Status.SUCCESS] * 3)
    assert there.x[:4].isnan().all()
    torch.testing.assert_close(there.x[4:], first.x[4:], rtol=1e-12, atol=1e-12)
    assert torch.equal(again[4:], kinds[4:])


def test_draws_are_a_function_of_the_seed() -> None:
    flow = learned()
    first, same, other = (flow.sample(20, seed) for seed in (0, 0, 1))
    assert torch.equal(first.x, same.x)
    assert torch.equal(first.numbers, same.numbers)
    assert first.sizes.tolist() != other.sizes.tolist() or not torch.equal(first.x, other.x)
    assert set(first.sizes.tolist()) <= {1, 3, 5}
    assert set(first.numbers.tolist()) <= set(ELEMENTS)
    assert first.segments.mean(first.x).abs().max() < 1e-12
    assert flow.sample(3, sizes=4).sizes.tolist() == [4, 4, 4]


def test_a_training_batch_is_centred_and_scaled_with_its_types() -> None:
    flow = learned(charges=(0, 0, -1))
    clouds = Clouds(
        5 + noise()[:4],
        torch.tensor([0, 4]),
        torch.tensor([8, 6, 1, 1]),
        charges=torch.tensor([-1, 0, 0, 0]),
    )
    batch = flow.batch(clouds, rng.generator(0))
    assert batch.kinds.tolist() == [2, 1, 0, 0]
    torch.testing.assert_close(1.7 * batch.x, centred(noise()[:4], clouds.segments))
    assert flow.sample(3).charges is not None
    with pytest.raises(UnknownElement, match="F"):
        flow.batch(Clouds(clouds.x, clouds.ptr, torch.tensor([9, 1, 1, 1])), rng.generator(0))


def test_properties_are_trained_and_asked_for() -> None:
    x = torch.randn(8, 3, dtype=torch.float64, generator=rng.generator(0))
    clouds = Clouds(
        x,
        torch.tensor([0, 3, 8]),
        torch.tensor([8, 1, 1, 6, 1, 1, 1, 1]),
        properties={"gap": torch.tensor([0.1, 0.4]).double()},
    )
    flow = learned(2, properties=Properties.of(clouds, ["gap"], torch.tensor([1, 2])))
    objective = PropertyDropout(MaskedMatching(Independent()), 2, 0.5)
    batch = flow.batch(clouds, rng.generator(0))
    assert objective(flow.continuous, batch, rng.generator(0)).value.isfinite()
    drawn = [flow.sample(4, properties={"gap": 0.4}, guidance=w) for w in (1.0, 3.0)]
    assert drawn[0].values("asked_gap").tolist() == [0.4] * 4
    assert not torch.allclose(drawn[0].x, drawn[1].x)


def test_there_is_no_likelihood_and_the_message_says_where_there_is() -> None:
    flow = learned()
    drawn = flow.sample(2)
    for ask in (flow.score, flow.log_prob):
        with pytest.raises(UsageError, match="categorical_egnn or joint_egnn"):
            ask(drawn)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0.0}, "temperature: found 0"),
        ({"remasking": -1.0}, "remasking: found -1"),
        ({"properties": {"gap": 1.0}}, "this model knows none"),
        ({"guidance": 2.0}, "expected properties with it"),
        ({"fixed": Clouds(torch.zeros(1, 3), torch.tensor([0, 1]))}, "fixed: found a model"),
        ({"sizes": 0}, "expected at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_are_named(options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        learned().draw(2, **options)
    with pytest.raises(UsageError, match="expected at least 1"):
        learned().draw(0)


def test_parts_that_do_not_fit_are_named() -> None:
    field = MaskedEGNNField(3, width=8, layers=1)
    with pytest.raises(UsageError, match="predicts 3 categories, expected one a type of atoms, 2"):
        MaskedMolecularFlow(ContinuousFlow(field), SIZES, (1, 6))
    with pytest.raises(UsageError, match="predicts no categories"):
        MaskedMolecularFlow(ContinuousFlow(EGNNField(width=8, layers=1)), SIZES, (1, 6))
    with pytest.raises(UsageError, match="scale"):
        MaskedMolecularFlow(ContinuousFlow(field), SIZES, ELEMENTS, 0.0)
    with pytest.raises(UsageError, match="dimensions"):
        learned().encode(Clouds(torch.zeros(2, 2), torch.tensor([0, 2]), torch.tensor([1, 1])))
