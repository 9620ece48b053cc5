"""Structures that are solved together: all of them, in order, and never too many."""

from __future__ import annotations

import pytest
import torch

from eqflow.flows.groups import GROUP, GROUP_PAIRS, groups
from eqflow.geometry import Clouds, Segments


def of_sizes(sizes: list[int]) -> Clouds:
    """Structures of these sizes, each point with its own number for a position."""
    ptr = Segments.of_lengths(torch.tensor(sizes, dtype=torch.int64)).ptr
    return Clouds(torch.arange(float(sum(sizes))).unsqueeze(1), ptr)


@pytest.mark.parametrize(
    "sizes",
    [[3], [1] * GROUP, [2] * (2 * GROUP + 1), [150, 3, 150, 150, 2], [300, 1, 300], [20] * 300],
)
def test_groups_are_all_structures_in_order_and_as_large_as_they_may_be(sizes: list[int]) -> None:
    def pairs(clouds: Clouds) -> int:
        return int((clouds.sizes * (clouds.sizes - 1)).sum())

    found = groups(of_sizes(sizes))
    assert Clouds.join([group for _, group in found]).x.equal(of_sizes(sizes).x)
    assert [size for _, group in found for size in group.sizes.tolist()] == sizes
    assert [start for start, _ in found] == [
        sum(len(group) for _, group in found[:place]) for place in range(len(found))
    ]
    for place, (start, group) in enumerate(found):
        assert 1 <= len(group) <= GROUP
        assert pairs(group) <= GROUP_PAIRS or len(group) == 1
        if place + 1 < len(found):
            longer = of_sizes(sizes)[start : start + len(group) + 1]
            assert len(longer) > GROUP or pairs(longer) > GROUP_PAIRS
