"""Flows given properties: what points are told, what draws and scores depend on."""

import math

import pytest
import torch
from example_flows import TIGHT
from torch import Tensor

from eqflow import rng
from eqflow.errors import DataError, ShapeError, UsageError
from eqflow.flows import (
    ActNorm,
    Batch,
    Compositions,
    ContinuousFlow,
    Flow,
    FlowMatching,
    GaussianDequantiser,
    Independent,
    MaximumLikelihood,
    MolecularFlow,
    Properties,
    PropertyDropout,
    Sizes,
    Solver,
)
from eqflow.flows.exact import Exact
from eqflow.flows.inpainting import Fixed
from eqflow.geometry import Clouds, random_orthogonal
from eqflow.nn import CategoricalEGNNField, EGNNField

NAN = math.nan
FEW = Solver("heun", steps=3)


def known(**properties: list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(each, dtype=torch.float64) for name, each in properties.items()}


def molecules(**properties: list[float]) -> Clouds:
    """Molecules of 3, 5 and 1 atoms."""
    source = torch.Generator().manual_seed(3)
    x = torch.randn(9, 3, dtype=torch.float64, generator=source)
    numbers = torch.tensor([8, 1, 1, 6, 8, 6, 1, 1, 8])
    return Clouds(x, torch.tensor([0, 3, 8, 9]), numbers, properties=known(**properties))


TRAINING = molecules(gap=[0.1, 0.3, NAN], mu=[-1.0, 1.0, 6.0])
NAMES = ["gap", "mu"]


def awaken(flow: Flow | MolecularFlow) -> None:
    source = torch.Generator().manual_seed(0)
    for parameter in flow.continuous.parameters():
        parameter.data = 0.3 * torch.randn(
            tuple(parameter.shape), dtype=torch.float64, generator=source
        )


def positions() -> Flow:
    makeups = Compositions.of(TRAINING, (1, 6, 8))
    properties = Properties.of(TRAINING, NAMES, makeups.places(TRAINING))
    field = EGNNField(3 + properties.width, width=8, layers=2)
    flow = Flow(ContinuousFlow(field), 3, 1.3, makeups, TIGHT, properties).double()
    awaken(flow)
    return flow


def molecular() -> MolecularFlow:
    sizes = Sizes.of(TRAINING)
    properties = Properties.of(TRAINING, NAMES, sizes.places(TRAINING))
    field = CategoricalEGNNField(3, 1.0, 0.15, properties.width, width=8, layers=2)
    flow = MolecularFlow(
        ContinuousFlow(field),
        GaussianDequantiser(3, 0, 0.15),
        ActNorm(3),
        sizes,
        (1, 6, 8),
        solver=Solver(rtol=1e-7, atol=1e-7),
        properties=properties,
    ).double()
    awaken(flow)
    return flow


every_flow = pytest.mark.parametrize("make", [positions, molecular])


# What points are told.


