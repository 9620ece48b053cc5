"""Distances of distributions: known answers, zero for the same, and intervals that say so."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eqflow import rng
from eqflow.evaluate import distances
from eqflow.evaluate.discrepancies import jensen_shannon, wasserstein
from eqflow.evaluate.internal_coordinates import Spread


def spread(values, sizes=None) -> Spread:
    """Values of molecules; each has one where no sizes are said."""
    sizes = torch.tensor(sizes if sizes is not None else [1] * len(values))
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    return Spread(torch.as_tensor(values, dtype=torch.float64), owner, len(sizes))


def normal(count: int, *purpose: str, shift: float = 0.0) -> Spread:
    source = rng.generator(0, "discrepancy", *purpose)
    return spread(shift + torch.randn(count, generator=source, dtype=torch.float64))


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    st.lists(st.floats(-5, 5), min_size=1, max_size=8),
)
def test_wasserstein_is_that_of_all_values_together(first, second):
    found = wasserstein(spread(first, [len(first)]), spread(second, [len(second)]))
    expected = distances.wasserstein(
        *(torch.tensor(values, dtype=torch.float64) for values in (first, second))
    )
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.low == pytest.approx(expected, abs=1e-9)


def test_a_shift_is_found_with_an_interval_around_it():
    found = wasserstein(normal(2000, "a"), normal(2000, "b", shift=1.0))
    assert found.value == pytest.approx(1, abs=5 * math.sqrt(2 / 2000))
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.3


def test_two_samples_of_one_distribution_are_near_and_other_ones_are_not():
    near = wasserstein(normal(500, "a"), normal(500, "b"))
    far = wasserstein(normal(500, "a"), normal(500, "c", shift=0.5))
    assert near.high < far.low


def test_molecules_are_resampled_whole():
    """One molecule has all zeros and one all ones: resamples are 0, 1 or both."""
    found = wasserstein(spread([0.0, 0, 0, 1], [3, 1]), spread([0.0]))
    assert (found.value, found.low, found.high) == (0.25, 0, 1)


def test_what_has_no_values_has_no_distance():
    empty = Spread(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0)
    bare = Spread(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 3, 2)
    for found in (wasserstein(empty, spread([1.0])), wasserstein(bare, spread([1.0]))):
        assert math.isnan(found.value)
    assert wasserstein(bare, spread([1.0])).not_computable == 2
    assert math.isnan(wasserstein(spread([1.0]), empty).value)


def test_molecules_without_values_are_molecules_too():
    found = wasserstein(Spread(torch.ones(1), torch.tensor([1]), 2, 1), spread([0.0]))
    assert (found.value, found.count, found.not_computable) == (1, 1, 1)


def test_the_jensen_shannon_divergence_has_known_values():
    same = torch.tensor([[1, 1], [3, 3]])
    assert jensen_shannon(same, 5 * same).value == pytest.approx(0, abs=1e-12)
    apart = torch.tensor([[2, 0]]), torch.tensor([[0, 7]])
    assert jensen_shannon(*apart)[:3] == pytest.approx((1, 1, 1))
    half = jensen_shannon(torch.tensor([[1, 0]]), torch.tensor([[1, 1]])).value
    expected = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25) - 0.5
    assert half == pytest.approx(expected)


def test_it_is_the_same_both_ways():
    one, other = torch.tensor([[3, 1, 0], [0, 1, 2]]), torch.tensor([[1, 1, 1]])
    assert jensen_shannon(one, other).value == pytest.approx(jensen_shannon(other, one).value)


def test_categories_of_nothing_have_no_divergence():
    nothing, something = torch.zeros(0, 2), torch.ones(1, 2)
    assert math.isnan(jensen_shannon(nothing, something).value)
    assert math.isnan(jensen_shannon(torch.zeros(3, 2), something).value)
    assert math.isnan(jensen_shannon(torch.zeros(3, 0), torch.zeros(1, 0)).value)


def test_a_distance_is_a_function_of_the_seed():
    one, other = normal(50, "a"), normal(50, "b")
    assert wasserstein(one, other, seed=4) == wasserstein(one, other, seed=4)
    assert wasserstein(one, other, seed=4) != wasserstein(one, other, seed=5)
