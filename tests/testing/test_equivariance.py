"""The assertions pass on functions that have the symmetry, and fail on each kind that has not."""

import math

import pytest
import torch
from e3nn import o3
from tolerances import TOLERANCE

from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Clouds, Segments, centred
from eqflow.testing import (
    assert_equivariant,
    assert_independent,
    assert_invariant,
    clouds,
    discrepancies,
    equivariance_error,
    independence_error,
)

SHAPES = dict(clouds())
PLANE = dict(clouds(dimension=2))
SINGLE = {name: dict(clouds(dtype=torch.float32))[name] for name in SHAPES}


def pairs(x, ptr):
    """Index of every ordered pair of points within a cloud."""
    ids = Segments(ptr).ids
    same = ids[:, None] == ids[None, :]
    return (same & ~torch.eye(len(ids), dtype=torch.bool)).nonzero().T


def pair_force(x, ptr, h):
    i, j = pairs(x, ptr)
    difference = x[j] - x[i]
    weight = torch.exp(-0.1 * difference.square().sum(-1)) * (1 + 0.1 * h[j, 0])
    return torch.zeros_like(x).index_add(0, i, weight[:, None] * difference)


def pair_energy(x, ptr, h):
    i, j = pairs(x, ptr)
    energy = torch.exp(-0.1 * (x[j] - x[i]).square().sum(-1))
    return Segments(ptr).sum(x.new_zeros(len(x)).index_add(0, i, energy))


def pair_profile(x, ptr, h):
    i, j = pairs(x, ptr)
    square = (x[j] - x[i]).square().sum(-1, keepdim=True)
    features = torch.cat([torch.exp(-square), torch.exp(-0.1 * square) * h[j]], -1)
    return x.new_zeros(len(x), 2).index_add(0, i, features)


def quadrupole(x, ptr, h):
    y = centred(x, ptr)
    return Segments(ptr).sum(o3.spherical_harmonics(2, y, normalize=False))


def handedness(x, ptr, h):
    """The signed volume of each cloud's first three arms: mirrors flip it, nothing else does."""
    y = Segments(ptr).to_dense(centred(x, ptr))
    return torch.linalg.det(y[:, :3]).unsqueeze(-1)


def torque(x, ptr, h):
    """A pseudovector of each point: two true vectors, of different range, in a cross product."""
    return torch.linalg.cross(pair_force(x, ptr, h), pair_force(2 * x, ptr, 0 * h))


EQUIVARIANT = {
    "identity": (lambda x, ptr, h: x, "E", "point"),
    "centred": (lambda x, ptr, h: centred(x, ptr), "E", "vector"),
    "a step along a force": (lambda x, ptr, h: x + pair_force(x, ptr, h), "E", "point"),
    "force": (pair_force, "E", "vector"),
    "centre of mass": (lambda x, ptr, h: Segments(ptr).mean(x), "E", "point"),
    "energy": (pair_energy, "E", "scalar"),
    "features of a point": (pair_profile, "E", "scalar"),
    "zero": (lambda x, ptr, h: 0 * x, "E", "vector"),
    "constant": (lambda x, ptr, h: torch.ones_like(h), "E", "scalar"),
}


@pytest.mark.parametrize("case", EQUIVARIANT)
@pytest.mark.parametrize("name", SHAPES)
def test_a_symmetric_function_passes_on_every_cloud(name, case):
    fn, group, output = EQUIVARIANT[case]
    assert_equivariant(fn, SHAPES[name], f"{group}(3)", output)
    assert_equivariant(fn, SHAPES[name], "S(n)", output)


@pytest.mark.parametrize("case", EQUIVARIANT)
@pytest.mark.parametrize("name", SINGLE)
def test_rounding_in_float32_passes_on_every_cloud(name, case):
    fn, group, output = EQUIVARIANT[case]
    assert_equivariant(fn, SINGLE[name], f"{group}(3)", output)


@pytest.mark.parametrize("dimension", [1, 2, 4])
@pytest.mark.parametrize("family", ["E", "SE", "O", "SO", "T"])
def test_any_dimension_and_group_works(dimension, family):
    for _, batch in clouds(dimension):
        assert_equivariant(pair_force, batch, f"{family}({dimension})", seed=1, motions=2)


