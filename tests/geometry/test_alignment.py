import itertools

import pytest
import torch
from torch import Tensor

from eqflow import rng
from eqflow.geometry import (
    Segments,
    align,
    best_permutation,
    centred,
    random_orthogonal,
    rotate,
)
from eqflow.geometry.alignment import _assigned, _enumerated

SIZES = [3, 1, 6, 0, 4, 11]
BATCHES = {
    "ragged": SIZES,
    "triples": [3] * 10,
    "fours": [4] * 10,
    "sevens": [7] * 5,
    "points": [1] * 4,
    "empty clouds": [0, 0],
    "no clouds": [],
}
every_batch = pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)


def pair(sizes: list[int], dimension: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Segments]:
    clouds = Segments.of_lengths(torch.tensor(sizes, dtype=torch.int64))
    source = rng.generator(seed, "test alignment")
    like = torch.zeros((), dtype=torch.float64)
    x, z = (rng.normal((clouds.rows, dimension), like, source) for _ in range(2))
    return centred(x, clouds), centred(z, clouds), clouds


def kinds(clouds: Segments) -> Tensor:
    """Types of unequal counts: in each cloud one of type 8, and as many of 6 as of 1."""
    return torch.tensor([8, 6, 1])[(clouds.place > 0) + (clouds.place % 2 * (clouds.place > 0))]


def ends(clouds: Segments) -> list[tuple[int, int]]:
    return list(itertools.pairwise(clouds.ptr.tolist()))


def cost(x: Tensor, z: Tensor, clouds: Segments) -> Tensor:
    return clouds.sum((x - z).square().sum(1))


@every_batch
@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@pytest.mark.parametrize("typed", [False, True])
def test_alignment_never_increases_the_squared_distance_of_any_cloud(
    sizes: list[int], dimension: int, typed: bool
) -> None:
    x, z, clouds = pair(sizes, dimension)
    types = kinds(clouds) if typed else None
    before = cost(x, z, clouds)
    for iterations in (0, 1, 2, 5):
        after = cost(x, align(x, z, clouds, types, iterations), clouds)
        assert (after <= before + 1e-12).all()
        before = after


@every_batch
def test_alignment_is_a_permutation_and_an_orthogonal_map(sizes: list[int]) -> None:
    x, z, clouds = pair(sizes)
    aligned = align(x, z, clouds)
    for start, end in ends(clouds):
        norms = aligned[start:end].norm(dim=1).sort().values
        torch.testing.assert_close(norms, z[start:end].norm(dim=1).sort().values)
        gram, original = (torch.cdist(v[start:end], v[start:end]) for v in (aligned, z))
        torch.testing.assert_close(
            gram.flatten().sort().values, original.flatten().sort().values, rtol=1e-6, atol=1e-6
        )


@every_batch
def test_points_are_only_exchanged_with_points_of_their_type_and_cloud(sizes: list[int]) -> None:
    x, z, clouds = pair(sizes)
    types = kinds(clouds)
    chosen = best_permutation(x, z, clouds, types)
    assert sorted(chosen.tolist()) == list(range(clouds.rows))
    assert torch.equal(types[chosen], types)
    assert torch.equal(clouds.ids[chosen], clouds.ids)


def test_types_hold_where_exchanging_them_would_gain_a_great_deal() -> None:
    x = torch.tensor([[100.0, 0.0], [-100.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    z = x[torch.tensor([1, 0, 3, 2])]
    ptr = torch.tensor([0, 4])
    assert best_permutation(x, z, Segments(ptr)).tolist() == [1, 0, 3, 2]
    types = torch.tensor([6, 8, 1, 1])
    assert best_permutation(x, z, Segments(ptr), types).tolist() == [0, 1, 3, 2]
    five = Segments(torch.tensor([0, 5]))  # solved by assignment
    more = torch.cat([x, torch.zeros(1, 2)]), torch.cat([z, torch.zeros(1, 2)])
    types = torch.tensor([6, 8, 1, 1, 1])
    assert best_permutation(*more, five, types).tolist()[:2] == [0, 1]


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("sizes", [[3] * 8, [4] * 8, [2, 5, 6, 3]])
def test_a_permuted_and_slightly_turned_cloud_is_brought_back_exactly(sizes, typed: bool) -> None:
    x, _, clouds = pair(sizes)
    types = kinds(clouds) if typed else None
    source = rng.generator(1, "test alignment")
    alike = torch.zeros(clouds.rows) if types is None else types
    order = torch.cat([_shuffled_within(alike, start, end, source) for start, end in ends(clouds)])
    angle = 0.05 * random_orthogonal(len(sizes), 3, x, source)
    turn = torch.linalg.matrix_exp(angle - angle.transpose(1, 2))
    z = rotate(x[order], turn, clouds)
    assert float(cost(x, z, clouds).sum()) > 1e-2
    assert float(cost(x, align(x, z, clouds, types), clouds).max()) < 1e-24


def _shuffled_within(types: Tensor, start: int, end: int, source: torch.Generator) -> Tensor:
    order = torch.arange(start, end)
    for kind in types[start:end].unique():
        rows = (types[start:end] == kind).nonzero()[:, 0]
        order[rows] = start + rows[rng.permutation(len(rows), source)]
    return order


def test_a_reflection_is_undone_too() -> None:
    x, _, clouds = pair([5])
    z = x * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    # With each point a type of its own the permutation is known, and one rotation is enough.
    aligned = align(x, z, clouds, types=torch.arange(5), iterations=1)
    assert float(cost(x, aligned, clouds)) < 1e-24


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("typed", [False, True])
def test_trying_all_permutations_and_assignment_find_the_same(size: int, typed: bool) -> None:
    x, z, clouds = pair([size] * 50)
    gain = clouds.to_dense(x) @ clouds.to_dense(z).transpose(1, 2)
    if typed:
        kind = clouds.to_dense(kinds(clouds))
        gain = gain.masked_fill(kind.unsqueeze(2) != kind.unsqueeze(1), -1e3)
    assert torch.equal(_enumerated(gain), _assigned(gain, clouds))


def test_a_permutation_is_the_best_of_all() -> None:
    x, z, clouds = pair([5])
    every = torch.tensor(list(itertools.permutations(range(5))))
    costs = (x - z[every]).square().sum((1, 2))
    assert torch.equal(best_permutation(x, z, clouds), every[costs.argmin()])


@pytest.mark.parametrize("typed", [False, True])
def test_a_cloud_is_aligned_the_same_alone_as_in_a_batch(typed: bool) -> None:
    x, z, clouds = pair(SIZES)
    types = kinds(clouds) if typed else None
    together = align(x, z, clouds, types)
    for start, end in ends(clouds):
        alone = align(
            x[start:end],
            z[start:end],
            torch.tensor([0, end - start]),
            None if types is None else types[start:end],
        )
        torch.testing.assert_close(together[start:end], alone, rtol=1e-12, atol=1e-12)


def test_alignment_does_not_depend_on_the_pose_or_order_of_an_aligned_cloud() -> None:
    x, z, clouds = pair([4] * 20)
    once = align(x, z, clouds, iterations=50)
    again = align(x, once, clouds)
    torch.testing.assert_close(cost(x, again, clouds), cost(x, once, clouds))


def test_single_precision_stays_single() -> None:
    x, z, clouds = pair(SIZES)
    assert align(x.float(), z.float(), clouds).dtype == torch.float32
