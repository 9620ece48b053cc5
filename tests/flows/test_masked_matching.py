"""The objective of masked categories: a plain formula, and where it is zero."""

import math

import pytest
import torch
from masked_fields import Told, independent
from torch.nn.functional import one_hot

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.flows import (
    Batch,
    ContinuousFlow,
    EquivariantOT,
    Independent,
    MaskedMatching,
    Masking,
    masked_matching,
)
from eqflow.flows.objectives import stratified_times
from eqflow.geometry import Segments, centred
from eqflow.nn import EGNNField, MaskedEGNNField

SIZES = Segments.of_lengths(torch.tensor([3, 1, 4]))
KINDS = torch.tensor([0, 1, 1, 0, 1, 1, 0, 0])
CERTAIN = 1e4 * one_hot(KINDS, 2).double()


def batch() -> Batch:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(SIZES.rows, 3, dtype=torch.float64, generator=source)
    return Batch(centred(x, SIZES), SIZES, kinds=KINDS)


def test_it_is_the_plain_formula() -> None:
    field, given = MaskedEGNNField(2, width=8, layers=1).double().requires_grad_(False), batch()
    found = MaskedMatching(EquivariantOT(), 0.3)(ContinuousFlow(field), given, rng.generator(5))

    source = rng.generator(5)
    z = EquivariantOT()(given.x, SIZES, None, source)
    t = stratified_times(3, given.x, source)
    visible = Masking(2).masked(KINDS, SIZES.expand(t), source)
    positions, logs = [], []
    for cloud, (start, end) in enumerate([(0, 3), (3, 4), (4, 8)]):
        x, noise, s = given.x[start:end], z[start:end], t[cloud]
        context = one_hot(visible[start:end], 3).double()
        edges = Edges.complete(torch.tensor([0, end - start]))
        v, logits = field.velocity_and_logits(s, (1 - s) * x + s * noise, edges, context)
        freedom = max(3 * (end - start - 1), 1)
        positions.append(float((v - noise + x).square().sum()) / freedom)
        for row in range(end - start):
            if visible[start + row] == 2:
                logs.append(-float(logits[row].log_softmax(0)[KINDS[start + row]]))
    assert 0 < len(logs) < 8
    assert found.terms["loss_positions"] == pytest.approx(sum(positions) / 3)
    assert found.terms["loss_features"] == pytest.approx(sum(logs) / len(logs))
    expected = sum(positions) / 3 + 0.3 * sum(logs) / len(logs)
    assert float(found.value) == pytest.approx(expected)


def test_a_certain_and_right_posterior_costs_nothing_and_a_uniform_one_log_k() -> None:
    for logits, cost in ((CERTAIN, 0.0), (torch.zeros(8, 2).double(), math.log(2))):
        flow = ContinuousFlow(Told(2, lambda visible, clouds, logits=logits: logits))
        loss = MaskedMatching(Independent())(flow, batch(), rng.generator(0))
        assert loss.terms["loss_features"] == pytest.approx(cost, abs=1e-12)


def test_points_that_are_seen_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """At t = 0 nothing is masked, and the gradient is finite all the same."""
    monkeypatch.setattr(
        masked_matching, "stratified_times", lambda count, like, source: like.new_zeros(count)
    )
    field = MaskedEGNNField(2, width=8, layers=1).double()
    loss = MaskedMatching(Independent())(ContinuousFlow(field), batch(), rng.generator(0))
    assert loss.terms["loss_features"] == 0
    loss.value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in field.parameters())


def test_a_point_alone_has_nowhere_to_go() -> None:
    flow = ContinuousFlow(Told(2, independent(torch.tensor([0.5, 0.5]).double())))
    alone = Batch(torch.zeros(2, 3).double(), Segments(torch.tensor([0, 1, 2])), kinds=KINDS[:2])
    loss = MaskedMatching(Independent(), 0.0)(flow, alone, rng.generator(0))
    assert loss.terms["loss"] == 0


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_weight_out_of_range_is_named(weight: float) -> None:
    with pytest.raises(UsageError, match=r"objective\.feature_weight"):
        MaskedMatching(Independent(), weight)


def test_what_it_cannot_train_is_named() -> None:
    plain = EGNNField(width=8, layers=1).double()
    with pytest.raises(UsageError, match="found EGNNField"):
        MaskedMatching(Independent())(ContinuousFlow(plain), batch(), rng.generator(0))
    field = MaskedEGNNField(2, width=8, layers=1).double()
    with pytest.raises(UsageError, match="without categories"):
        MaskedMatching(Independent())(
            ContinuousFlow(field), batch()._replace(kinds=None), rng.generator(0)
        )
