"""Other solvers where one fails: right to the error they state, or no result at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from example_flows import FunctionField, flow_of, ragged
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import SolverFailed
from eqflow.flows import (
    ActNorm,
    ArgmaxDequantiser,
    ContinuousFlow,
    Exact,
    Fixed,
    Flow,
    Hutchinson,
    MolecularFlow,
    Sizes,
    Solver,
    Status,
)
from eqflow.flows.continuous import DATA, LATENT, Transport
from eqflow.flows.convergence import finest, refined
from eqflow.flows.fallback import LARGEST_ERROR, MORE, carry, is_plain, others
from eqflow.geometry import Clouds, Segments, centred
from eqflow.nn import AbstractField

Rate = Callable[[Tensor, Tensor], Tensor]  # of time and the state, for what is at fault
SOUND = 0.3  # rate of clouds that are not
FEW = Solver(step_limit=400)
FEWER = Solver(step_limit=150)  # for what no solver can carry


def field_of(rate: Rate, size: int = 3) -> FunctionField:
    """`v = a x` on centred clouds, with another rate for those of one size."""

    def velocity(t: Tensor, x: Tensor, clouds: Segments) -> Tensor:
        x = centred(x, clouds)
        is_odd = clouds.expand(clouds.lengths == size).unsqueeze(1)
        return torch.where(is_odd, rate(t, x) * x, SOUND * x)

    return FunctionField(velocity)


def stiff(t: Tensor, x: Tensor) -> Tensor:
    return torch.full((), -1e5)


def wavy(t: Tensor, x: Tensor) -> Tensor:
    return 2 * torch.cos(4 * t)


def quick(t: Tensor, x: Tensor) -> Tensor:
    return 20 * torch.cos(40 * t)


def growing(t: Tensor, x: Tensor) -> Tensor:
    """The state reaches infinity on the way."""
    return 3 * x.square()


def sick(t: Tensor, x: Tensor) -> Tensor:
    return torch.where(t > 0.4, torch.full_like(x, math.nan), 1.0)


def pole(t: Tensor, x: Tensor) -> Tensor:
    """Fixed steps walk over the time at which the state is infinite."""
    return (1 / (t - 0.40013).abs()).expand_as(x)


def carried(
    rate: Rate, solver: Solver = FEW, sizes: tuple[int, ...] = (4, 3, 2), **options: Any
) -> Transport:
    x, clouds = ragged(dimension=1, sizes=sizes)
    options = {"start": DATA, "end": LATENT, **options}
    with torch.no_grad():
        return carry(ContinuousFlow(field_of(rate)), x, clouds, solver=solver, **options)


def test_where_nothing_fails_nothing_else_is_done() -> None:
    for solver in (FEW, Solver("rk4", steps=3)):
        there = carried(stiff, solver, sizes=(4, 2))
        plain = carried(stiff, solver, sizes=(4, 2), fallback=False)
        assert torch.equal(there.x, plain.x)
        assert torch.equal(there.evaluations, plain.evaluations)
        assert there.solver == ("", "")
        assert there.solver_error.isnan().all()
        assert there.time.tolist() == [LATENT, LATENT]


@pytest.mark.parametrize(
    ("rate", "integral", "solver", "by"),
    [
        (stiff, -1e5, FEW, "radau"),
        pytest.param(
            stiff, -1e5, Solver("rk4", steps=200, step_limit=900), "radau", marks=pytest.mark.slow
        ),
        (wavy, math.sin(4) / 2, Solver("rk4", steps=50, step_limit=160), "dopri5"),
        pytest.param(
            quick,
            math.sin(40) / 2,
            Solver(rtol=1e-15, atol=1e-15),
            "rk4",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_another_solver_gives_is_right_to_the_error_it_states(
    rate: Rate, integral: float, solver: Solver, by: str
) -> None:
    there = carried(rate, solver)
    assert [status.name for status in there.status][1] == "SUCCESS"
    assert there.solver[1].split(" ")[0] == by
    error = float(there.solver_error[1])
    assert error <= LARGEST_ERROR
    x, _ = ragged(dimension=1, sizes=(4, 3, 2))
    expected = x[4:7] * math.exp(integral)
    assert (there.x[4:7] - expected).square().mean().sqrt() <= error + 1e-12


def test_a_trace_that_another_solver_integrates_is_right_in_nats() -> None:
    there = carried(stiff, divergence=Exact())
    assert there.solver[1].startswith("radau")
    assert float(there.log_det[1]) == pytest.approx(-2e5, rel=1e-9)
    assert float(there.log_det[0]) == pytest.approx(3 * SOUND, abs=1e-4)


@pytest.mark.parametrize("solver", [FEWER, Solver("rk4", steps=30, step_limit=150)])
@pytest.mark.parametrize("rate", [growing, sick])
def test_the_others_are_bitwise_what_they_are_without(rate: Rate, solver: Solver) -> None:
    there, plain = (carried(rate, solver, fallback=flag) for flag in (True, False))
    rows = torch.tensor([0, 1, 2, 3, 7, 8])
    assert torch.equal(there.x[rows], plain.x[rows])
    assert torch.equal(there.evaluations[[0, 2]], plain.evaluations[[0, 2]])
    assert there.solver[::2] == ("", "")


@pytest.mark.parametrize(
    ("rate", "solver"),
    [
        (growing, FEWER),
        (growing, Solver("rk4", steps=30, step_limit=150)),
        (sick, FEWER),
        pytest.param(growing, Solver(), marks=pytest.mark.slow),
        pytest.param(pole, Solver(), marks=pytest.mark.slow),  # of which rk4 has two results
    ],
)
def test_what_no_solver_can_carry_stays_failed_as_it_failed(rate: Rate, solver: Solver) -> None:
    plain = carried(rate, solver, fallback=False)
    there = carried(rate, solver)
    assert plain.status[1].failed
    assert there.status == plain.status
    assert there.x[4:7].isnan().all()
    assert there.solver == ("", "", "")
    assert there.solver_error.isnan().all()
    assert torch.equal(there.time, plain.time)
    assert 0 < float(there.time[1]) < 1
    more = int(there.evaluations[1] - plain.evaluations[1])
    assert 0 < more <= MORE * solver.step_limit  # all attempts are counted, and limited together


@pytest.mark.slow
def test_fixed_steps_alone_would_have_carried_one_over_a_pole() -> None:
    """The check can fail: without a look at the difference this would be a result."""
    last = others(Solver(), Status.UNDERFLOW, torch.float64)[-1]
    for solver in (last, refined(last, torch.float64)):
        there = carried(pole, solver, fallback=False)
        assert there.x.isfinite().all()


@pytest.mark.slow
def test_what_becomes_of_a_cloud_does_not_depend_on_those_that_failed_beside_it() -> None:
    x, clouds = ragged(dimension=1, sizes=(3, 2, 3))
    flow = ContinuousFlow(field_of(stiff))
    options = {"start": DATA, "end": LATENT, "solver": FEW}
    with torch.no_grad():
        together = carry(flow, x, clouds, **options)
        for cloud in (0, 2):
            some, rows = clouds.select(torch.tensor([cloud]))
            alone = carry(flow, x[rows], some, **options)
            assert torch.equal(together.x[rows], alone.x)
            assert together.solver[cloud] == alone.solver[0] != ""


def test_probes_are_the_same_in_every_attempt() -> None:
    """Along one probe the trace of a linear field is known."""
    x, clouds = ragged(dimension=1, sizes=(2, 3))
    flow, method = ContinuousFlow(field_of(stiff)), Hutchinson(2)
    probes = method.probes(x, clouds, rng.generator(5))
    options = {"start": DATA, "end": LATENT, "divergence": method, "source": rng.generator(5)}
    with torch.no_grad():
        there = carry(flow, x, clouds, solver=FEW, **options)
    expected = -1e5 * probes[:, 2:].square().sum((1, 2))
    assert torch.allclose(there.log_det[1], expected, rtol=1e-8)


def test_a_loss_is_of_the_solver_that_was_asked_for() -> None:
    x, clouds = ragged(dimension=1, sizes=(4, 3))
    flow = ContinuousFlow(field_of(stiff))
    there = carry(flow, x, clouds, start=DATA, end=LATENT, solver=FEW)
    assert [status.name for status in there.status] == ["SUCCESS", "STEP_LIMIT"]
    assert there.x.requires_grad


def test_attempts_are_within_their_multiple_of_the_limit_and_never_what_just_failed() -> None:
    for asked in (Solver(), Solver("rk4"), Solver("radau"), Solver("adaptive_heun")):
        for status in (Status.STEP_LIMIT, Status.NON_FINITE, Status.UNDERFLOW):
            tried = others(asked, status, torch.float32)
            assert asked not in tried
            assert len(set(tried)) == len(tried) > 0
            assert all(each.step_limit <= MORE * asked.step_limit for each in tried)
            assert tried[-1].method == "rk4"
    # Twice the work of the one that is checked, and it.
    assert all(2 * each.step_limit <= MORE * Solver().step_limit for each in tried)
    # Steps that vanish are no sign of stiffness, and no tolerance helps.
    assert len(others(Solver(), Status.UNDERFLOW, torch.float64)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "adaptive_heun"])
def test_no_attempt_is_coarser_than_asked_and_each_has_a_finer_one_to_check_it(
    method: str, dtype: torch.dtype
) -> None:
    asked = Solver(method)
    for status in (Status.STEP_LIMIT, Status.NON_FINITE, Status.UNDERFLOW):
        for tried in others(asked, status, dtype):
            assert max(tried.rtol, tried.atol) <= asked.rtol
            finer = refined(tried, dtype)
            if tried.is_adaptive:
                assert finest(dtype) <= finer.rtol <= tried.rtol / 2
            else:
                assert finer.steps == 2 * tried.steps
    if is_plain(asked):
        tighter, _ = others(asked, Status.NON_FINITE, dtype)
        assert tighter.method == "dopri5"
        assert tighter.rtol <= asked.rtol / 4
        assert tighter.atol <= asked.atol / 4


def test_where_numbers_resolve_nothing_finer_the_same_is_not_tried_again() -> None:
    """At 1e-6 in float32; what else is tried is as fine as it can be checked."""
    asked = Solver(rtol=1e-6, atol=1e-6)
    assert [each.method for each in others(asked, Status.NON_FINITE, torch.float32)] == ["rk4"]
    implicit, _ = others(asked, Status.STEP_LIMIT, torch.float32)
    assert implicit.rtol == 2 * finest(torch.float32)
    assert refined(implicit, torch.float32).rtol == finest(torch.float32)
    assert len(others(asked, Status.NON_FINITE, torch.float64)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_smaller_tolerance_carries_where_errors_left_the_region_of_the_field(
    dtype: torch.dtype,
) -> None:
    """Errors grow along the way, at the end of which the field exists near the solution only."""
    edge = 1.3e-3
    x, clouds = ragged(dimension=1, sizes=(3,))
    x, way = x.to(dtype), torch.tensor([[1.0], [0.0], [-1.0]], dtype=dtype)

    def near(t: Tensor, y: Tensor, clouds: Segments) -> Tensor:
        off = y - x - way * torch.sin(5 * t)
        is_lost = (t > 0.9) & (off.abs() > edge)
        return torch.where(is_lost, math.nan, 6 * off + 5 * torch.cos(5 * t) * way)

    flow = ContinuousFlow(FunctionField(near))
    options = {"start": DATA, "end": LATENT, "solver": Solver()}
    with torch.no_grad():
        assert carry(flow, x, clouds, **options, fallback=False).status == (Status.NON_FINITE,)
        there = carry(flow, x, clouds, **options)
    assert there.status == (Status.SUCCESS,)
    assert there.solver[0].startswith("dopri5")
    assert (there.x - x - way * math.sin(5)).abs().max() <= edge


# flows


def flow_with(rate: Rate, solver: Solver = FEW, dimension: int = 1) -> Flow:
    return flow_of(field_of(rate), dimension, 1.7, (2, 3, 4), solver)


def structures() -> Clouds:
    x, clouds = ragged(dimension=1, sizes=(4, 3, 2))
    return Clouds(x, clouds.ptr)


def test_a_score_says_who_gave_it_and_the_others_are_bitwise_the_same() -> None:
    flow, batch = flow_with(stiff), structures()
    scores, plain = flow.score(batch), flow.score(batch, fallback=False)
    assert scores.status == (Status.SUCCESS,) * 3
    assert plain.status[1] is Status.STEP_LIMIT
    assert "at t = 0.0" in plain.failures
    assert torch.equal(scores.log_prob[[0, 2]], plain.log_prob[[0, 2]])
    assert [bool(name) for name in scores.solver] == [False, True, False]
    # All of a cloud comes to rest at the origin.
    expected = -math.log(2 * math.pi) - 2e5 - 2 * math.log(1.7)
    assert float(scores.log_prob[1]) == pytest.approx(expected, abs=1e-3)
    with pytest.warns(RuntimeWarning, match="1 of 3 structures failed"):
        assert flow.log_prob(batch, fallback=False).isnan().tolist() == [False, True, False]


@pytest.mark.slow
def test_a_log_likelihood_alone_is_that_of_the_score() -> None:
    flow, batch = flow_with(stiff), structures()
    assert torch.equal(flow.log_prob(batch), flow.score(batch).log_prob)


@pytest.mark.slow
def test_draws_that_fail_are_drawn_by_others_from_the_same_noise() -> None:
    """Backwards the rate has the other sign: it is what decays that is stiff."""
    flow = flow_with(lambda t, x: torch.full((), 1e5))
    options = {"seed": 3, "divergence": Hutchinson(1)}
    drawn = flow.draw(6, with_log_prob=True, **options)
    plain = flow.draw(6, with_log_prob=True, fallback=False, **options)
    is_odd = drawn.clouds.sizes == 3
    assert 0 < int(is_odd.sum()) < 6
    assert drawn.failures == ""
    assert [bool(name) for name in drawn.solver] == is_odd.tolist()
    rows = ~drawn.clouds.segments.expand(is_odd)
    assert torch.equal(drawn.clouds.x[rows], plain.clouds.x[rows])
    assert torch.equal(drawn.scored()[~is_odd], plain.scored()[~is_odd])
    assert drawn.scored().isfinite().all()
    clouds, log_prob = flow.sample_and_log_prob(6, **options)
    assert torch.equal(clouds.x, drawn.clouds.x)
    assert torch.equal(log_prob, drawn.scored())
    with pytest.raises(SolverFailed, match="more evaluations"):
        flow.sample_and_log_prob(6, fallback=False, **options)
    with pytest.raises(SolverFailed):
        flow.sample(6, seed=3, fallback=False)


class Features(AbstractField):
    """Positions and features beside them at a rate of their own, by the size of a molecule."""

    def __init__(self, features: int, rate: float) -> None:
        super().__init__()
        self.state_features = features
        self.unit = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.rate = rate

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        is_odd = edges.clouds.expand(edges.clouds.lengths == 3).unsqueeze(1)
        x = centred(x, edges.clouds, self.state_features)
        return self.unit * torch.where(is_odd, self.rate, SOUND) * x


def molecular(rate: float, solver: Solver) -> MolecularFlow:
    sizes = Sizes(torch.tensor([1, 3]), torch.tensor([0.5, 0.5]).double().log())
    flow = ContinuousFlow(Features(2, rate))
    return MolecularFlow(
        flow, ArgmaxDequantiser(2), ActNorm(2).double(), sizes, (1, 8), solver=solver
    )


@pytest.mark.slow
def test_the_bound_of_a_molecule_says_who_gave_its_draws() -> None:
    flow = molecular(-1e5, FEW)
    x = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    batch = Clouds(x, torch.tensor([0, 1, 4]), torch.tensor([8, 8, 1, 1]))
    options = {"draws": 2, "divergence": Hutchinson(1)}
    scores = flow.score(batch, **options)
    plain = flow.score(batch, **options, fallback=False)
    assert [status.name for status in plain.status] == ["SUCCESS", "STEP_LIMIT"]
    assert scores.status == (Status.SUCCESS,) * 2
    assert torch.equal(scores.log_prob[:1], plain.log_prob[:1])
    assert [name.split(" ")[0] for name in scores.solver] == ["", "radau"]
    assert scores.solver_error.isnan().tolist() == [True, False]
    # Probes are of ±1, centred where they are positions: 6 features, and 6 freedoms about.
    assert -1.6e6 < float(scores.log_prob[1]) < -0.6e6


@pytest.mark.slow
def test_molecules_and_what_is_grown_around_a_fragment_are_drawn_by_others_too() -> None:
    flow = molecular(1e7, Solver(step_limit=600))
    drawn = flow.draw(6, seed=0)
    is_odd = [size == 3 for size in drawn.clouds.sizes.tolist()]
    assert drawn.failures == ""
    assert [bool(name) for name in drawn.solver] == is_odd
    assert flow.draw(6, seed=0, fallback=False).failures
    fragment = Clouds(torch.zeros(1, 3).double(), torch.tensor([0, 1]), torch.tensor([8]))
    fixed = Fixed(fragment, times=3, rounds=1)
    options = {"seed": 0, "fixed": fixed, "solver": Solver(step_limit=600)}
    grown = flow.draw(6, **options)
    assert grown.failures == ""
    assert [bool(name) for name in grown.solver] == is_odd
    plain = flow.draw(6, **options, fallback=False)
    rows = ~grown.clouds.segments.expand(torch.tensor(is_odd))
    assert torch.equal(grown.clouds.x[rows], plain.clouds.x[rows])
    assert [status.failed for status in plain.status] == is_odd
