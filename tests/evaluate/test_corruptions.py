"""Corruptions change what they say and no more; comparisons of scores are what counting gives."""

import math

import pytest
import torch

from eqflow import rng
from eqflow.errors import ShapeError
from eqflow.evaluate.corruptions import (
    CORRUPTIONS,
    auroc,
    compared,
    mirrored,
    out_of_distribution,
    scaled,
    with_atom_displaced,
    with_atoms_swapped,
    with_element_exchanged,
    with_noise,
)
from eqflow.evaluate.distances import pair_distances
from eqflow.geometry import Clouds, Segments

WATERS = Clouds.join(
    [
        Clouds(
            torch.tensor([[0.0, 0, 0.1], [0, 0.8, -0.5], [0, -0.8, -0.5]]).double() + k,
            torch.tensor([0, 3]),
            torch.tensor([8, 1, 1]),
        )
        for k in range(40)
    ]
)
FLUORINE = Clouds(torch.eye(3)[:2].double(), torch.tensor([0, 2]), torch.tensor([9, 9]))
MIXED = Clouds.join([WATERS[:3], FLUORINE])


def source(seed: int = 0) -> torch.Generator:
    return rng.generator(seed, "corruption")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_its_source_and_leaves_the_original(name) -> None:
    before = WATERS.x.clone(), WATERS.numbers.clone()
    one, other = (CORRUPTIONS[name](WATERS, source(3)) for _ in range(2))
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.numbers, other.numbers)
    assert torch.equal(WATERS.x, before[0])
    assert torch.equal(WATERS.numbers, before[1])
    assert one.ptr.tolist() == WATERS.ptr.tolist()


def test_noise_has_the_deviation_it_says() -> None:
    moved = with_noise(WATERS, source(), sd=0.2).x - WATERS.x
    assert float(moved.std()) == pytest.approx(0.2, rel=5 / math.sqrt(2 * moved.numel()))


def test_one_atom_of_each_structure_is_displaced_by_the_distance() -> None:
    moved = (with_atom_displaced(WATERS, source(), distance=0.3).x - WATERS.x).norm(dim=1)
    by_structure = moved.reshape(-1, 3)
    assert ((by_structure > 0).sum(1) == 1).all()
    torch.testing.assert_close(by_structure.sum(1), torch.full((40,), 0.3).double())
    assert (by_structure > 0).any(0).all()


def test_one_atom_gets_another_element_that_occurs() -> None:
    found = with_element_exchanged(MIXED, source())
    changed = found.numbers != MIXED.numbers
    assert MIXED.segments.sum(changed.double()).tolist() == [1, 1, 1, 1]
    assert set(found.numbers.tolist()) <= {1, 8, 9}
    assert torch.equal(found.x, MIXED.x)


def test_a_charge_goes_with_its_element() -> None:
    charges = torch.zeros(120, dtype=torch.int64)
    charges[0::3] = -1
    ions = Clouds(WATERS.x, WATERS.ptr, WATERS.numbers, charges=charges)
    found = with_element_exchanged(ions, source())
    pairs = set(zip(found.numbers.tolist(), found.charges.tolist(), strict=True))
    assert pairs == {(8, -1), (1, 0)}


def test_two_atoms_of_different_elements_change_places() -> None:
    found = with_atoms_swapped(MIXED, source())
    moved = (found.x != MIXED.x).any(1)
    assert MIXED.segments.sum(moved.double()).tolist() == [2, 2, 2, 0]
    for k in range(3):
        rows = slice(3 * k, 3 * k + 3)
        assert moved[3 * k]  # the oxygen is one of them
        assert found.x[rows].sort(0).values.equal(MIXED.x[rows].sort(0).values)
    assert torch.equal(found.numbers, MIXED.numbers)


def test_structures_without_other_elements_stay_as_they_are() -> None:
    bare = Clouds(WATERS.x, WATERS.ptr)
    for corrupt in (with_atoms_swapped, with_element_exchanged):
        assert corrupt(bare, source()).x.equal(bare.x)
        assert corrupt(FLUORINE, source()).numbers.equal(FLUORINE.numbers)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_scaling_scales_every_distance_and_keeps_the_centre(factor) -> None:
    found = scaled(WATERS, source(), factor=factor)
    torch.testing.assert_close(pair_distances(found), factor * pair_distances(WATERS))
    segments: Segments = WATERS.segments
    torch.testing.assert_close(segments.mean(found.x), segments.mean(WATERS.x))


