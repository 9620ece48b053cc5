"""Bootstrap intervals: they cover, they are functions of the seed, and nothing breaks them."""

import math

import pytest
import torch

from eqflow import rng
from eqflow.evaluate.estimates import Estimate, interval, nothing, rate, ratio, resampled, typical


def normal(count: int, trial: int) -> torch.Tensor:
    return torch.randn(count, generator=rng.generator(trial, "test"), dtype=torch.float64)


def test_a_rate_counts_what_cannot_be_judged_as_failed():
    found = rate(torch.tensor([1.0, 1.0, 0.0, math.nan]))
    assert (found.value, found.count, found.not_computable) == (0.5, 4, 1)


def test_a_mean_leaves_out_what_cannot_be_computed():
    found = typical(torch.tensor([1.0, 2.0, math.nan, math.inf]))
    assert (found.value, found.count, found.not_computable) == (1.5, 2, 2)
    median = typical(torch.tensor([1.0, 2.0, 30.0]), of=lambda rows: rows.median(1).values)
    assert median.value == 2


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    """Within five standard errors of 95 %, less the known shortfall of the percentile interval."""
    inside = 0
    for trial in range(300):
        found = typical(normal(60, trial), seed=trial)
        inside += found.low <= 0 <= found.high
    assert 0.95 - 0.02 - 5 * math.sqrt(0.05 * 0.95 / 300) <= inside / 300 <= 1


def test_the_interval_of_a_rate_is_that_of_the_binomial():
    passed = torch.zeros(400)
    passed[:100] = 1
    found = rate(passed)
    width = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.low == pytest.approx(0.25 - width, abs=0.008)
    assert found.high == pytest.approx(0.25 + width, abs=0.008)


def test_a_ratio_resamples_whole_molecules():
    """Two molecules, one of 30 good atoms and one of 10 bad ones: all good, all bad, or both."""
    found = ratio(torch.tensor([30.0, 0.0]), torch.tensor([30.0, 10.0]))
    assert found[:3] == (0.75, 0, 1)


def test_an_interval_is_a_function_of_the_seed():
    values = normal(50, 0)
    assert typical(values, seed=1) == typical(values, seed=1)
    assert typical(values, seed=1) != typical(values, seed=2)


def test_resamples_come_in_parts_that_add_up(monkeypatch):
    from eqflow.evaluate import estimates

    whole = torch.cat(list(resampled(7, 0, 10)))
    monkeypatch.setattr(estimates, "DRAWS_AT_ONCE", 20)
    parts = list(resampled(7, 0, 10))
    assert [len(part) for part in parts] == [2] * 5
    assert torch.cat(parts).shape == whole.shape
    assert int(torch.cat(parts).max()) < 7


def test_of_nothing_there_is_no_number_and_no_error():
    for found in (
        rate(torch.zeros(0)),
        typical(torch.zeros(0)),
        ratio(torch.zeros(0), torch.zeros(0)),
        ratio(torch.zeros(3), torch.zeros(3)),
        nothing(),
    ):
        assert math.isnan(found.value)
        assert found.count == 0
    assert typical(torch.tensor([math.nan])).not_computable == 1
    assert all(math.isnan(end) for end in interval([math.nan]))


def test_one_molecule_has_an_interval_without_width():
    assert typical(torch.tensor([3.0]))[:4] == (3, 3, 3, 1)


def test_an_estimate_says_what_it_is():
    assert str(Estimate(0.5, 0.25, 0.75, 4)) == "0.5 [0.25, 0.75]"


def test_where_all_or_none_pass_the_interval_is_the_exact_one_of_the_binomial():
    from scipy.stats import binomtest

    for passed in (torch.zeros(20), torch.ones(20)):
        exact = binomtest(int(passed.sum()), 20).proportion_ci(0.95, "exact")
        found = rate(passed)
        assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
