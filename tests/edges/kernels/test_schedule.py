import gc

import pytest
import torch
from loops import GRAPHS

from eqflow.edges import Edges
from eqflow.edges.kernels import schedule as module
from eqflow.edges.kernels.schedule import Schedule, ends_of, schedule_of


def star(leaves: int) -> Edges:
    """From every leaf to node 0, and from leaf 1 to leaf 2."""
    sender = torch.cat([torch.arange(1, leaves + 1), torch.tensor([1])])
    receiver = torch.cat([torch.zeros(leaves, dtype=torch.int64), torch.tensor([2])])
    return Edges.from_index(torch.stack([sender, receiver]), leaves + 1)


def edges_by_slot(schedule: Schedule) -> dict[int, list[int]]:
    """Places of the edges that each slot adds up."""
    return {
        slot: list(range(begin, begin + length))
        for slot, begin, length in zip(
            schedule.slot.tolist(), schedule.begin.tolist(), schedule.length.tolist(), strict=True
        )
    }


def edges_by_row(schedule: Schedule) -> list[list[int]]:
    """Places of the edges of each node, its chunks added up in the order of their slots."""
    by_slot = edges_by_slot(schedule)
    rows = [by_slot.pop(row, []) for row in range(schedule.nodes)]
    if schedule.split is not None:
        slots, ptr = schedule.split.slots, schedule.split.slots.ptr.tolist()
        for k, row in enumerate(schedule.split.row.tolist()):
            assert rows[row] == []
            for slot in range(ptr[k], ptr[k + 1]):
                rows[row] += by_slot.pop(schedule.nodes + slot)
        assert schedule.slots == schedule.nodes + slots.rows
    assert not by_slot
    return rows


@pytest.mark.parametrize("end", ["receiver", "sender"])
@pytest.mark.parametrize("edges", [*(g.edges() for g in GRAPHS.values()), star(700)])
def test_every_edge_is_added_up_once_at_its_own_node_and_in_order(edges: Edges, end) -> None:
    schedule = schedule_of(edges, end)
    rows = edges.incoming if end == "receiver" else edges.outgoing
    ptr = rows.ptr.tolist()
    expected = [list(range(ptr[i], ptr[i + 1])) for i in range(edges.nodes)]
    assert edges_by_row(schedule) == expected


@pytest.mark.parametrize("end", ["receiver", "sender"])
def test_each_place_names_its_edge_and_the_node_at_the_other_end(end) -> None:
    edges = GRAPHS["unsorted clouds"].edges()
    schedule = schedule_of(edges, end)
    edge = schedule.edge.long()
    near, far = (
        (edges.receiver, edges.sender) if end == "receiver" else (edges.sender, edges.receiver)
    )
    assert torch.equal(schedule.other.long(), far[edge])
    assert (near[edge].diff() >= 0).all()


def test_no_chunk_is_longer_than_a_few_times_the_mean() -> None:
    schedule = schedule_of(star(1000), "receiver")
    assert int(schedule.length.max()) <= module.LONGEST_LIMIT
    assert schedule_of(star(10_000), "receiver").split.slots.count == 1
    assert int(schedule_of(star(10_000), "receiver").length.max()) == module.LONGEST_LIMIT


def test_long_chunks_come_first() -> None:
    length = schedule_of(star(700), "receiver").length
    assert (length.diff() <= 0).all()


def test_molecules_are_not_split() -> None:
    edges = Edges.complete(torch.tensor([0, 29, 32, 50]))
    assert schedule_of(edges, "receiver").split is None


def test_a_schedule_is_made_once_a_graph_and_goes_with_it() -> None:
    edges = GRAPHS["ragged"].edges()
    assert schedule_of(edges, "sender") is schedule_of(edges, "sender")
    assert ends_of(edges)[0] is ends_of(edges)[0]
    before = len(module._schedules)
    del edges
    gc.collect()
    assert len(module._schedules) < before
