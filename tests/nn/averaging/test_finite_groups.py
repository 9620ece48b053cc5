import math
from collections import Counter
from itertools import permutations

import pytest
import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import random_orthogonal
from eqflow.nn.averaging import finite_group, generated, matrix_group, permutation_group
from eqflow.testing import clouds

ORDERS = {
    "C(1)": 1,
    "C(4)": 4,
    "C(7)": 7,
    "C5": 5,
    "D(3)": 6,
    "D(8)": 16,
    "C(3)v": 6,
    "C2v": 4,
    "C(2)h": 4,
    "D(6)h": 24,
    "D(2)d": 8,
    "D(3)d": 12,
    "Ci": 2,
    "Cs": 2,
    "T": 12,
    "Td": 24,
    "Th": 24,
    "O": 24,
    "Oh": 48,
    "I": 60,
    "Ih": 120,
}
PLANAR = {"C(1)": 1, "C(4)": 4, "C(5)": 5, "D(1)": 2, "D(4)": 8, "D(6)": 12, "Ci": 2, "Cs": 2}
GROUPS = [(name, 3, order) for name, order in ORDERS.items()]
GROUPS += [(name, 2, order) for name, order in PLANAR.items()]


def farthest(values: Tensor, others: Tensor) -> float:
    """The largest distance of one of `values` to the nearest of `others`, entry by entry."""
    apart = (values.flatten(1).unsqueeze(1) - others.flatten(1).unsqueeze(0)).abs().amax(-1)
    return float(apart.amin(1).max())


def products(matrices: Tensor) -> Tensor:
    return torch.einsum("gij,hjk->ghik", matrices, matrices).flatten(0, 1)


def drawn_rotation(seed: int = 0) -> Tensor:
    like = torch.zeros((), dtype=torch.float64)
    return random_orthogonal(1, 3, like, rng.generator(seed, "test"), proper=True)[0]


@pytest.mark.parametrize(("name", "dimension", "order"), GROUPS)
def test_a_named_group_is_a_group_to_the_last_digits(name: str, dimension: int, order: int) -> None:
    group = finite_group(name, dimension)
    matrices = group.matrices
    unit = torch.eye(dimension, dtype=torch.float64)
    assert group.order == order == len(matrices)
    assert group.dimension == dimension
    assert matrices.dtype == torch.float64
    assert (matrices.mT @ matrices - unit).abs().max() < 1e-15
    assert farthest(unit.unsqueeze(0), matrices) == 0
    assert farthest(products(matrices), matrices) < 1e-15
    assert farthest(matrices.mT, matrices) < 1e-15
    apart = torch.cdist(matrices.flatten(1), matrices.flatten(1)) + 9 * torch.eye(order)
    assert apart.min() > 0.1