def test_irreps_move_as_e3nn_defines_them():
    for _, batch in clouds():
        assert_equivariant(quadrupole, batch, output="1x2e")
        assert_equivariant(pair_force, batch, output="1o")
        assert_equivariant(torque, batch, output=o3.Irreps("1e"))
        assert_equivariant(pair_profile, batch, output="2x0e")


def test_mixed_irreps_are_split_block_by_block():
    def moments(x, ptr, h):
        sums = [Segments(ptr).sum(part) for part in (pair_force(x, ptr, h) * h, torque(x, ptr, h))]
        return torch.cat([pair_energy(x, ptr, h)[:, None], *sums, quadrupole(x, ptr, h)], -1)

    assert_equivariant(moments, SHAPES["generic"], output="0e+1o+1e+2e")
    assert equivariance_error(moments, SHAPES["generic"], output="0e+1e+1o+2e") > 1e-3


@pytest.mark.parametrize("degree", range(7))
def test_spherical_harmonics_of_any_degree_pass_to_rounding(degree):
    parity = "e" if degree % 2 == 0 else "o"

    def harmonics(x, ptr, h):
        return o3.spherical_harmonics(degree, centred(x, ptr), normalize=True)

    error = equivariance_error(harmonics, SHAPES["generic"], output=f"1x{degree}{parity}")
    assert error < 1e-12
    if degree:
        wrong = "o" if parity == "e" else "e"
        assert equivariance_error(harmonics, SHAPES["generic"], output=f"1x{degree}{wrong}") > 0.1


# Broken functions: each is wrong in one way, and that way is named.


def test_absolute_positions_fail_under_translations_only():
    def fn(x, ptr, h):
        return x * x.square().sum(-1, keepdim=True).add(1).rsqrt()

    for name, batch in SHAPES.items():
        # Far away a shift changes little, but by more than rounding.
        assert equivariance_error(fn, batch, "T(3)") > 1e-6, name
        assert_equivariant(fn, batch, "O(3)")
        with pytest.raises(AssertionError, match="translation"):
            assert_equivariant(fn, batch, "E(3)")


def test_a_point_is_not_a_vector_and_a_vector_not_a_point():
    assert equivariance_error(lambda x, ptr, h: x, SHAPES["methane"], output="vector") > 0.1
    fn = EQUIVARIANT["centred"][0]
    assert equivariance_error(fn, SHAPES["methane"], output="point") > 0.1


def test_a_function_that_tells_left_from_right_fails_only_under_reflections():
    batch = SHAPES["generic"]
    assert_invariant(handedness, batch, "SE(3)")
    assert_invariant(handedness, batch, "SO(3)")
    for group in ("E(3)", "O(3)"):
        with pytest.raises(AssertionError, match="reflection"):
            assert_invariant(handedness, batch, group)
    found = {
        entry.kind: entry.error for entry in discrepancies(handedness, batch, "E(3)", "scalar")
    }
    assert found["reflection"] == pytest.approx(2, rel=0.5)
    assert max(found["translation"], found["rotation"]) < TOLERANCE[torch.float64]


def test_a_cross_product_is_a_pseudovector():
    batch = SHAPES["generic"]
    assert_equivariant(torque, batch, "SE(3)", "vector")
    with pytest.raises(AssertionError, match="reflection"):
        assert_equivariant(torque, batch, "O(3)", "vector")


def test_a_function_of_one_axis_fails_under_rotations():
    def fn(x, ptr, h):
        return centred(x, ptr)[:, :1]

    assert_invariant(fn, SHAPES["benzene"], "T(3)")
    with pytest.raises(AssertionError, match="rotation"):
        assert_invariant(fn, SHAPES["benzene"], "SO(3)")


def test_a_leak_between_clouds_fails_because_each_moves_by_itself():
    def fn(x, ptr, h):
        return x - x.mean(0)

    assert_equivariant(fn, SHAPES["water"], "T(3)")
    with pytest.raises(AssertionError, match="translation"):
        assert_equivariant(fn, SHAPES["generic"], "T(3)")


