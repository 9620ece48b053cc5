"""The density of whole molecules: its terms, its bound, its laws and its samples."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from example_flows import TIGHT
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UnknownElement, UsageError
from eqflow.flows import (
    ActNorm,
    ArgmaxDequantiser,
    BoundScores,
    ContinuousFlow,
    Exact,
    FlowMatching,
    GaussianDequantiser,
    Hutchinson,
    Independent,
    MaximumLikelihood,
    MolecularFlow,
    Sizes,
    Solver,
    Status,
    VariationalDequantiser,
)
from eqflow.flows.joint_states import Molecules
from eqflow.geometry import Clouds, centred, random_orthogonal
from eqflow.nn import AbstractField, EGNNField, JointEGNNField

ELEMENTS = (1, 6, 8)
SIZES = Sizes(torch.tensor([1, 3, 5]), torch.tensor([0.2, 0.5, 0.3]).double().log())
FEW = Solver(method="rk4", steps=2)


class Still(AbstractField):
    """Nothing moves: the flow is its base density."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.state_features = features
        self.unit = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        return self.unit * x


def still(elements: tuple[int, ...] = ELEMENTS, scale: float = 0.0) -> MolecularFlow:
    """A flow whose bound is known: normal positions and features, argmax dequantisation."""
    width = len(elements)
    actnorm = ActNorm(width).double()
    actnorm.position_log_scale.data.fill_(scale)
    flow = ContinuousFlow(Still(width))
    return MolecularFlow(flow, ArgmaxDequantiser(width), actnorm, SIZES, elements, solver=FEW)


def moving() -> MolecularFlow:
    """A flow with random weights, atomic numbers as integers, and all its parts at work."""
    field = JointEGNNField(4, width=6, layers=2)
    flow = MolecularFlow(
        ContinuousFlow(field),
        VariationalDequantiser(3, 1, width=6, layers=2),
        ActNorm(4),
        SIZES,
        ELEMENTS,
        ("atomic_number",),
        solver=replace(TIGHT, rtol=1e-8, atol=1e-8),
    ).double()
    source = torch.Generator().manual_seed(0)
    for parameter in flow.parameters():
        parameter.data = 0.12 * torch.randn(
            tuple(parameter.shape), dtype=torch.float64, generator=source
        )
    return flow


def molecules(scale: float = 1.0) -> Clouds:
    source = torch.Generator().manual_seed(3)
    x = scale * torch.randn(9, 3, dtype=torch.float64, generator=source)
    numbers = torch.tensor([8, 1, 1, 6, 8, 6, 1, 1, 8])
    return Clouds(x, torch.tensor([0, 3, 8, 9]), numbers)


def noise_of(flow: MolecularFlow, encoded: Molecules) -> Tensor:
    return flow.dequantiser.noise(len(encoded.x), encoded.x, rng.generator(0, "noise"))


def test_terms_add_up_to_the_score_and_have_their_names() -> None:
    scores = moving().score(molecules(), draws=3)
    assert list(scores.terms) == [
        "log_prob_size",
        "log_prob_base",
        "log_det_flow",
        "log_det_actnorm",
        "minus_log_q",
        "importance_gain",
    ]
    total = torch.stack(list(scores.terms.values())).sum(0)
    torch.testing.assert_close(total, scores.log_prob, rtol=1e-12, atol=1e-12)
    assert (scores.terms["importance_gain"] >= 0).all()
    assert scores.draws.shape == (3, 3)


def test_the_bound_tends_to_the_probability_where_that_is_known() -> None:
    """Standard normal features: each of three elements has probability 1/3."""
    flow, batch = still(), molecules()
    x = centred(batch.x, batch.segments)
    positions = -0.5 * batch.segments.sum(x.square().sum(1))
    positions = positions - 0.5 * math.log(2 * math.pi) * 3 * (batch.sizes - 1).double()
    exact = SIZES.log_prob(batch.sizes) + positions - batch.sizes.double() * math.log(3)
    few, many = (flow.score(batch, draws=draws) for draws in (1, 3000))
    assert ((many.log_prob - exact).abs() < 5 * many.log_prob_se + 1e-9).all()
    assert (many.log_prob_se < 0.3).all()
    # The mean of single draws is a bound, and a lower one.
    spread = many.draws.std(1) / many.draws.shape[1] ** 0.5
    assert (many.draws.mean(1) + 3 * spread < exact).all()
    assert few.log_prob_se.isnan().all()