def test_a_mirror_keeps_every_distance_and_is_its_own_inverse() -> None:
    noisy = with_noise(WATERS, source(), sd=0.1)
    found = mirrored(noisy, source())
    torch.testing.assert_close(pair_distances(found), pair_distances(noisy))
    assert torch.equal(mirrored(found, source()).x, noisy.x)


def bonds_like_water(clouds: Clouds) -> torch.Tensor:
    """A score that knows what O–H is: of distances from the first atom, and of the elements."""
    x = clouds.x.reshape(-1, 3, 3)
    lengths = (x[:, 1:] - x[:, :1]).norm(dim=2)
    is_water = (clouds.numbers.reshape(-1, 3) == torch.tensor([8, 1, 1])).all(1)
    score = -100 * (lengths - 1).square().sum(1)
    return torch.where(is_water, score, torch.full_like(score, -math.inf))


def test_a_score_that_knows_is_seen_to_know_and_the_control_is_even() -> None:
    real = with_noise(WATERS, source(1), sd=0.02)
    found = out_of_distribution(bonds_like_water, real, seed=1)
    control = found["mirrored"]
    assert (control.difference.value, control.lower.value) == pytest.approx((0, 0.5), abs=0.3)
    assert control.difference.value == pytest.approx(0, abs=1e-9)
    for name in ("noise of 0.1 Å", "two atoms swapped", "one element exchanged"):
        assert found[name].lower.value > 0.9, name
        assert found[name].auroc.value > 0.9, name
    exchanged = found["one element exchanged"]
    assert (exchanged.lower.value, exchanged.auroc.value) == (1, 1)
    assert exchanged.difference.not_computable == 40
    again = out_of_distribution(bonds_like_water, real, seed=1)
    assert str([each[:3] for each in again.values()]) == str([each[:3] for each in found.values()])


def test_structures_that_do_not_change_or_have_no_score_are_counted() -> None:
    def score(clouds: Clouds) -> torch.Tensor:
        found = clouds.segments.sum(clouds.x.square().sum(1))
        return torch.where(found > 1e3, torch.full_like(found, math.nan), found)

    clouds = Clouds.join([FLUORINE, *(WATERS[k] for k in (0, 1, 39))])
    found = out_of_distribution(score, clouds, corruptions={"swapped": with_atoms_swapped})
    assert found["swapped"].auroc.count == 2
    assert found["swapped"].auroc.not_computable == found["swapped"].lower.not_computable == 2
    assert found["swapped"].differences.isnan().tolist() == [True, False, False, True]


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="one number a structure"):
        out_of_distribution(lambda clouds: clouds.x, WATERS)


def test_the_area_under_the_curve_is_what_counting_pairs_gives() -> None:
    drawn = torch.randint(5, (2, 30), generator=source()).double()
    real, corrupted = drawn[0] + 1, drawn[1]
    counted = (real.unsqueeze(1) > corrupted).double() + 0.5 * (real.unsqueeze(1) == corrupted)
    found = auroc(real, corrupted)
    assert found.value == pytest.approx(float(counted.mean()))
    assert found.low < found.value < found.high
    assert auroc(corrupted, real).value == pytest.approx(1 - found.value)


def test_the_interval_of_the_area_covers_it_as_often_as_it_says() -> None:
    """Normal scores one apart: the area is Φ(1/√2)."""
    truth, inside = 0.5 * (1 + math.erf(0.5)), 0
    for trial in range(200):
        drawn = torch.randn(2, 60, generator=source(trial), dtype=torch.float64)
        found = auroc(drawn[0] + 1, drawn[1], seed=trial)
        inside += found.low <= truth <= found.high
    assert 0.95 - 0.02 - 5 * math.sqrt(0.05 * 0.95 / 200) <= inside / 200 <= 1


def test_nothing_to_compare_is_no_error() -> None:
    missing = torch.full((3,), math.nan)
    found = compared(torch.zeros(3), missing)
    assert found.auroc.not_computable == found.difference.not_computable == 3
    assert math.isnan(found.auroc.value)