def test_an_order_dependent_function_fails_under_permutations_only():
    def weighted(x, ptr, h):
        place = Segments(ptr).place.to(x)[:, None]
        return (1 + place) * pair_force(x, ptr, h)

    def first_arm(x, ptr, h):
        return centred(x, ptr)[ptr[:-1]].norm(dim=-1, keepdim=True)

    for fn, output in ((weighted, "vector"), (first_arm, "scalar")):
        assert_equivariant(fn, SHAPES["generic"], "E(3)", output)
        with pytest.raises(AssertionError, match="permutation"):
            assert_equivariant(fn, SHAPES["generic"], "S(n)", output)


def test_a_node_output_that_does_not_follow_the_order_fails():
    def sorted_radii(x, ptr, h):
        radii = centred(x, ptr).norm(dim=-1)
        return torch.cat(
            [part.sort().values for part in radii.split(Segments(ptr).lengths.tolist())]
        )

    assert_invariant(sorted_radii, SHAPES["generic"], "E(3)")
    with pytest.raises(AssertionError, match="permutation"):
        assert_invariant(sorted_radii, SHAPES["generic"], "S(n)")


def test_a_big_cloud_does_not_hide_an_error_in_a_small_one():
    water = SHAPES["water"]
    big = water.with_positions(1e12 * water.x)
    batch = Clouds.join([big, water, big])

    def fn(x, ptr, h):
        small = (centred(x, ptr).norm(dim=-1, keepdim=True) < 10).to(x)
        return centred(x, ptr) + 1e-6 * small * x

    assert equivariance_error(fn, batch, "T(3)") > 1e-7
    with pytest.raises(AssertionError, match="cloud 1"):
        assert_equivariant(fn, batch, "T(3)", tolerance=1e-8)


@pytest.mark.parametrize(("shapes", "small"), [(SHAPES, 1e-14), (SINGLE, 1e-5)])
def test_a_small_output_does_not_hide_its_error(shapes, small):
    def fn(x, ptr, h):
        return small * torch.sin(x)

    assert equivariance_error(fn, shapes["water"], "O(3)") > 0.01


def test_a_force_that_vanishes_by_symmetry_is_measured_by_what_it_is_nearby():
    # Big forces that balance: what is left at the symmetric point is rounding, of any direction.
    def fn(x, ptr, h):
        return 1e3 * (pair_force(x, ptr, 0 * h)[ptr[:-1]])

    for name in ("methane", "sf6", "icosahedron", "co2"):
        assert float(fn(SHAPES[name].x, SHAPES[name].ptr, SHAPES[name].h).norm()) < 1e-10
        assert_equivariant(fn, SHAPES[name])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["generic", "one_point"])
def test_an_output_that_is_not_finite_fails(name, bad):
    batch = SHAPES[name]
    assert equivariance_error(lambda x, ptr, h: x * bad, batch, output="vector") == math.inf
    with pytest.raises(AssertionError, match="not finite"):
        assert_invariant(lambda x, ptr, h: torch.full_like(h, bad), batch)


def test_an_output_that_is_nan_for_one_point_of_one_cloud_fails():
    def fn(x, ptr, h):
        y = centred(x, ptr)
        return torch.where(torch.arange(len(x))[:, None] == 9, math.nan, y)

    with pytest.raises(AssertionError, match="cloud 1"):
        assert_equivariant(fn, SHAPES["generic"])


def test_the_formula_for_squared_distances_that_loses_digits_fails_far_away():
    def fn(x, ptr, h):
        square = x.square().sum(-1)
        i, j = pairs(x, ptr)
        distance = square[i] + square[j] - 2 * (x[i] * x[j]).sum(-1)
        return x.new_zeros(len(x)).index_add(0, i, torch.exp(-0.1 * distance))

    assert_invariant(pair_energy, SHAPES["far"])
    assert_invariant(fn, SHAPES["generic"])
    with pytest.raises(AssertionError):
        assert_invariant(fn, SHAPES["far"])


