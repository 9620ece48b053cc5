"""Pair distances and bond lengths: counts, symmetries, and molecules whose bonds are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import TOLERANCE

from eqflow import rng
from eqflow.chem import load_g2
from eqflow.errors import EmptyData, UnknownElement, UsageError
from eqflow.evaluate.distances import (
    bond_lengths,
    bonded_pairs,
    pair_distances,
    pairs,
    wasserstein,
)
from eqflow.geometry import Clouds, random_orthogonal

DTYPES = [torch.float64, torch.float32]


def cloud(sizes, dimension=3, numbers=None, dtype=torch.float64):
    total = sum(sizes)
    source = rng.generator(0, "distances", total)
    x = torch.randn(total, dimension, generator=source, dtype=dtype)
    ptr = torch.tensor([0, *torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()])
    return Clouds(x, ptr, numbers)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_every_pair_within_a_cloud_occurs_exactly_once(sizes):
    clouds = cloud(sizes)
    found = [tuple(pair) for pair in pairs(clouds).tolist()]
    expected = [
        (i, j)
        for start, end in zip(clouds.ptr[:-1].tolist(), clouds.ptr[1:].tolist(), strict=True)
        for i in range(start, end)
        for j in range(i + 1, end)
    ]
    assert found == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_distances_do_not_change_when_clouds_are_moved(dimension, dtype):
    clouds = cloud([3, 5, 2], dimension, dtype=dtype)
    turn = random_orthogonal(1, dimension, clouds.x, rng.generator(1, "turn"))[0]
    moved = clouds.with_positions(clouds.x @ turn.T + 3)
    assert torch.allclose(pair_distances(moved), pair_distances(clouds), atol=TOLERANCE[dtype])


def test_distances_agree_with_a_dense_reference():
    clouds = cloud([4])
    assert torch.allclose(pair_distances(clouds), torch.pdist(clouds.x))


def test_points_on_their_own_have_no_distances():
    with pytest.raises(EmptyData, match="2 structures without a single pair"):
        pair_distances(cloud([1, 1]))


def test_the_bonds_of_molecules_are_those_of_chemistry():
    """Bonds counted by hand: methane 4, ethanol 8, benzene 12, carbon dioxide 2."""
    molecules = load_g2(["H", "C", "O"])
    bonds = {
        name.removeprefix("g2#"): len(bonded_pairs(molecules[i]))
        for i, name in enumerate(molecules.source)
    }
    expected = {"CH4": 4, "CH3CH2OH": 8, "C6H6": 12, "CO2": 2, "H2O": 2, "C2H4": 5, "H2": 1}
    assert {name: bonds[name] for name in expected} == expected


def test_bond_lengths_come_by_pair_of_elements_the_most_frequent_first():
    molecules = load_g2(["H", "C", "O"])
    ethanol = molecules[molecules.source.index("g2#CH3CH2OH")]
    lengths = bond_lengths(ethanol)
    assert {pair: len(found) for pair, found in lengths.items()} == {
        "C–H": 5,
        "C–C": 1,
        "C–O": 1,
        "O–H": 1,
    }
    assert next(iter(lengths)) == "C–H"
    assert float(lengths["C–H"].mean()) == pytest.approx(1.095, abs=0.01)
    assert float(lengths["O–H"]) == pytest.approx(0.97, abs=0.01)


def test_bonds_of_a_batch_are_those_of_its_molecules():
    molecules = load_g2(["H", "C", "N", "O", "F"], min_atoms=2)[:10]
    together = bond_lengths(molecules)
    for pair, lengths in together.items():
        apart = [bond_lengths(one).get(pair, lengths[:0]) for one in molecules]
        assert torch.allclose(torch.cat(apart).sort().values, lengths.sort().values)


def test_atoms_far_apart_have_no_bonds():
    hydrogens = Clouds(torch.eye(3) * 10, torch.tensor([0, 3]), torch.tensor([1, 1, 1]))
    assert bonded_pairs(hydrogens).shape == (0, 2)
    assert bond_lengths(hydrogens) == {}


@pytest.mark.parametrize("numbers", [None, torch.tensor([0, 6])])
def test_points_without_elements_are_refused(numbers):
    with pytest.raises(UnknownElement, match="without an element"):
        bond_lengths(Clouds(torch.eye(2), torch.tensor([0, 2]), numbers))


def test_a_factor_that_is_not_positive_is_refused():
    with pytest.raises(UsageError, match="factor"):
        bonded_pairs(load_g2(["H"], min_atoms=2), factor=0.0)


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    st.floats(-3, 3),
)
def test_wasserstein_is_a_distance_that_moves_with_a_shift(first, second, shift):
    a, b = torch.tensor(first).double(), torch.tensor(second).double()
    assert wasserstein(a, a) == pytest.approx(0, abs=1e-12)
    assert wasserstein(a, b) == pytest.approx(wasserstein(b, a), abs=1e-9)
    assert wasserstein(a, a + shift) == pytest.approx(abs(shift), abs=1e-9)


def test_wasserstein_agrees_with_scipy():
    from scipy.stats import wasserstein_distance

    source = rng.generator(0, "wasserstein")
    a = torch.randn(50, generator=source, dtype=torch.float64)
    b = 1 + 2 * torch.randn(31, generator=source, dtype=torch.float64)
    expected = wasserstein_distance(a.numpy(), b.numpy())
    assert math.isclose(wasserstein(a, b), expected, rel_tol=1e-10)


def test_wasserstein_of_nothing_is_refused():
    with pytest.raises(EmptyData, match="found 0 and 3 values"):
        wasserstein(torch.empty(0), torch.zeros(3))
