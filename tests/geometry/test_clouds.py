"""Clouds keep points, elements and sources together through every way of picking and joining."""

import pytest
import torch

from eqflow.errors import EmptyData, ShapeError
from eqflow.geometry import Clouds
from eqflow.testing import clouds

SHAPES = dict(clouds())


def named(*names):
    batch = Clouds.join([SHAPES[name] for name in names])
    return Clouds(batch.x, batch.ptr, batch.numbers, tuple(names))


def same(one, other):
    return (
        torch.equal(one.x, other.x)
        and torch.equal(one.ptr, other.ptr)
        and torch.equal(one.numbers, other.numbers)
        and one.source == other.source
    )


BATCH = named("water", "one_point", "methane", "co2")


@pytest.mark.parametrize("which", [0, 2, -1])
def test_a_number_picks_one_cloud(which):
    names = ("water", "one_point", "methane", "co2")
    assert same(BATCH[which], named(names[which]))


@pytest.mark.parametrize("which", [[2, 0], (2, 0), torch.tensor([2, 0])], ids=type)
def test_a_sequence_picks_clouds_in_its_order(which):
    assert same(BATCH[which], named("methane", "water"))


def test_a_slice_and_a_mask_pick_what_they_pick_from_a_list():
    assert same(BATCH[1:3], named("one_point", "methane"))
    assert same(BATCH[torch.tensor([True, False, False, True])], named("water", "co2"))
    assert len(BATCH[:0]) == 0


def test_a_cloud_that_is_not_there_is_an_index_error():
    with pytest.raises(IndexError):
        BATCH[4]


def test_iterating_and_joining_again_gives_the_batch_back():
    assert same(Clouds.join(list(BATCH)), BATCH)


def test_lengths_sizes_and_features_describe_the_batch():
    assert len(BATCH) == 4
    assert BATCH.sizes.tolist() == [3, 1, 5, 3]
    assert BATCH.dimension == 3
    assert BATCH.h[:3].tolist() == [[8.0], [1.0], [1.0]]
    bare = Clouds(BATCH.x.float(), BATCH.ptr)
    assert bare.h.shape == (12, 1)
    assert bare.h.dtype == torch.float32
    assert not bare.h.any()


def test_a_dense_stack_becomes_clouds_of_one_size():
    x = torch.arange(12.0).reshape(2, 3, 2)
    batch = Clouds.from_dense(x, torch.tensor([1, 6, 8]))
    assert torch.equal(batch[1].x, x[1])
    assert batch.numbers.tolist() == [1, 6, 8, 1, 6, 8]
    with pytest.raises(ShapeError, match="from_dense"):
        Clouds.from_dense(x[0])


def test_another_type_or_other_positions_change_only_the_positions():
    single = BATCH.to(torch.float32)
    assert single.x.dtype == torch.float32
    assert torch.equal(single.numbers, BATCH.numbers)
    moved = BATCH.with_positions(BATCH.x + 1)
    assert same(moved.with_positions(BATCH.x), BATCH)


def test_positions_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="ends at"):
        BATCH.with_positions(BATCH.x[:-1])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"x": torch.zeros(12, 3, dtype=torch.int64)}, "Clouds.x"),
        ({"x": torch.zeros(12)}, "Clouds.x"),
        ({"x": torch.zeros(11, 3)}, "Clouds.ptr"),
        ({"ptr": torch.tensor([0, 5, 3, 12])}, "ptr"),
        ({"numbers": torch.ones(11, dtype=torch.int64)}, "Clouds.numbers"),
        ({"numbers": torch.ones(12)}, "Clouds.numbers"),
        ({"charges": torch.ones(11, dtype=torch.int64)}, "Clouds.charges"),
        ({"charges": torch.ones(12)}, "Clouds.charges"),
        ({"source": ("a",)}, "Clouds.source"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_by_name(change, where):
    parts = {"x": BATCH.x, "ptr": BATCH.ptr, "numbers": BATCH.numbers, "source": BATCH.source}
    with pytest.raises(ShapeError, match=where):
        Clouds(**(parts | change))


def test_joining_needs_something_of_one_kind():
    with pytest.raises(EmptyData):
        Clouds.join([])
    with pytest.raises(ShapeError, match="dimensions"):
        Clouds.join([SHAPES["water"], dict(clouds(dimension=2))["water"]])
    with pytest.raises(ShapeError, match="elements"):
        Clouds.join([SHAPES["water"], Clouds(SHAPES["water"].x, SHAPES["water"].ptr)])


def test_joining_keeps_the_sources_that_are_known():
    joined = Clouds.join([SHAPES["water"], named("co2")])
    assert joined.source == ("", "co2")


CHARGES = torch.tensor([0, 0, 0, -1, 1, 0, 0, 0, 0, -2, 0, 1])
CHARGED = Clouds(BATCH.x, BATCH.ptr, BATCH.numbers, BATCH.source, CHARGES)


def test_charges_go_with_their_points_through_picking_moving_and_joining():
    assert CHARGED[[3, 1]].charges.tolist() == [-2, 0, 1, -1]
    assert CHARGED[2].charges.tolist() == [1, 0, 0, 0, 0]
    assert torch.equal(Clouds.join(list(CHARGED)).charges, CHARGES)
    assert torch.equal(CHARGED.with_positions(BATCH.x + 1).charges, CHARGES)
    assert torch.equal(CHARGED.to(torch.float32).charges, CHARGES)
    assert "with elements and charges" in repr(CHARGED)


def test_clouds_without_charges_are_neutral_beside_those_with_them():
    assert BATCH.charges is None
    assert Clouds.join([BATCH, BATCH]).charges is None
    assert Clouds.join([BATCH, CHARGED]).charges.tolist() == [0] * 12 + CHARGES.tolist()


def test_total_charges_add_up_cloud_by_cloud():
    assert CHARGED.total_charges.tolist() == [0, -1, 1, -1]
    assert BATCH.total_charges.tolist() == [0, 0, 0, 0]
    assert [cloud.total_charges.item() for cloud in CHARGED] == [0, -1, 1, -1]


def test_clouds_are_taken_backwards_and_none_at_all():
    batch = Clouds(torch.arange(5.0).unsqueeze(1), torch.tensor([0, 2, 5]))
    assert batch[::-1].x.squeeze(1).tolist() == [2, 3, 4, 0, 1]
    assert len(batch[[]]) == 0
    assert len(batch[torch.tensor([False, True])]) == 1