def test_the_message_names_group_kinds_cloud_source_tolerance_and_dtype():
    batch = Clouds.join([SHAPES["water"], SHAPES["methane"]])
    batch = Clouds(batch.x, batch.ptr, batch.numbers, ("a.xyz:1", "b.xyz:6"))

    def fn(x, ptr, h):
        return centred(x, ptr) + 1e-3 * (Segments(ptr).ids[:, None] == 1) * x

    with pytest.raises(AssertionError) as caught:
        assert_equivariant(fn, batch, tolerance=1e-7)
    text = str(caught.value)
    for part in ("E(3)", "translation", "rotation", "reflection", "combined", "cloud 1", "b.xyz:6"):
        assert part in text
    for part in ("1e-07", "torch.float64", "5 points", "'vector'"):
        assert part in text


def test_the_error_is_a_function_of_the_seed():
    def fn(x, ptr, h):
        return torch.sin(x)

    batch = SHAPES["generic"]
    assert equivariance_error(fn, batch, seed=3) == equivariance_error(fn, batch, seed=3)
    assert equivariance_error(fn, batch, seed=3) != equivariance_error(fn, batch, seed=4)


# Batch independence.


def test_functions_of_one_cloud_are_independent_of_the_others():
    batch = Clouds.join([SHAPES[name] for name in ("water", "one_point", "generic", "coincident")])
    for fn, _, _ in EQUIVARIANT.values():
        assert_independent(fn, batch)


def test_a_normalisation_over_the_batch_is_found_though_it_is_invariant():
    def fn(x, ptr, h):
        energy = pair_energy(x, ptr, h)
        return energy - energy.mean()

    batch = SHAPES["generic"]
    assert_invariant(fn, batch)
    assert independence_error(fn, batch) > 0.01
    with pytest.raises(AssertionError, match="independence"):
        assert_independent(fn, batch)


# What a caller can get wrong.


@pytest.mark.parametrize(
    ("group", "near"), [("E3", "E(3)"), ("SU(3)", "SO(3)"), ("S(5)", "S(n)"), ("", "E(3)")]
)
def test_an_unknown_group_is_refused_with_the_nearest_names(group, near):
    with pytest.raises(UsageError) as caught:
        equivariance_error(pair_force, SHAPES["water"], group)
    assert near in str(caught.value)


def test_a_group_of_another_dimension_is_refused():
    with pytest.raises(ShapeError, match=r"Pass group='SE\(2\)'"):
        equivariance_error(pair_force, PLANE["water"], "SE(3)")


@pytest.mark.parametrize("output", ["vectr", "1z", ""])
def test_an_unknown_output_is_refused(output):
    with pytest.raises((UsageError, ShapeError)):
        equivariance_error(pair_force, SHAPES["water"], output=output)


def test_a_misspelt_output_is_answered_with_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean 'vector'"):
        equivariance_error(pair_force, SHAPES["water"], output="vectr")


def test_irreps_in_the_plane_are_refused():
    with pytest.raises(UsageError, match="dimension 2"):
        equivariance_error(pair_force, PLANE["water"], "E(2)", output="1o")


def test_no_motions_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        equivariance_error(pair_force, SHAPES["water"], motions=0)


@pytest.mark.parametrize(
    ("fn", "output"),
    [
        (lambda x, ptr, h: x[:2], "scalar"),
        (lambda x, ptr, h: x[:, :2], "vector"),
        (lambda x, ptr, h: x[None], "scalar"),
        (lambda x, ptr, h: x.sum(), "scalar"),
    ],
)
def test_an_output_of_the_wrong_shape_is_refused(fn, output):
    with pytest.raises(ShapeError, match="fn: returned shape"):
        equivariance_error(fn, SHAPES["water"], output=output)


def test_a_tuple_is_refused():
    with pytest.raises(UsageError, match="returned a tuple"):
        equivariance_error(lambda x, ptr, h: (x, h), SHAPES["water"])


def test_a_dtype_without_a_tolerance_needs_one_said():
    batch = SHAPES["water"].to(torch.bfloat16)
    with pytest.raises(UsageError, match="tolerance"):
        assert_equivariant(EQUIVARIANT["centred"][0], batch)
    assert_equivariant(EQUIVARIANT["centred"][0], batch, "SE(3)", tolerance=0.1)
