"""The distribution of sizes."""

import pytest
import torch

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows import Sizes
from eqflow.geometry import Clouds

THREE = Sizes(torch.tensor([2, 5, 9]), torch.tensor([0.5, 0.3, 0.2]).double().log())


def test_frequencies_are_those_of_the_data() -> None:
    clouds = Clouds(torch.zeros(12, 3), torch.tensor([0, 3, 6, 7, 12]))
    sizes = Sizes.of(clouds)
    assert sizes.sizes.tolist() == [1, 3, 5]
    torch.testing.assert_close(sizes.log_probs.exp(), torch.tensor([0.25, 0.5, 0.25]).double())


def test_a_size_never_seen_has_no_probability() -> None:
    found = THREE.log_prob(torch.tensor([9, 1, 4, 50, 2]))
    assert found.exp().tolist() == pytest.approx([0.2, 0, 0, 0, 0.5])


def test_draws_have_the_frequencies() -> None:
    drawn = THREE.draw(20_000, rng.generator(0, "sizes"))
    for size, probability in zip((2, 5, 9), (0.5, 0.3, 0.2), strict=True):
        assert abs(float((drawn == size).double().mean()) - probability) < 0.02


def test_sizes_may_be_fixed_or_bounded_from_below() -> None:
    source = rng.generator(0, "sizes")
    assert THREE.draw(3, source, 4).tolist() == [4, 4, 4]
    assert THREE.draw(3, source, [1, 2, 9]).tolist() == [1, 2, 9]
    bounded = THREE.draw(2000, source, least=5)
    assert set(bounded.tolist()) == {5, 9}
    assert abs(int((bounded == 5).sum()) - 1200) < 4.5 * (2000 * 0.24) ** 0.5
    for sizes, least, message in (
        ([1, 2], 1, "found 2 for 3"),
        (0, 1, "found 0, expected at least 1"),
        ([2, 9, 3], 3, "found 2, expected at least 3"),
        (None, 10, "found at most 9 points"),
    ):
        with pytest.raises(UsageError, match=message):
            THREE.draw(3, source, sizes, least)


def test_places_are_those_of_the_sizes() -> None:
    clouds = Clouds(torch.zeros(16, 3), torch.tensor([0, 9, 11, 16]))
    assert THREE.places(clouds).tolist() == [2, 0, 1]


def test_plain_values_bring_it_back() -> None:
    again = Sizes.from_plain(THREE.to_plain())
    assert torch.equal(again.sizes, THREE.sizes)
    assert torch.equal(again.log_probs, THREE.log_probs)


@pytest.mark.parametrize(
    ("sizes", "probabilities"),
    [([2, 2], [0.5, 0.5]), ([0, 2], [0.5, 0.5]), ([], []), ([1, 2], [1.0]), ([1, 2], [0.5, 0.6])],
)
def test_what_is_no_distribution_is_an_error(sizes, probabilities) -> None:
    log_probs = torch.tensor(probabilities, dtype=torch.float64).log()
    with pytest.raises(UsageError, match="sizes"):
        Sizes(torch.tensor(sizes, dtype=torch.int64), log_probs)
