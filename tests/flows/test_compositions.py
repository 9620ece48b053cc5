"""Make-ups of structures: counted, told apart, drawn by frequency, stored."""

import pytest
import torch

from eqflow import rng
from eqflow.errors import UnknownElement, UsageError
from eqflow.flows import Compositions
from eqflow.geometry import Clouds, Segments


def molecules() -> Clouds:
    """Water, hydroxyl, water with its atoms in another order."""
    numbers = torch.tensor([8, 1, 1, 8, 1, 1, 8, 1])
    return Clouds(torch.zeros(8, 3), torch.tensor([0, 3, 5, 8]), numbers)


def bare(*sizes: int) -> Clouds:
    segments = Segments.of_lengths(torch.tensor(sizes))
    return Clouds(torch.zeros(segments.rows, 2), segments.ptr)


def test_make_ups_are_counted_whatever_the_order_of_atoms() -> None:
    found = Compositions.of(molecules(), (8, 6, 1))
    assert found.elements == (1, 6, 8)
    assert found.counts.tolist() == [[1, 0, 1], [2, 0, 1]]
    assert found.weights.tolist() == [1, 2]


def test_without_elements_sizes_are_counted() -> None:
    found = Compositions.of(bare(3, 2, 3, 3))
    assert found.elements == ()
    assert found.counts.tolist() == [[2], [3]]
    assert found.weights.tolist() == [1, 3]
    assert found.types(bare(2)) is None


def test_types_are_places_among_the_elements() -> None:
    found = Compositions.of(molecules(), (1, 6, 8)).types(molecules())
    assert found.tolist() == [2, 0, 0, 2, 0, 0, 2, 0]


@pytest.mark.parametrize(("number", "name"), [(2, "He"), (7, "N"), (92, "U")])
def test_an_unknown_element_is_named_with_its_structure(number: int, name: str) -> None:
    numbers = molecules().numbers.clone()
    numbers[4] = number
    batch = Clouds(torch.zeros(8, 3), molecules().ptr, numbers)
    known = Compositions.of(molecules(), (1, 6, 8))
    with pytest.raises(UnknownElement, match=rf"structure 1: found {name}, .*H, C, O"):
        known.types(batch)


def test_elements_are_asked_for_where_they_are_missing() -> None:
    known = Compositions.of(molecules(), (1, 8))
    with pytest.raises(UnknownElement, match="have no elements"):
        known.types(bare(2))


def test_draws_follow_the_frequencies() -> None:
    known = Compositions.of(molecules(), (1, 8))
    lengths, numbers = known.draw(3000, rng.generator(0, "test"))
    waters = int((lengths == 3).sum())
    assert abs(waters - 2000) < 4.5 * (3000 * 2 / 9) ** 0.5
    drawn = Clouds(torch.zeros(len(numbers), 3), Segments.of_lengths(lengths).ptr, numbers)
    again = Compositions.of(drawn, (1, 8))
    assert torch.equal(again.counts, known.counts)


def test_a_size_is_drawn_among_the_make_ups_that_have_it() -> None:
    counts = torch.tensor([[2, 0], [1, 1], [3, 0]])
    known = Compositions((1, 8), counts, torch.tensor([3, 1, 5]))
    lengths, numbers = known.draw(2000, rng.generator(0, "test"), [2, 3] * 1000)
    assert lengths.tolist() == [2, 3] * 1000
    segments = Segments.of_lengths(lengths)
    oxygens = segments.sum((numbers == 8).long())
    assert (oxygens[1::2] == 0).all()
    assert abs(int(oxygens[0::2].sum()) - 250) < 4.5 * (1000 * 3 / 16) ** 0.5


def test_a_structure_is_found_by_its_place_among_the_make_ups() -> None:
    for clouds, elements in ((molecules(), (1, 6, 8)), (bare(3, 2, 3, 5), ())):
        known = Compositions.of(clouds, elements)
        lengths, numbers = known.at(known.places(clouds))
        assert torch.equal(lengths, clouds.sizes)
        again = Clouds(torch.zeros(len(clouds.x), 3), clouds.ptr, numbers)
        assert torch.equal(known.places(again), known.places(clouds))
    with pytest.raises(UsageError, match="found 1 structures whose make-up is none of the 2"):
        Compositions.of(molecules(), (1, 8)).places(
            Clouds(torch.zeros(1, 3), torch.tensor([0, 1]), torch.tensor([8]))
        )


def test_make_ups_around_a_fragment_are_those_that_have_its_points() -> None:
    known = Compositions.of(molecules(), (1, 6, 8))
    pair = Clouds(torch.zeros(2, 3), torch.tensor([0, 2]), torch.tensor([1, 1]))
    assert known.containing(pair).counts.tolist() == [[2, 0, 1]]
    assert Compositions.of(bare(3, 2, 5)).containing(bare(3)).counts.tolist() == [[3], [5]]
    carbon = Clouds(torch.zeros(1, 3), torch.tensor([0, 1]), torch.tensor([6]))
    with pytest.raises(UsageError, match="found 1 fixed points"):
        known.containing(carbon)


def test_storing_keeps_everything() -> None:
    for known in (Compositions.of(molecules(), (1, 6, 8)), Compositions.of(bare(3, 2, 3))):
        again = Compositions.from_plain(known.to_plain())
        assert again.elements == known.elements
        assert torch.equal(again.counts, known.counts)
        assert torch.equal(again.weights, known.weights)
        assert again.counts.dtype is torch.int64
