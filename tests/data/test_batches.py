"""Batches by size: complete, reproducible, little padding, bounded pairs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eqflow import rng
from eqflow.data import SizeBatches
from eqflow.errors import EmptyData, UsageError

# About the sizes of QM9: mean 18, standard deviation 3, 3 to 29.
QM9_LIKE = (
    (18 + 3 * torch.randn(20_000, generator=rng.generator(0, "sizes"))).round().long().clamp(3, 29)
)


def padding(sizes, batches):
    longest = torch.tensor([float(sizes[batch].max()) for batch in batches])
    padded = (longest * torch.tensor([float(len(batch)) for batch in batches])).sum()
    return 1 - float(sizes.sum() / padded)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=200),
    st.integers(1, 70),
    st.one_of(st.none(), st.integers(1, 3000)),
    st.integers(0, 9),
)
def test_every_index_occurs_once_an_epoch_within_the_bounds(sizes, batch_size, max_pairs, k):
    sizes = torch.tensor(sizes)
    batches = SizeBatches(sizes, batch_size, seed=0, max_pairs=max_pairs)
    epoch = batches.epoch(k)
    assert len(epoch) == len(batches)
    assert torch.cat(epoch).sort().values.tolist() == list(range(len(sizes)))
    for batch in epoch:
        longest = int(sizes[batch].max())
        assert 1 <= len(batch) <= batch_size
        if max_pairs is not None and len(batch) > 1:
            assert len(batch) * longest * (longest - 1) <= max_pairs


def test_an_epoch_is_a_function_of_seed_and_number():
    def drawn(seed, k):
        return [batch.tolist() for batch in SizeBatches(QM9_LIKE[:500], 16, seed).epoch(k)]

    assert drawn(0, 3) == drawn(0, 3)
    assert drawn(0, 3) != drawn(0, 4)
    assert drawn(0, 3) != drawn(1, 3)


def test_the_batch_of_a_step_needs_only_the_step():
    batches = SizeBatches(QM9_LIKE[:500], 16, 0, max_pairs=4000)
    walked = [batch.tolist() for k in range(3) for batch in batches.epoch(k)]
    for step in (len(walked) - 1, 0, 40, 17):
        fresh = SizeBatches(QM9_LIKE[:500], 16, 0, max_pairs=4000)
        assert fresh.batch_at(step).tolist() == walked[step]


def test_padding_is_several_times_smaller_than_that_of_random_batches():
    order = rng.permutation(len(QM9_LIKE), rng.generator(0, "random"))
    at_random = padding(QM9_LIKE, order.split(64))
    by_size = padding(QM9_LIKE, SizeBatches(QM9_LIKE, 64, 0).epoch(0))
    assert by_size < at_random / 10


def test_batches_are_even_and_mix_structures_anew():
    batches = SizeBatches(QM9_LIKE, 64, 0)
    lengths = {len(batch) for batch in batches.epoch(0)}
    assert lengths <= {63, 64}
    companions = [
        next(set(b.tolist()) for b in batches.epoch(k) if (b == 7).any()) for k in range(4)
    ]
    assert len(set.intersection(*companions)) < 8


def test_the_order_of_batches_is_not_that_of_sizes():
    means = torch.stack(
        [QM9_LIKE[b].double().mean() for b in SizeBatches(QM9_LIKE, 64, 0).epoch(0)]
    )
    neighbours = torch.corrcoef(torch.stack([means[1:], means[:-1]]))[0, 1]
    assert abs(float(neighbours)) < 0.2


def test_nothing_to_batch_and_senseless_sizes_are_refused():
    with pytest.raises(EmptyData):
        SizeBatches(torch.zeros(0, dtype=torch.int64), 4, 0)
    for batch_size, max_pairs in ((0, None), (4, 0)):
        with pytest.raises(UsageError):
            SizeBatches(torch.ones(3, dtype=torch.int64), batch_size, 0, max_pairs=max_pairs)
