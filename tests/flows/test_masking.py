"""The path of masked categories has the law it claims, both ways."""

import math

import pytest
import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows import Masking

MANY = 20_000
P = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def close(found: Tensor, expected: Tensor, count: int = MANY) -> bool:
    """Whether fractions are probabilities, within five standard errors."""
    return bool(((found - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all())


def fractions(kinds: Tensor, most: int) -> Tensor:
    return torch.bincount(kinds, minlength=most) / len(kinds)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_a_category_is_masked_with_the_probability_of_the_time(t: float) -> None:
    path, kinds = Masking(2), torch.arange(MANY) % 2
    times = torch.full((MANY,), t, dtype=torch.float64)
    found = path.masked(kinds, times, rng.generator(0))
    hidden = found == path.mask
    assert torch.equal(found[~hidden], kinds[~hidden])
    for kind in range(2):
        masked = hidden[kinds == kind].double().mean()
        assert close(masked, torch.tensor(t).double(), MANY // 2)


@pytest.mark.parametrize("remasking", [0.0, 2.0])
def test_the_way_back_has_the_law_of_the_path_at_every_time(remasking: float) -> None:
    path, logits = Masking(3, remasking=remasking), P.log().expand(MANY, -1)
    kinds = torch.full((MANY,), path.mask)
    steps = 200
    for place in range(steps):
        t, s = 1 - place / steps, 1 - (place + 1) / steps
        kinds = path.step(kinds, logits, t, s, rng.generator(0, place))
        if place + 1 in (50, 150):
            found = fractions(kinds, 4)
            expected = torch.cat([(1 - s) * P, torch.tensor([s]).double()])
            # Steps of 1/200 of the rates, where there are any, cost their length in accuracy.
            slack = 5 * (expected * (1 - expected) / MANY).sqrt() + (remasking > 0) / steps
            assert ((found - expected).abs() <= slack).all()
    assert not (kinds == path.mask).any()
    assert close(fractions(kinds, 3), P)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_nothing_is_masked_at_the_end_and_nothing_seen_changes(steps: int) -> None:
    path, logits = Masking(3), torch.zeros(500, 3, dtype=torch.float64)
    kinds = torch.full((500,), path.mask)
    for place in range(steps):
        t, s = 1 - place / steps, 1 - (place + 1) / steps
        s = 0.0 if place + 1 == steps else s
        after = path.step(kinds, logits, t, s, rng.generator(0, place))
        seen = kinds != path.mask
        assert torch.equal(after[seen], kinds[seen])
        kinds = after
    assert int(kinds.max()) < path.mask


def test_temperature_sharpens_and_flattens() -> None:
    logits, masked = P.log().expand(MANY, -1), torch.full((MANY,), 3)
    for temperature in (0.5, 2.0):
        kinds = Masking(3, temperature).step(masked, logits, 1.0, 0.0, rng.generator(0))
        assert close(fractions(kinds, 3), (P.log() / temperature).softmax(0))
    cold = Masking(3, 1e-3).step(masked, logits, 1.0, 0.0, rng.generator(0))
    assert (cold == 1).all()


def test_draws_belong_to_places_and_not_to_what_happens_there() -> None:
    """That another point is masked or has other logits changes nothing for this one."""
    path, logits = Masking(3), torch.randn(50, 3, generator=rng.generator(0))
    kinds = torch.full((50,), path.mask)
    first = path.step(kinds, logits, 0.8, 0.3, rng.generator(1))
    other, elsewhere = kinds.clone(), logits.clone()
    other[::2], elsewhere[::2] = 1, 0.0
    second = path.step(other, elsewhere, 0.8, 0.3, rng.generator(1))
    assert torch.equal(first[1::2], second[1::2])


def test_context_is_one_hot_with_the_mask_last() -> None:
    path, like = Masking(2), torch.zeros(3, 3, dtype=torch.float64)
    found = path.context(torch.tensor([1, 2, 0]), like, torch.full((3, 1), 7.0).double())
    assert found.tolist() == [[0, 1, 0, 7], [0, 0, 1, 7], [1, 0, 0, 7]]
    assert path.context(torch.tensor([1, 2, 0]), like, None).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"categories": 0}, "categories=0"),
        ({"temperature": 0.0}, "temperature: found 0.0"),
        ({"temperature": math.nan}, "temperature: found nan"),
        ({"remasking": -1.0}, "remasking: found -1.0"),
    ],
)
def test_values_out_of_range_are_named(options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Masking(**{"categories": 2, **options})