def test_maximum_likelihood_minimises_the_bound() -> None:
    """A training batch has the features, and all that their density owes to them."""
    flow, clouds = moving(), molecules()
    batch = flow.batch(clouds, rng.generator(5, "features"))
    objective = MaximumLikelihood(flow.solver, Exact())
    loss = objective(flow.continuous, batch, rng.generator(0, "probes"))
    encoded = flow.encode(clouds)
    source = rng.generator(5, "features")
    noise = flow.dequantiser.noise(len(encoded.x), encoded.x, source)
    bound = flow.bound(encoded, noise)
    given_size = bound.total - bound.terms["log_prob_size"]
    torch.testing.assert_close(loss.value, -given_size.mean())
    loss.value.backward()
    unmoved = [name for name, weight in flow.named_parameters() if weight.grad is None]
    assert [name for name in unmoved if "dequantiser" not in name] == []
    assert batch.kinds is not None
    assert torch.equal(batch.kinds, encoded.labels.kind)


def test_flow_matching_leaves_scales_and_dequantiser_alone() -> None:
    flow = moving()
    batch = flow.batch(molecules(), rng.generator(5, "features"))
    loss = FlowMatching(Independent())(flow.continuous, batch, rng.generator(0, "noise"))
    assert set(loss.terms) == {"loss", "loss_positions", "loss_features"}
    loss.value.backward()
    moved = {name for name, weight in flow.named_parameters() if weight.grad is not None}
    assert moved
    assert all(name.startswith("continuous.") for name in moved)


def test_states_of_a_standardised_flow_have_unit_variance() -> None:
    flow, clouds = moving(), molecules(scale=4.0)
    flow.standardise(clouds, rng.generator(0, "features"))
    batch = flow.batch(clouds, rng.generator(0, "features"))
    freedom = 3 * (clouds.sizes - 1).sum()
    torch.testing.assert_close(
        batch.x[:, :3].square().sum() / freedom, torch.ones((), dtype=torch.float64)
    )
    torch.testing.assert_close(batch.x[:, 3:].std(0, correction=0), torch.ones(4).double())


def test_formal_charges_come_and_go_with_types_or_as_integers() -> None:
    clouds = replace(molecules(), charges=torch.tensor([0, 0, 1, 0, -1, 0, 0, 0, 0]))
    pairs = (1, 1, 6, 8, 8), (0, 1, 0, -1, 0)
    typed = MolecularFlow(
        ContinuousFlow(Still(5)),
        GaussianDequantiser(5),
        ActNorm(5),
        SIZES,
        pairs[0],
        charges=pairs[1],
    ).double()
    integers = MolecularFlow(
        ContinuousFlow(Still(4)),
        GaussianDequantiser(3, 1),
        ActNorm(4),
        SIZES,
        ELEMENTS,
        ("formal_charge",),
    ).double()
    assert typed.encode(clouds).labels.kind.tolist() == [4, 0, 1, 2, 3, 2, 0, 0, 4]
    assert integers.encode(clouds).labels.integers.squeeze(1).tolist() == clouds.charges.tolist()
    for flow in (typed, integers):
        molecules_ = flow.encode(clouds)
        state, _ = flow.state(molecules_, torch.zeros(9, flow.dequantiser.width).double())
        read = flow.dequantiser.labels(state[:, 3:])
        assert torch.equal(read.kind, molecules_.labels.kind)
        assert flow.draw(2, sizes=3, solver=FEW).clouds.charges is not None


