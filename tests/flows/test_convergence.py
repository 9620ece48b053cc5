"""What a finer solver changes of a log-likelihood is the error that it had."""

from __future__ import annotations

import math
import warnings
from functools import cache

import pytest
import torch
from example_flows import enlarged_field, flow_of

from eqflow import rng
from eqflow.flows import (
    ActNorm,
    ArgmaxDequantiser,
    ContinuousFlow,
    Flow,
    Hutchinson,
    MolecularFlow,
    Sizes,
    Solver,
    Status,
)
from eqflow.flows.convergence import (
    CONVERGED,
    can_be_refined,
    finest,
    refined,
    unconverged,
)
from eqflow.geometry import Clouds
from eqflow.nn import JointEGNNField

EXACT = Solver(rtol=1e-10, atol=1e-10, step_limit=100_000)
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


@cache
def flow() -> Flow:
    return flow_of(enlarged_field(gain=200.0), 2, 1.8, (3,))


def structures(count: int = 6) -> Clouds:
    x = rng.normal((count, 3, 2), torch.zeros((), dtype=torch.float64), rng.generator(3))
    return Clouds.from_dense(2 * x)


@cache
def exact(**options: object) -> torch.Tensor:
    return flow().score(structures(), solver=EXACT, **options).log_prob


def errors(solver: Solver, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The change that is stated, and the true error with its sign turned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        scores = flow().score(structures(), solver=solver, check_convergence=True, **options)
    assert scores.log_prob_change is not None
    return scores.log_prob_change, exact(**options) - scores.log_prob


@pytest.mark.parametrize(
    ("method", "steps"), [("euler", 40), ("midpoint", 16), ("heun", 16), ("rk4", 8)]
)
def test_with_fixed_steps_the_change_is_the_error_but_for_that_of_the_finer(
    method: str, steps: int
) -> None:
    """Law: `1 − 2^−p` of the error of a method of order `p`."""
    change, error = errors(Solver(method, steps=steps))
    worst = float(error.abs().max())
    assert worst > 1e-8
    share = 1 - 2.0 ** -ORDERS[method]
    # Beside the worst, where two orders of the error may cancel.
    torch.testing.assert_close(change, share * error, rtol=0.1, atol=0.05 * worst)


@pytest.mark.parametrize("divergence", ["exact", Hutchinson(2)])
def test_with_adaptive_steps_the_change_is_of_the_size_of_the_error(divergence: object) -> None:
    """About a tenth of the error is left: by no law of each solve, but by one of several."""
    ratios = []
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        solver = Solver(rtol=tolerance, atol=tolerance)
        change, error = errors(solver, divergence=divergence)
        ratios.append(math.log(float(change.abs().max() / error.abs().max())))
    assert max(map(abs, ratios)) < math.log(10)
    assert abs(sum(ratios) / len(ratios)) < math.log(2.5)


def test_the_implicit_method_states_its_error_too() -> None:
    change, error = errors(Solver("radau", rtol=1e-3, atol=1e-3, steps=2))
    assert 1 / 3 < float(change.abs().max() / error.abs().max()) < 3


def test_the_score_is_the_one_asked_for_and_both_are_counted() -> None:
    solver = Solver(rtol=1e-5, atol=1e-5)
    plain = flow().score(structures(), solver=solver)
    finer = flow().score(structures(), solver=refined(solver, torch.float64))
    checked = flow().score(structures(), solver=solver, check_convergence=True)
    assert plain.log_prob_change is None
    assert torch.equal(checked.log_prob, plain.log_prob)
    assert torch.equal(checked.evaluations, plain.evaluations + finer.evaluations)
    assert torch.equal(checked.log_prob_change, finer.log_prob - plain.log_prob)


def test_much_of_a_change_is_warned_of_and_a_little_is_not() -> None:
    with pytest.warns(RuntimeWarning, match=r"of 6 log-likelihoods by more than 0\.01 nats"):
        flow().log_prob(structures(), solver=Solver("euler", steps=2), check_convergence=True)
    fine = Solver(rtol=1e-6, atol=1e-6)
    scores = flow().score(structures(), solver=fine, check_convergence=True)  # warnings are errors
    assert not unconverged(scores.log_prob_change).any()
    nan = torch.tensor([math.nan, 2 * CONVERGED, -2 * CONVERGED, CONVERGED / 2])
    assert unconverged(nan).tolist() == [False, True, True, False]


def test_a_change_is_not_known_where_either_failed() -> None:
    batch = structures()
    x = batch.x.clone()
    x[0] = math.nan
    scores = flow().score(batch.with_positions(x), check_convergence=True)
    assert scores.status[0] is Status.NON_FINITE
    assert scores.log_prob_change.isnan().tolist() == [True] + [False] * 5


def test_a_tolerance_is_not_taken_below_what_numbers_resolve() -> None:
    for dtype in (torch.float32, torch.float64):
        least = finest(dtype)
        for tolerance in (least / 5, least, 1.9 * least, 2 * least, 5 * least, 20 * least, 1e-2):
            asked = Solver(rtol=tolerance, atol=tolerance)
            finer = refined(asked, dtype)
            assert finer.rtol == finer.atol <= tolerance
            assert finer.rtol >= min(least, tolerance)
            assert can_be_refined(asked, dtype) == (tolerance >= 2 * least)
        assert can_be_refined(Solver("rk4", rtol=least / 5, atol=least / 5), dtype)
    assert refined(Solver(), torch.float64).rtol == pytest.approx(1e-6)
    # One of the two may have room for both.
    assert can_be_refined(Solver(rtol=1e-6, atol=1e-4), torch.float32)


def test_where_numbers_resolve_no_finer_solver_no_change_is_known() -> None:
    """The same solver again would change nothing, and look like convergence."""
    single = flow_of(enlarged_field(gain=200.0), 2, 1.8, (3,)).float()
    batch = structures(2)
    batch = batch.with_positions(batch.x.float())
    asked = Solver(rtol=1e-6, atol=1e-6)
    with pytest.warns(RuntimeWarning, match="no finer solver than dopri5 at 1e-06 .* in float32"):
        scores = single.score(batch, solver=asked, check_convergence=True)
    assert scores.log_prob_change.isnan().tolist() == [True, True]
    plain = single.score(batch, solver=asked)
    assert torch.equal(scores.log_prob, plain.log_prob)
    assert torch.equal(scores.evaluations, plain.evaluations)
    resolved = single.score(batch, check_convergence=True, solver=Solver())
    assert resolved.log_prob_change.abs().max() > 0


def test_the_bound_of_molecules_is_checked_with_the_same_draws() -> None:
    field = JointEGNNField(2, width=4, layers=1)
    flow = MolecularFlow(
        ContinuousFlow(field),
        ArgmaxDequantiser(2),
        ActNorm(2),
        Sizes(torch.tensor([2]), torch.zeros(1).double()),
        (1, 8),
    ).double()
    source = torch.Generator().manual_seed(0)
    for parameter in flow.parameters():
        parameter.data = 0.3 * torch.randn(
            tuple(parameter.shape), dtype=torch.float64, generator=source
        )
    x = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.float64)
    batch = Clouds(x, torch.tensor([0, 2, 5]), torch.tensor([8, 1, 8, 1, 1]))
    options = {"draws": 2, "seed": 1}
    coarse = Solver("rk4", steps=4)
    scores = flow.score(batch, solver=coarse, check_convergence=True, **options)
    exact = flow.score(batch, solver=EXACT, **options)
    error = float((exact.log_prob - scores.log_prob)[0])
    assert float(scores.log_prob_change[0]) == pytest.approx(error, rel=0.2)
    assert scores.status[1] is Status.IMPOSSIBLE_SIZE
    assert bool(scores.log_prob_change[1].isnan())