# Traces of a rotation by an angle are 1 + 2 cos; the number of each is the size of its class.
CLASSES = {
    "T": {(1, 3.0): 1, (1, 0.0): 8, (1, -1.0): 3},
    "Td": {(1, 3.0): 1, (1, 0.0): 8, (1, -1.0): 3, (-1, 1.0): 6, (-1, -1.0): 6},
    "O": {(1, 3.0): 1, (1, 0.0): 8, (1, 1.0): 6, (1, -1.0): 9},
    "I": {(1, 3.0): 1, (1, 0.0): 20, (1, -1.0): 15, (1, 1.618): 12, (1, -0.618): 12},
    "C(3)v": {(1, 3.0): 1, (1, 0.0): 2, (-1, 1.0): 3},
    "D(2)d": {(1, 3.0): 1, (1, -1.0): 3, (-1, 1.0): 2, (-1, -1.0): 2},
    "D(3)d": {(1, 3.0): 1, (1, 0.0): 2, (1, -1.0): 3, (-1, -3.0): 1, (-1, 0.0): 2, (-1, 1.0): 3},
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_elements_are_those_of_the_character_table(name: str) -> None:
    matrices = finite_group(name, 3).matrices
    traces = torch.einsum("gii->g", matrices).tolist()
    determinants = torch.linalg.det(matrices).tolist()
    found = Counter(
        (round(determinant), round(trace, 3) + 0.0)
        for determinant, trace in zip(determinants, traces, strict=True)
    )
    assert found == CLASSES[name]


SYMMETRIC = {
    "ammonia": "C(3)v",
    "benzene": "D(6)h",
    "square": "D(4)h",
    "methane": "Td",
    "sf6": "Oh",
    "icosahedron": "Ih",
}


@pytest.mark.parametrize("shape", SYMMETRIC)
def test_a_symmetric_molecule_is_left_alone_by_its_point_group(shape: str) -> None:
    batch = dict(clouds())[shape]
    for matrix in finite_group(SYMMETRIC[shape], 3).matrices:
        apart = torch.cdist(batch.x @ matrix.T, batch.x)
        nearest = apart.argmin(1)
        assert apart.amin(1).max() < 1e-14
        assert torch.equal(batch.numbers[nearest], batch.numbers)


def test_no_larger_group_of_the_list_leaves_ammonia_alone() -> None:
    x = dict(clouds())["ammonia"].x
    for name in ("C(6)v", "D(3)h", "Oh"):
        moved = torch.einsum("gij,nj->gni", finite_group(name, 3).matrices, x)
        assert torch.cdist(moved, x.expand(len(moved), -1, -1)).amin(2).max() > 0.1


@pytest.mark.parametrize("n", range(1, 7))
def test_permutations_are_all_the_even_ones_and_the_shifts(n: int) -> None:
    every = set(permutations(range(n)))
    found = finite_group(f"S({n})", 2).permutations
    assert {tuple(row) for row in found.tolist()} == every
    even = finite_group(f"A({n})", 2).permutations
    signs = torch.linalg.det(torch.nn.functional.one_hot(even, n).double())
    assert torch.equal(signs, torch.ones(len(even), dtype=torch.float64))
    assert len(even) == max(1, math.factorial(n) // 2)
    shifts = finite_group(f"Z({n})", 2).permutations
    expected = {tuple((i + k) % n for i in range(n)) for k in range(n)}
    assert {tuple(row) for row in shifts.tolist()} == expected


@pytest.mark.parametrize("name", ["S(4)", "A(5)", "Z(7)"])
def test_named_permutations_pass_as_a_users(name: str) -> None:
    found = permutation_group(finite_group(name, 3).permutations)
    assert found.order == finite_group(name, 3).order
    assert (found.matrices, found.dimension) == (None, None)


def test_matrices_of_four_digits_are_polished_to_the_group_they_stand_for() -> None:
    turn = drawn_rotation()
    exact = turn @ finite_group("Oh", 3).matrices @ turn.T
    rough = ((1e5 * exact).round() / 1e5).float()
    found = matrix_group(rough[rng.permutation(48, rng.generator(0, "test"))]).matrices
    unit = torch.eye(3, dtype=torch.float64)
    assert (found.mT @ found - unit).abs().max() < 1e-15
    assert farthest(products(found), found) < 2e-15
    assert 1e-9 < farthest(found, exact) < 1e-4


def test_generators_make_the_group_of_their_products() -> None:
    turn = drawn_rotation(1)
    fifth = finite_group("C(5)", 3).matrices[1]
    third = finite_group("I", 3).matrices
    third = third[torch.einsum("gii->g", third).abs() < 1e-9][:1]
    assert generated(turn @ fifth.unsqueeze(0) @ turn.T).order == 5
    assert generated(torch.cat([third, finite_group("T", 3).matrices])).order in (12, 60)
    assert generated(torch.zeros(0, 3, 3)).order == 1
    four = torch.diag_embed(1 - 2 * torch.eye(4, dtype=torch.float64))
    assert generated(four).order == 16


def test_products_are_the_larger_groups() -> None:
    larger = finite_group("O", 3) * finite_group("Ci", 3)
    expected = finite_group("Oh", 3).matrices
    assert larger.order == 48
    assert farthest(larger.matrices, expected) < 1e-15
    assert (finite_group("Td", 3) * finite_group("T", 3)).order == 24
    both = finite_group("C(4)", 2) * finite_group("S(3)", 2)
    assert (both.order, both.dimension, both.points) == (24, 2, 3)
    pairs = {
        (tuple(matrix.flatten().tolist()), tuple(order.tolist()))
        for matrix, order in zip(both.matrices, both.permutations, strict=True)
    }
    assert len(pairs) == 24
    assert (both * finite_group("Ci", 2)).order == 24
    assert (finite_group("Z(4)", 2) * finite_group("A(4)", 2)).order == 24
    assert (finite_group("S(5)", 3) * finite_group("Oh", 3)).order == 120 * 48


def test_the_error_of_a_set_that_is_not_closed_names_the_missing_product() -> None:
    quarter = finite_group("C(4)", 2).matrices
    with pytest.raises(UsageError, match=r"product of elements 1 and 1, \[\[-1.0, 0.0\], \[0.0, -"):
        matrix_group(quarter[:2])
    with pytest.raises(UsageError, match=r"product of elements 0 and 0, \[2, 0, 1\], is not among"):
        permutation_group(torch.tensor([[1, 2, 0], [0, 1, 2]]))
    tilted = drawn_rotation() @ finite_group("O", 3).matrices @ drawn_rotation().T
    with pytest.raises(UsageError, match="is not among"):
        finite_group("C(3)", 3) * matrix_group(tilted)


BAD_MATRICES = {
    "not square": (torch.zeros(2, 3, 2), ShapeError, r"\(2, 3, 2\), expected \(G, d, d\)"),
    "one matrix": (torch.eye(3), ShapeError, r"\(3, 3\), expected"),
    "none": (torch.zeros(0, 3, 3), ShapeError, r"\(0, 3, 3\), expected"),
    "a shear": (torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]), UsageError, "matrix 0.*not orthogonal"),
    "NaN": (torch.full((1, 2, 2), math.nan), UsageError, "matrix 0.*not orthogonal"),
    "twice the same": (torch.eye(2).repeat(2, 1, 1), UsageError, "elements 0 and 1 are the same"),
}