def test_positions_rescaled_by_s_shift_the_score_by_their_degrees_of_freedom() -> None:
    """`log p_s(s x) = log p(x) − (n − 1) d log s`, for a flow with `s` in its standardisation."""
    s = 2.5
    plain, scaled = still(), still(scale=math.log(s))
    here, there = plain.score(molecules(), draws=2), scaled.score(molecules(s), draws=2)
    shift = (molecules().sizes - 1).double() * 3 * math.log(s)
    torch.testing.assert_close(there.log_prob, here.log_prob - shift, rtol=1e-10, atol=1e-10)
    published = scaled.score(molecules(s), draws=2, published_actnorm=True)
    wrong = torch.full((3,), 3 * math.log(s), dtype=torch.float64)
    torch.testing.assert_close(there.log_prob - published.log_prob, wrong, rtol=1e-9, atol=1e-9)


def test_the_density_of_whole_molecules_adds_up_to_one() -> None:
    """Two atoms on a line, of two elements, by quadrature over their distance."""
    width, step = 2, 0.25
    sizes = Sizes(torch.tensor([2]), torch.zeros(1).double())
    parts = ContinuousFlow(Still(width)), ArgmaxDequantiser(width), ActNorm(width).double()
    parts[2].position_log_scale.data.fill_(0.4)
    flow = MolecularFlow(*parts, sizes, (1, 8), dimension=1, solver=Solver(method="euler", steps=1))
    half = torch.arange(-9, 9, step, dtype=torch.float64)
    x = torch.stack([half, -half], 1).reshape(-1, 1) / 2**0.5
    total = variance = 0.0
    for seed, pair in enumerate([(1, 1), (1, 8), (8, 1), (8, 8)]):
        clouds = Clouds(x, torch.arange(0, len(x) + 1, 2), torch.tensor(pair).repeat(len(half)))
        scores = flow.score(clouds, draws=256, seed=seed)
        mass = scores.log_prob.exp() * step
        total += float(mass.sum())
        variance += float((mass * scores.log_prob_se).square().sum())
    assert variance**0.5 < 0.02
    assert abs(total - 1) < 4 * variance**0.5


def test_the_score_does_not_depend_on_where_and_how_a_molecule_stands() -> None:
    flow, batch = moving(), molecules()
    turn = random_orthogonal(1, 3, batch.x, rng.generator(0, "turn"))
    moved = batch.with_positions(batch.x @ turn[0].T + torch.tensor([3.0, -2.0, 1.0]))
    here, there = flow.score(batch, draws=2), flow.score(moved, draws=2)
    torch.testing.assert_close(here.log_prob, there.log_prob, rtol=1e-6, atol=1e-6)


def test_the_score_of_a_molecule_alone_is_that_in_a_batch() -> None:
    """Features are a function of the place; the first molecule has the same one alone."""
    flow, batch = moving(), molecules()
    together, alone = flow.score(batch, draws=2), flow.score(batch[0], draws=2)
    torch.testing.assert_close(together.log_prob[:1], alone.log_prob, rtol=1e-6, atol=1e-6)


def test_a_latent_state_leads_back_to_its_structure() -> None:
    flow = moving()
    encoded = flow.encode(molecules())
    noise = noise_of(flow, encoded)
    with torch.no_grad():
        state, _ = flow.state(encoded, noise)
        bound = flow.bound(encoded, noise)
        there = flow.structure(bound.z, encoded.clouds)
    torch.testing.assert_close(there.x, state, rtol=1e-5, atol=1e-5)
    labels = flow.dequantiser.labels(there.x[:, 3:])
    assert torch.equal(labels.kind, encoded.labels.kind)
    assert torch.equal(labels.integers[:, 0], molecules().numbers)


def test_the_terms_of_the_flow_are_the_jacobian_of_the_whole_map() -> None:
    """`log |∂z/∂(x, v)|` of one molecule, by autograd through the solver, on the subspace."""
    flow = moving()
    encoded = flow.encode(molecules()[0])
    noise = noise_of(flow, encoded)
    with torch.no_grad():
        state, _ = flow.state(encoded, noise)
        terms = flow.bound(encoded, noise).terms
    n = len(state)

    def latent(flat: Tensor) -> Tensor:
        moved = flow.actnorm(centred(flat.reshape(n, 7), encoded.clouds, 4))
        there = flow.continuous.transport(
            moved, encoded.clouds, start=0.0, end=1.0, solver=flow.solver
        )
        return there.x.reshape(-1)

    jacobian = torch.autograd.functional.jacobian(latent, state.reshape(-1)).detach()
    # On the complement, three translations, the map is zero: made one, it leaves the rest alone.
    ones = torch.zeros(n, 7, 3, dtype=torch.float64)
    ones[:, :3] = torch.eye(3, dtype=torch.float64) / n**0.5
    ones = ones.reshape(-1, 3)
    expected = torch.linalg.slogdet(jacobian + ones @ ones.T)[1]
    found = terms["log_det_flow"] + terms["log_det_actnorm"]
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


