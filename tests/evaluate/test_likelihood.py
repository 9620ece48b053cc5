"""Means with errors, divergences and weights, where the answer is known in closed form."""

import math

import pytest
import torch

from eqflow.evaluate import (
    Mean,
    effective_sample_size,
    kl_to_target,
    mean_of,
    negative_log_likelihood,
)


def normal(count: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, dtype=torch.float64, generator=source)


def log_density(x: torch.Tensor, mean: float, width: float) -> torch.Tensor:
    return -0.5 * ((x - mean) / width) ** 2 - math.log(width) - 0.5 * math.log(2 * math.pi)


def test_a_mean_carries_its_standard_error_and_count() -> None:
    found = mean_of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.value == 3
    assert found.se == pytest.approx(math.sqrt(14 / 3 / 4))
    assert found.count == 4
    assert str(Mean(1.23456, 0.0123, 9)) == "1.235 ± 0.012"


def test_values_that_are_not_finite_are_left_out_and_not_counted() -> None:
    found = mean_of(torch.tensor([1.0, math.nan, 3.0, math.inf]))
    assert (found.value, found.count) == (2, 2)
    empty = mean_of(torch.tensor([math.nan]))
    assert math.isnan(empty.value)
    assert empty.count == 0
    alone = mean_of(torch.tensor([4.0]))
    assert alone.value == 4
    assert math.isnan(alone.se)


def test_the_standard_error_covers_the_mean_as_often_as_it_should() -> None:
    inside = 0
    for trial in range(400):
        found = mean_of(normal(50, trial))
        inside += abs(found.value) <= 1.96 * found.se
    assert 0.91 <= inside / 400 <= 0.98


def test_the_kl_divergence_of_two_gaussians_is_found() -> None:
    x = normal(20_000)
    found = kl_to_target(log_density(x, 0, 1), log_density(x, 0.4, 1.5))
    exact = math.log(1.5) + (1 + 0.4**2) / (2 * 1.5**2) - 0.5
    assert abs(found.value - exact) < 4.5 * found.se
    assert found.se < 0.01


def test_the_kl_divergence_of_a_density_from_itself_is_zero_without_noise() -> None:
    log_prob = log_density(normal(50), 0, 1)
    assert kl_to_target(log_prob, log_prob) == Mean(0, 0, 50)


def test_pairing_has_less_noise_than_the_likelihood() -> None:
    x = normal(2000)
    target, model = log_density(x, 0, 1), log_density(x, 0.05, 1)
    assert kl_to_target(target, model).se < 0.1 * negative_log_likelihood(model).se


def test_the_negative_log_likelihood_of_the_truth_is_the_entropy() -> None:
    x = normal(20_000)
    found = negative_log_likelihood(log_density(x, 0, 1))
    assert abs(found.value - 0.5 * math.log(2 * math.pi * math.e)) < 4.5 * found.se


def test_equal_densities_leave_every_sample_effective() -> None:
    log_prob = normal(100)
    assert effective_sample_size(log_prob, log_prob) == pytest.approx(1)
    assert effective_sample_size(log_prob + 700, log_prob) == pytest.approx(1)


def test_the_effective_sample_size_of_two_gaussians_is_known() -> None:
    """With equal widths and means `m` apart, `1 / E[w²] = exp(−m²)`."""
    x = normal(200_000)
    found = effective_sample_size(log_density(x, 0.7, 1), log_density(x, 0, 1))
    assert found == pytest.approx(math.exp(-(0.7**2)), rel=0.02)


def test_weights_by_hand_give_kish_fraction() -> None:
    log_weight = torch.log(torch.tensor([1.0, 2.0, 3.0]))
    found = effective_sample_size(log_weight, torch.zeros(3))
    assert found == pytest.approx(36 / (3 * 14))


def test_a_sample_outside_the_target_counts_with_weight_zero() -> None:
    target = torch.tensor([0.0, -math.inf, 0.0, -math.inf])
    assert effective_sample_size(target, torch.zeros(4)) == pytest.approx(0.5)


def test_a_sample_without_a_density_does_not_count() -> None:
    target = torch.tensor([0.0, math.nan, 0.0])
    assert effective_sample_size(target, torch.zeros(3)) == pytest.approx(1)
    assert math.isnan(effective_sample_size(torch.tensor([math.nan]), torch.zeros(1)))
    assert math.isnan(effective_sample_size(torch.tensor([-math.inf]), torch.zeros(1)))


def test_one_dominating_weight_leaves_one_sample() -> None:
    target = torch.zeros(10)
    target[3] = 800
    assert effective_sample_size(target, torch.zeros(10)) == pytest.approx(0.1)
