"""Counts of multiplications that decide where an exact trace ends; and its time, by them."""

import pytest
import torch

from eqflow.flows import ContinuousFlow, exact_cost
from eqflow.flows.exact_cost import affordable_points, multiplications, seconds_of_trace
from eqflow.nn import EGNNField, JointEGNNField

FIELDS = [
    EGNNField(width=8, layers=1),
    EGNNField(width=8, layers=4),
    EGNNField(width=8, layers=3, cutoff=2.0),
    JointEGNNField(3, width=8, layers=3),
]


@pytest.mark.parametrize("field", FIELDS)
def test_counts_rise_with_points_and_the_limit_is_where_they_pass_the_budget(field) -> None:
    counts = [multiplications(field, n, 3) for n in range(1, 60)]
    assert counts == sorted(set(counts))
    for budget in (10**5, 10**6, 10**7):
        points = affordable_points(field, 3, budget)
        assert points == 1 or multiplications(field, points, 3) <= budget
        assert multiplications(field, points + 1, 3) > budget


def test_features_and_tangents_cost_more() -> None:
    alone, joint = EGNNField(width=8, layers=4), JointEGNNField(3, width=8, layers=4)
    cut = EGNNField(width=8, layers=4, cutoff=2.0)
    assert multiplications(joint, 20, 3) == pytest.approx(
        2 * multiplications(alone, 20, 3), rel=0.1
    )
    assert multiplications(cut, 20, 3) > 2 * multiplications(alone, 20, 3)


@pytest.mark.parametrize("field", [EGNNField(2, width=8, layers=2), JointEGNNField(2, 1, width=8)])
def test_few_points_are_timed_and_more_are_counted(field, monkeypatch) -> None:
    timed = []
    own = exact_cost._timed
    monkeypatch.setattr(exact_cost, "_timed", lambda flow, n, d: timed.append(n) or own(flow, n, d))
    assert 0 < seconds_of_trace(ContinuousFlow(field), 4, 3) < 60
    monkeypatch.setattr(exact_cost, "_timed", lambda flow, n, d: timed.append(n) or 0.5)
    found = seconds_of_trace(ContinuousFlow(field), 200, 3)
    few = exact_cost.TIMED_POINTS
    ratio = multiplications(field, 200, 3) / multiplications(field, few, 3)
    assert found == pytest.approx(0.5 * ratio)
    assert timed == [4, few]


def test_nothing_of_it_is_drawn_from_the_generators_of_others() -> None:
    flow = ContinuousFlow(EGNNField(width=8, layers=2))
    before = torch.random.get_rng_state()
    seconds_of_trace(flow, 5, 3)
    assert torch.equal(before, torch.random.get_rng_state())