def test_an_estimated_trace_is_averaged_and_not_weighted() -> None:
    scores = moving().score(molecules(), draws=3, divergence=Hutchinson(1), solver=FEW)
    assert (scores.terms["importance_gain"] == 0).all()
    torch.testing.assert_close(scores.log_prob, scores.draws.mean(1))
    expected = scores.draws.std(1) / 3**0.5
    torch.testing.assert_close(scores.log_prob_se, expected)


def test_samples_are_molecules_of_the_sizes_and_elements_of_the_model() -> None:
    drawn = moving().draw(60, seed=1, solver=FEW)
    assert len(drawn.clouds) == 60
    assert set(drawn.clouds.sizes.tolist()) == {1, 3, 5}
    assert set(drawn.clouds.numbers.tolist()) <= set(ELEMENTS)
    assert drawn.integers.shape == (len(drawn.clouds.x), 1)
    assert drawn.clouds.segments.mean(drawn.clouds.x).abs().max() < 1e-12
    assert all(status is Status.SUCCESS for status in drawn.status)


def test_samples_are_a_function_of_the_seed() -> None:
    flow = moving()
    one, same, other = (flow.sample(5, seed, solver=FEW) for seed in (4, 4, 5))
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.numbers, same.numbers)
    assert one.x.shape != other.x.shape or not torch.equal(one.x, other.x)


def test_sizes_can_be_asked_for() -> None:
    flow = moving()
    assert flow.sample(3, sizes=4, solver=FEW).sizes.tolist() == [4, 4, 4]
    assert flow.sample(3, sizes=[2, 1, 6], solver=FEW).sizes.tolist() == [2, 1, 6]
    for sizes, count in (([2, 3], 3), (0, 2), (3, 0)):
        with pytest.raises(UsageError):
            flow.sample(count, sizes=sizes)