@pytest.mark.parametrize(("matrices", "error", "text"), BAD_MATRICES.values(), ids=BAD_MATRICES)
def test_matrices_that_are_no_group_are_refused(matrices, error, text) -> None:
    with pytest.raises(error, match=text):
        matrix_group(matrices)


BAD_PERMUTATIONS = {
    "reals": (torch.tensor([[0.0, 1.0]]), ShapeError, "torch.float32, expected"),
    "one": (torch.tensor([0, 1]), ShapeError, r"shape \(2,\)"),
    "a place twice": (torch.tensor([[0, 1], [0, 0]]), UsageError, r"element 1, \[0, 0\], is no"),
    "negative": (torch.tensor([[-1, 0]]), UsageError, "is no permutation of 0 to 1"),
    "twice": (torch.tensor([[0, 1], [0, 1]]), UsageError, "elements 0 and 1 are the same"),
}


@pytest.mark.parametrize(
    ("orders", "error", "text"), BAD_PERMUTATIONS.values(), ids=BAD_PERMUTATIONS
)
def test_permutations_that_are_no_group_are_refused(orders, error, text) -> None:
    with pytest.raises(error, match=text):
        permutation_group(orders)


def test_generators_of_an_infinite_group_are_refused() -> None:
    c, s = math.cos(1.0), math.sin(1.0)
    with pytest.raises(UsageError, match="more than 1000 products"):
        generated(torch.tensor([[[c, -s], [s, c]]], dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"\(2, 2\), expected \(g, d, d\)"):
        generated(torch.eye(2))


BAD_NAMES = {
    "a typing error": ("Ohh", 3, UsageError, "Did you mean 'Oh'"),
    "lower case": ("c(4)", 3, UsageError, r"Did you mean 'C\(4\)'"),
    "an infinite group": ("SO(3)", 3, UsageError, "HaarAverage"),
    "no number": ("C(0)", 3, UsageError, r"expected a finite group such as C\(4\)"),
    "no name": (None, 3, UsageError, "found None"),
    "no such mirrors": ("D(3)v", 3, UsageError, "expected a finite group"),
    "too many points": ("S(7)", 3, UsageError, "from 1 to 6 points"),
    "no points": ("Z(0)", 3, UsageError, "from 1 to 1000 points"),
    "too many parts": ("C(5000)", 2, UsageError, "at most 1000 parts"),
    "the plane": ("Td", 2, ShapeError, "Td acts in 3 dimensions, but the clouds have 2"),
    "planar mirrors": ("C(3)v", 2, ShapeError, "acts in 3 dimensions"),
    "four dimensions": ("D(4)", 4, ShapeError, "acts in 2 or 3 dimensions"),
    "no dimension": ("Ci", 0, UsageError, "found dimension=0"),
    "half a dimension": ("Ci", 2.5, UsageError, "found dimension=2.5, expected whole numbers"),
}


@pytest.mark.parametrize(("name", "dimension", "error", "text"), BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_wrong_name_or_dimension_is_refused(name, dimension, error, text) -> None:
    with pytest.raises(error, match=text):
        finite_group(name, dimension)


def test_products_across_dimensions_and_numbers_of_points_are_refused() -> None:
    with pytest.raises(ShapeError, match="dimension 3, but C\\(4\\) has 2"):
        finite_group("O", 3) * finite_group("C(4)", 2)
    with pytest.raises(ShapeError, match="points 3, but S\\(4\\) has 4"):
        finite_group("S(3)", 3) * finite_group("S(4)", 3)
    with pytest.raises(TypeError):
        finite_group("O", 3) * 2
