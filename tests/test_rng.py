"""Every draw is a function of seed and purpose, and of nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eqflow import rng

LIKE = torch.zeros((), dtype=torch.float64)
part = st.one_of(st.integers(0, 10**9), st.text(max_size=5))
path = st.lists(part, max_size=4)


@given(seed=st.integers(), one=path, two=path)
def test_seeds_are_reproducible_positive_and_differ_between_purposes(seed, one, two):
    first, second = rng.derived_seed(seed, *one), rng.derived_seed(seed, *two)
    assert first == rng.derived_seed(seed, *one)
    assert 0 <= first < 2**63
    # A separator within a word is part of the word only in theory: "a/str:b" is nobody's purpose.
    if one != two and not any("/" in str(word) for word in one + two):
        assert first != second


def test_a_number_and_its_name_are_two_purposes():
    assert rng.derived_seed(0, 1) != rng.derived_seed(0, "1")
    assert rng.derived_seed(0, "a", "b") != rng.derived_seed(0, "ab")


def draws(source):
    return [
        rng.normal((2, 3), LIKE, source),
        rng.uniform((4,), LIKE, source),
        rng.rademacher((5,), LIKE, source),
        rng.permutation(6, source),
    ]


def test_the_same_purpose_draws_the_same_whatever_was_drawn_before():
    before = draws(rng.generator(0, "noise", 1))
    torch.randn(10)
    draws(rng.generator(0, "noise", 2))
    for one, other in zip(before, draws(rng.generator(0, "noise", 1)), strict=True):
        assert torch.equal(one, other)


def test_the_global_generator_is_neither_used_nor_moved():
    state = torch.random.get_rng_state()
    draws(rng.generator(0, "noise"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draws_within_seeded_follow_its_purpose_and_leave_no_trace():
    before = torch.random.get_rng_state()
    found = []
    for purpose in ("one", "one", "other"):
        with rng.seeded(0, purpose):
            found += [rng.uniform_within_seeded((10_000,), LIKE) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])  # anew in each call
    assert not torch.equal(found[0], found[4])
    for sample in found:
        assert sample.dtype == LIKE.dtype
        assert 0 <= float(sample.min()) <= float(sample.max()) < 1
        assert abs(float(sample.mean()) - 0.5) < 5 * (1 / 12 / 10_000) ** 0.5
    assert rng.uniform_within_seeded((2, 3), LIKE.float()).dtype == torch.float32


def test_purposes_are_uncorrelated():
    one = rng.normal((10_000,), LIKE, rng.generator(0, "a"))
    other = rng.normal((10_000,), LIKE, rng.generator(0, "b"))
    assert abs(float((one * other).mean())) < 5 / 10_000**0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_draws_have_the_type_of_what_they_are_like_and_their_moments(dtype):
    like, count = torch.zeros((), dtype=dtype), 10_000
    source = rng.generator(0, "moments")
    kinds = {rng.normal: (0, 1), rng.uniform: (0.5, 1 / 12), rng.rademacher: (0, 1)}
    for draw, (mean, variance) in kinds.items():
        sample = draw((count,), like, source)
        assert sample.dtype == dtype
        assert abs(float(sample.mean()) - mean) < 5 * (variance / count) ** 0.5
        assert float(sample.var()) == pytest.approx(variance, rel=0.1)


def test_rademacher_draws_are_signs_and_permutations_are_permutations():
    source = rng.generator(0, "signs")
    assert set(rng.rademacher((100,), LIKE, source).tolist()) == {-1.0, 1.0}
    assert rng.permutation(50, source).sort().values.tolist() == list(range(50))