def test_context_is_standardised_where_known_and_zero_where_not() -> None:
    flow = positions()
    properties = flow.properties
    assert properties is not None
    clouds = molecules(gap=[0.4, NAN, 0.2])
    context = properties.context(clouds, clouds.segments, clouds.x)
    # Of gap 0.1 and 0.3 the mean is 0.2 and the deviation 0.1; of mu nothing is known.
    expected = torch.tensor([[2.0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]).double()
    torch.testing.assert_close(context, expected[clouds.segments.ids], rtol=1e-12, atol=1e-12)


@every_flow
def test_a_batch_has_the_context_of_properties_last(make) -> None:
    flow = make()
    batch = flow.batch(TRAINING, torch.Generator().manual_seed(0))
    expected = flow.properties.context(TRAINING, TRAINING.segments, batch.x)
    assert torch.equal(batch.context[:, -4:], expected)


def test_properties_come_back_from_plain_values() -> None:
    properties = molecular().properties
    assert properties is not None
    plain = properties.to_plain()
    back = Properties.from_plain(plain)
    assert back.to_plain() == plain
    assert torch.equal(back.examples.isnan(), properties.examples.isnan())


def test_clouds_keep_properties_of_those_chosen_joined_and_moved() -> None:
    picked = TRAINING[[1, 0]]
    assert picked.properties["mu"].tolist() == [1.0, -1.0]
    joined = Clouds.join([picked, molecules(gap=[1.0, 2.0, 3.0])])
    assert joined.properties["gap"].tolist() == [0.3, 0.1, 1.0, 2.0, 3.0]
    assert joined.properties["mu"].isnan().tolist() == [False, False, True, True, True]
    assert TRAINING.to(torch.float32).with_positions(TRAINING.x).properties.keys() == {"gap", "mu"}
    assert "gap" in repr(TRAINING)
    with pytest.raises(ShapeError, match="gap"):
        molecules(gap=[0.1])


# What scores and draws depend on.


@every_flow
def test_scores_are_given_what_is_known_and_no_other_property(make) -> None:
    flow = make()
    scores = [
        flow.log_prob(clouds)
        for clouds in (
            molecules(),
            molecules(gap=[NAN] * 3, weight=[1.0, 2.0, 3.0]),
            molecules(gap=[0.2, 0.2, 0.2]),
            molecules(gap=[0.2, 0.3, 0.2]),
        )
    ]
    assert torch.equal(scores[0], scores[1])
    assert not torch.isclose(scores[0][:2], scores[2][:2]).any()
    # One step size serves a batch, so others are the same to the solver's tolerance.
    same = (scores[2] - scores[3]).abs()
    assert same[0] < 1e-4 < same[1]


@every_flow
def test_scores_given_properties_do_not_change_with_motions(make) -> None:
    flow, clouds = make(), molecules(gap=[0.2, 0.5, NAN], mu=[NAN, 2.0, 3.0])
    turn = random_orthogonal(1, 3, clouds.x, torch.Generator().manual_seed(1))[0]
    moved = clouds.with_positions(clouds.x @ turn.T + 3)
    torch.testing.assert_close(flow.log_prob(clouds), flow.log_prob(moved), rtol=1e-4, atol=1e-4)


@every_flow
def test_weights_of_one_and_zero_draw_with_and_without_properties(make) -> None:
    flow = make()
    options = {"sizes": [3, 5], "solver": FEW}
    plain = flow.draw(2, **options).clouds
    given, once, none, twice = (
        flow.draw(2, properties={"gap": 0.25}, guidance=weight, **options).clouds
        for weight in (1, 1.0, 0.0, 2.0)
    )
    assert torch.equal(given.x, once.x)
    torch.testing.assert_close(none.x, plain.x, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(given.x, plain.x)
    assert not torch.allclose(twice.x, given.x)
    assert flow.draw(2, properties={"gap": NAN}, **options).clouds.x.equal(plain.x)
    assert given.properties["asked_gap"].tolist() == [0.25, 0.25]


@every_flow
def test_each_structure_may_be_asked_something_else(make) -> None:
    flow = make()
    both = flow.draw(2, sizes=[5, 5], properties={"mu": [0.5, NAN]}, solver=FEW).clouds
    first = flow.draw(2, sizes=[5, 5], properties={"mu": 0.5}, solver=FEW).clouds
    plain = flow.draw(2, sizes=[5, 5], solver=FEW).clouds
    torch.testing.assert_close(both[0].x, first[0].x)
    torch.testing.assert_close(both[1].x, plain[1].x)


@pytest.mark.parametrize("weight", [1.0, 1.6])
def test_a_draw_has_the_density_of_the_guided_flow_along_its_way(weight: float) -> None:
    """By a second flow whose field is the guided one, scored on what was drawn."""
    flow = positions()
    properties = flow.properties
    assert properties is not None
    asked = {"gap": torch.full((2,), 0.25, dtype=torch.float64)}
    drawn = flow.draw(2, sizes=3, properties=asked, guidance=weight, with_log_prob=True)
    other = Flow(
        properties.guided(flow.continuous, weight), 3, 1.3, flow.compositions, TIGHT, properties
    )
    clouds = drawn.clouds
    again = Clouds(clouds.x, clouds.ptr, clouds.numbers, properties=asked)
    assert drawn.log_prob is not None
    torch.testing.assert_close(other.log_prob(again), drawn.log_prob, rtol=1e-6, atol=1e-6)


def test_properties_and_fixed_atoms_go_together() -> None:
    flow = molecular().float()
    fixed = Fixed(TRAINING[0], times=3, rounds=1)
    drawn = [
        flow.draw(2, sizes=5, fixed=fixed, properties=asked, guidance=weight).clouds
        for asked, weight in ((None, 1.0), ({"mu": 2.0}, 1.0), ({"mu": 2.0}, 2.0))
    ]
    for clouds in drawn:
        assert torch.equal(clouds.x[:3], TRAINING.x[:3])
    assert not torch.allclose(drawn[0].x, drawn[1].x)
    assert not torch.allclose(drawn[1].x, drawn[2].x)


# How many points, and of which elements.


def test_make_ups_are_those_of_training_structures_near_what_was_asked() -> None:
    """Of 100 structures whose size grows with the property, the 10 nearest."""
    sizes = torch.arange(1, 101)
    clouds = Clouds(
        torch.zeros(int(sizes.sum()), 3),
        torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        properties={"mass": sizes.double(), "void": torch.full((100,), NAN).double()},
    )
    clouds.properties["void"][:2] = torch.tensor([1.0, 2.0])
    properties = Properties.of(clouds, ["mass", "void"], sizes)
    asked = properties.asked({"mass": [50.2] * 500 + [-5.0] * 500}, 1000)
    drawn = properties.draw(asked, rng.generator(0, "near"))
    assert sorted(set(drawn[:500].tolist())) == list(range(46, 56))
    assert sorted(set(drawn[500:].tolist())) == list(range(1, 11))
    anything = properties.draw(properties.asked({"mass": NAN}, 2000), rng.generator(0, "any"))
    assert len(anything.unique()) == 100
    rare = properties.draw(properties.asked({"void": 1.2}, 50), rng.generator(0, "rare"))
    assert rare.unique().tolist() == [1]


@every_flow
def test_sizes_of_draws_are_near_what_was_asked_unless_given(make) -> None:
    flow = make()
    assert (flow.draw(4, properties={"mu": 6.2}, solver=FEW).clouds.sizes == 1).all()
    assert (flow.draw(4, properties={"mu": 0.9}, solver=FEW).clouds.sizes == 5).all()
    given = flow.draw(4, sizes=3, properties={"mu": 6.2}, solver=FEW).clouds
    assert (given.sizes == 3).all()


def test_more_structures_than_are_remembered_are_thinned_evenly(monkeypatch) -> None:
    monkeypatch.setattr("eqflow.flows.properties.EXAMPLES", 2)
    properties = Properties.of(TRAINING, NAMES, torch.tensor([4, 5, 6]))
    assert properties.makeups.tolist() == [4, 6]
    assert len(properties.examples) == 2


# What is wrong.


def test_a_property_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(DataError, match=r"no 'homo' .*: gap, mu"):
        Properties.of(TRAINING, ["homo"], torch.zeros(3))
    with pytest.raises(DataError, match="are: none"):
        Properties.of(molecules(), ["homo"], torch.zeros(3))


@pytest.mark.parametrize("values", [[1.0, 1.0, NAN], [1.0, math.inf, 2.0]])
def test_a_property_without_a_scale_is_named(values: list[float]) -> None:
    with pytest.raises(DataError, match="found gap from"):
        Properties.of(molecules(gap=values), ["gap"], torch.zeros(3))


@every_flow
def test_wrong_questions_are_named(make) -> None:
    flow = make()
    for options, message in (
        ({"properties": {"homo": 1.0}}, "found 'homo', expected some of gap, mu"),
        ({"properties": {"gap": [1.0, 2.0]}}, r"shape \(2,\) for 3"),
        ({"properties": {"gap": math.inf}}, "gap=inf"),
        ({"properties": {"gap": 0.2}, "guidance": -1.0}, "guidance: found -1"),
        ({"properties": {"gap": 0.2}, "guidance": NAN}, "guidance: found nan"),
        ({"guidance": 2.0}, "expected properties with it"),
    ):
        with pytest.raises(UsageError, match=message):
            flow.draw(3, **options)
    flow.properties = None
    with pytest.raises(UsageError, match="this model knows none"):
        flow.draw(3, properties={"gap": 0.2})


def test_values_beyond_those_of_training_structures_are_said_to_be() -> None:
    properties = positions().properties
    assert properties is not None
    lines = properties.beyond(properties.asked({"gap": [0.2, 0.31, NAN], "mu": 6.0}, 3))
    assert len(lines) == 1
    assert "gap=0.31" in lines[0]
    assert "0.1 to 0.3" in lines[0]


# Training with and without.


class Recorder(FlowMatching):
    """Flow matching that keeps the batch it was given."""

    batch: Batch | None = None

    def __call__(self, flow, batch, source):  # type: ignore[no-untyped-def]
        self.batch = batch
        return super().__call__(flow, batch, source)


def test_structures_lose_all_their_properties_or_any_as_often_as_said() -> None:
    flow = positions()
    clouds = TRAINING[[0, 1] * 500]
    batch = flow.batch(clouds, rng.generator(0, "batch"))
    seen = Recorder(Independent())
    PropertyDropout(seen, 4, 0.3)(flow.continuous, batch, rng.generator(0, "loss"))
    assert seen.batch is not None
    context, before = seen.batch.context, batch.context
    assert context is not None
    assert before is not None
    assert torch.equal(context[:, :-4], before[:, :-4])
    # Columns: two values, then whether each is known.
    known = context[:, -2:]
    assert torch.equal(context[:, -4:], before[:, -4:] * known.repeat(1, 2))
    each = batch.clouds.mean(known.double())
    assert set(each.flatten().tolist()) == {0.0, 1.0}
    for probability, share in (
        (0.3 + 0.7 * 0.3**2, (each == 0).all(1)),
        (0.7 * 0.7 * 0.3, each[:, 0] > each[:, 1]),
        (0.7**3, (each == 1).all(1)),
    ):
        error = math.sqrt(probability * (1 - probability) / 1000)
        assert abs(float(share.double().mean()) - probability) < 4 * error


@pytest.mark.parametrize("make", ["matching", "likelihood"])
def test_the_loss_is_a_function_of_its_source_and_trains_what_reads_properties(make: str) -> None:
    flow = molecular()
    objective = PropertyDropout(
        FlowMatching(Independent(), 0.2)
        if make == "matching"
        else MaximumLikelihood(Solver("rk4", steps=2), Exact()),
        4,
        0.5,
    )
    batch = flow.batch(TRAINING[[0, 1] * 4], rng.generator(0, "batch"))
    one, same, other = (
        objective(flow.continuous, batch, rng.generator(seed, "loss")).value for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    one.backward()
    assert all(p.grad is not None for p in flow.continuous.parameters())


@pytest.mark.parametrize("probability", [-0.1, 1.1, NAN])
def test_what_is_no_probability_is_named(probability: float) -> None:
    with pytest.raises(UsageError, match=r"objective\.unconditional"):
        PropertyDropout(FlowMatching(Independent()), 2, probability)


def test_a_batch_without_properties_cannot_lose_them() -> None:
    flow = positions()
    batch = flow.batch(TRAINING, rng.generator(0, "batch"))._replace(context=None)
    with pytest.raises(UsageError, match="without context"):
        PropertyDropout(FlowMatching(Independent()), 2, 0.1)(
            flow.continuous, batch, rng.generator(0, "loss")
        )
