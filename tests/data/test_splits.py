"""Splits: disjoint, complete, a function of the seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eqflow.data import duplicates, formulas, split
from eqflow.errors import EmptyData, ShapeError, UsageError
from eqflow.geometry import Clouds

PARTS = {"train": 0.8, "val": 0.1, "test": 0.1}


@given(st.integers(10, 300), st.integers(0, 2**40))
def test_fractions_that_add_up_to_one_use_every_item_once(count, seed):
    parts = split(count, PARTS, seed)
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(count))


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 50))
def test_counts_are_met_exactly_and_disjoint(a, b, rest):
    parts = split(a + b + rest, {"a": a, "b": b}, seed=1)
    assert [len(part) for part in parts.values()] == [a, b]
    assert not set(parts["a"].tolist()) & set(parts["b"].tolist())


def test_the_seed_alone_decides():
    first, again, other = split(99, PARTS, 0), split(99, PARTS, 0), split(99, PARTS, 1)
    assert all(torch.equal(first[name], again[name]) for name in PARTS)
    assert not torch.equal(first["train"], other["train"])


def test_a_smaller_part_is_within_a_larger_one_of_the_same_seed():
    small, large = split(99, {"train": 10}, 0)["train"], split(99, {"train": 50}, 0)["train"]
    assert set(small.tolist()) <= set(large.tolist())


def test_items_of_one_group_stay_together_and_sizes_nearly_hold():
    groups = torch.arange(1000) // 7
    parts = split(1000, PARTS, 3, groups=groups)
    assert sum(len(part) for part in parts.values()) == 1000
    owners = [set(groups[part].tolist()) for part in parts.values()]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    assert abs(len(parts["val"]) - 100) <= 7


def test_duplicates_are_grouped_by_positions_and_elements():
    x = torch.tensor([0.0, 1, 0, 1, 0, 1]).unsqueeze(1)
    clouds = Clouds(x, torch.tensor([0, 2, 4, 6]), torch.tensor([1, 1, 1, 1, 1, 6]))
    assert duplicates(clouds).tolist() == [0, 0, 1]
    assert duplicates(Clouds(clouds.x, clouds.ptr)).tolist() == [0, 0, 0]


def test_an_empty_part_is_refused_with_the_counts():
    with pytest.raises(EmptyData, match=r"3 items.*val 0.*would be empty"):
        split(3, {"train": 0.9, "val": 0.1}, 0)
    with pytest.raises(EmptyData, match="0 items"):
        split(0, {"train": 1.0}, 0)
    with pytest.raises(EmptyData, match="b 0"):
        split(3, {"a": 3, "b": 0}, 0)


@pytest.mark.parametrize(
    "parts",
    [{}, {"a": 0.5, "b": 3}, {"a": 0.8, "b": 0.3}, {"a": 20}, {"a": -1}, {"a": 1.5}, {"a": True}],
)
def test_sizes_that_make_no_sense_are_refused(parts):
    with pytest.raises(UsageError, match="split: found"):
        split(10, parts, 0)


def test_groups_of_another_length_are_refused():
    with pytest.raises(ShapeError):
        split(10, PARTS, 0, groups=torch.zeros(9, dtype=torch.int64))


def test_structures_of_one_formula_are_one_group() -> None:
    numbers = torch.tensor([8, 1, 1, 1, 8, 1, 6, 1, 1])
    clouds = Clouds(torch.randn(9, 3), torch.tensor([0, 3, 6, 9]), numbers)
    groups = formulas(clouds)
    assert groups[0] == groups[1] != groups[2]
    bare = Clouds(torch.randn(5, 3), torch.tensor([0, 2, 4, 5]))
    assert len(formulas(bare).unique()) == 2