def test_samples_of_a_flow_of_known_density_have_its_frequencies() -> None:
    drawn = still(scale=math.log(2.0)).sample(4000, sizes=2)
    for element in ELEMENTS:
        assert float((drawn.numbers == element).double().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert float(drawn.x.square().sum()) / 4000 == pytest.approx(3 * 4, rel=0.06)


def test_a_failing_integration_marks_its_molecule() -> None:
    flow = moving()
    scores = flow.score(molecules(), draws=2, solver=replace(flow.solver, step_limit=3))
    assert scores.log_prob.isnan().all()
    assert "3 of 3 structures failed" in scores.failures


def test_a_size_of_probability_0_is_not_integrated_and_leaves_the_others_as_they_are() -> None:
    flow, batch = moving(), molecules()
    pair = Clouds(batch.x[:2], torch.tensor([0, 2]), batch.numbers[:2])
    scores = flow.score(Clouds.join([pair, batch, pair]), draws=2)
    impossible = Status.IMPOSSIBLE_SIZE
    assert scores.status == (impossible, *[Status.SUCCESS] * 3, impossible)
    assert scores.failures == ""
    assert scores.log_prob[[0, 4]].tolist() == [-math.inf] * 2
    assert scores.terms["log_prob_size"][[0, 4]].tolist() == [-math.inf] * 2
    assert scores.evaluations[[0, 4]].tolist() == [0, 0]
    assert scores.log_prob[1:4].isfinite().all()
    # Features are a function of the place, here the second.
    alone = flow.score(Clouds.join([pair, batch[0]]), draws=2)
    torch.testing.assert_close(alone.log_prob[1:], scores.log_prob[1:2], rtol=1e-6, atol=1e-6)
    nothing = flow.score(pair, draws=2)
    assert nothing.log_prob.tolist() == [-math.inf]
    assert list(nothing.terms) == list(scores.terms)


def test_log_prob_is_the_score_and_warns_of_failures() -> None:
    flow, batch = moving(), molecules()
    found = flow.log_prob(batch[0], seed=2, solver=FEW)
    assert torch.equal(found, flow.score(batch[0], seed=2, solver=FEW).log_prob)
    with pytest.warns(RuntimeWarning, match="1 of 1 structures failed"):
        flow.log_prob(batch[0], solver=replace(flow.solver, step_limit=3))


def test_the_published_constant_is_that_of_the_flow_unless_a_call_says_otherwise() -> None:
    flow = still(scale=1.0)
    right, published = (
        flow.score(molecules(), draws=1, published_actnorm=choice).log_prob
        for choice in (False, True)
    )
    assert torch.equal(flow.score(molecules(), draws=1).log_prob, right)
    flow.published_actnorm = True
    assert torch.equal(flow.score(molecules(), draws=1).log_prob, published)


def test_strange_elements_dimensions_and_draws_are_errors() -> None:
    flow, batch = moving(), molecules()
    with pytest.raises(UnknownElement, match="found F"):
        flow.score(Clouds(batch.x, batch.ptr, batch.numbers.clone().fill_(9)))
    with pytest.raises(UnknownElement, match="without elements"):
        flow.score(Clouds(batch.x, batch.ptr))
    with pytest.raises(UsageError, match="2 dimensions"):
        flow.score(Clouds(batch.x[:, :2], batch.ptr, batch.numbers))
    with pytest.raises(UsageError, match="draws = 0"):
        flow.score(batch, draws=0)


def test_parts_that_do_not_fit_are_an_error() -> None:
    field, dequantiser = ContinuousFlow(JointEGNNField(3, width=4, layers=1)), ArgmaxDequantiser(3)
    with pytest.raises(UsageError, match="features of field, actnorm"):
        MolecularFlow(field, dequantiser, ActNorm(4), SIZES, ELEMENTS)
    positions, two = ContinuousFlow(EGNNField(width=4, layers=1)), ArgmaxDequantiser(2, 1)
    with pytest.raises(UsageError, match="features of field, actnorm"):
        MolecularFlow(positions, dequantiser, ActNorm(3), SIZES, ELEMENTS)
    with pytest.raises(UsageError, match="one an element"):
        MolecularFlow(field, dequantiser, ActNorm(3), SIZES, (1, 6))
    with pytest.raises(UsageError, match="integer features"):
        MolecularFlow(field, two, ActNorm(3), SIZES, (1, 6), ("spin",))


def ended(status: Sequence[Status]) -> dict[str, Any]:
    """How draws ended, one evaluation each."""
    count = len(status)
    return {
        "evaluations": torch.ones(count, dtype=torch.int64),
        "status": tuple(status),
        "time": torch.ones(count).double(),
        "solver": ("",) * count,
        "solver_error": torch.full((count,), math.nan).double(),
    }


def test_the_error_of_weighted_draws_is_that_of_drawing_again() -> None:
    draws = 3 * torch.randn(4000, 8, dtype=torch.float64, generator=rng.generator(0, "draws"))
    scores = BoundScores.of_draws({"bound": draws}, ended([Status.SUCCESS] * 32000), weighted=True)
    assert 0.7 < float(scores.log_prob_se.mean() / scores.log_prob.std()) < 1.1
    assert (scores.effective_draws >= 1).all()
    assert (scores.effective_draws <= 8).all()


def test_a_draw_of_another_label_has_no_weight_and_leaves_terms_finite() -> None:
    draws = torch.tensor([[1.0, 2.0, -math.inf]], dtype=torch.float64)
    terms = {"log_prob_base": torch.ones(1, 3).double(), "minus_log_q": draws - 1}
    scores = BoundScores.of_draws(terms, ended([Status.SUCCESS] * 3), weighted=True)
    expected = math.log((math.exp(1) + math.exp(2)) / 3)
    assert float(scores.log_prob) == pytest.approx(expected)
    total = torch.stack(list(scores.terms.values())).sum(0)
    torch.testing.assert_close(total, scores.log_prob)
