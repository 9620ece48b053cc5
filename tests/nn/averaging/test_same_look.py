import torch
from torch import Tensor

from eqflow.geometry import Segments
from eqflow.nn.averaging.same_look import matching_points


def shuffled(
    lengths: list[int], owner: list[int], noise: float = 0.0
) -> tuple[Tensor, Tensor, Segments, Segments, Tensor, Tensor]:
    """Clouds at random, copies of them in other orders, and what brings each copy back."""
    source = torch.Generator().manual_seed(0)
    clouds = Segments.of_lengths(torch.tensor(lengths))
    first = torch.randn(clouds.rows, 3, generator=source, dtype=torch.float64)
    places, starts = [], clouds.ptr.tolist()
    for cloud in owner:
        places.append(starts[cloud] + torch.randperm(lengths[cloud], generator=source))
    expected = torch.cat(places)
    rows = Segments.of_lengths(torch.tensor([lengths[cloud] for cloud in owner]))
    posed = first[expected] + noise * torch.randn(expected.numel(), 3, generator=source).double()
    return posed, first, rows, clouds, torch.tensor(owner), expected


def test_points_are_found_in_their_other_order_whatever_the_sizes() -> None:
    for lengths, owner in (([4, 4], [0, 0, 1]), ([3, 0, 6, 1], [0, 0, 1, 2, 2, 2, 3])):
        posed, first, rows, clouds, of, expected = shuffled(lengths, owner, noise=1e-14)
        match = matching_points(posed, first, rows, clouds, of, None)
        assert match.tolist() == expected.tolist()


def test_points_that_coincide_are_told_apart_by_their_types() -> None:
    first = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.5, 0.0]]).double()
    types = torch.tensor([7, 3, 3])
    rows, clouds = Segments(torch.tensor([0, 3, 6])), Segments(torch.tensor([0, 3]))
    match = matching_points(first.repeat(2, 1), first, rows, clouds, torch.tensor([0, 0]), types)
    assert match.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_point_takes_no_place_of_another_type() -> None:
    first = torch.tensor([[1.0], [-1.0]]).double()
    rows = clouds = Segments(torch.tensor([0, 2]))
    types, of = torch.tensor([0, 1]), torch.tensor([0])
    assert matching_points(-first, first, rows, clouds, of, types) is None
    assert matching_points(-first, first, rows, clouds, of, None).tolist() == [1, 0]


def test_points_that_are_off_by_more_than_rounding_have_no_match() -> None:
    posed, first, rows, clouds, of, _ = shuffled([5, 3], [0, 1, 1], noise=1e-9)
    assert matching_points(posed, first, rows, clouds, of, None) is None
    single = matching_points(posed.float(), first.float(), rows, clouds, of, None)
    assert single is not None


def test_no_points_match_no_points() -> None:
    nothing = torch.zeros(0, 3)
    rows = Segments(torch.tensor([0, 0, 0]))
    match = matching_points(nothing, nothing, rows, rows, torch.tensor([0, 1]), None)
    assert match.shape == (0,)
