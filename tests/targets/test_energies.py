"""Energies against a plain double loop, and the symmetries every target promises."""

import itertools
import math

import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from tolerances import TOLERANCE

from eqflow import rng
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import random_orthogonal
from eqflow.targets import DW4, ASETarget, GaussianMixture, LennardJones, target_by_name

COPPER = Atoms("Cu4", [[0, 0, 0], [2.4, 0, 0], [1.2, 2.1, 0], [1.2, 0.7, 2.0]])


def copper():
    return ASETarget(EMT, COPPER, temperature=600, oscillator=0.1)


TARGETS = {
    "dw4": DW4,
    "lj13": LennardJones,
    "lj13 unordered": lambda: LennardJones(13, pairs="unordered", oscillator=0.5),
    "lj55": lambda: LennardJones(55),
    "gaussian mixture": GaussianMixture,
    "ase": copper,
}


@pytest.fixture(params=TARGETS.values(), ids=TARGETS)
def target(request):
    return request.param()


def clouds(target, count=5, seed=0):
    """Loose grids with noise: no two points so close that rounding rules."""
    source = rng.generator(seed, "test")
    side = math.ceil(target.points ** (1 / target.dimension))
    grid = list(itertools.product(range(side), repeat=target.dimension))[: target.points]
    x = torch.tensor(grid, dtype=torch.float64).expand(count, -1, -1)
    x = x * (2.3 if isinstance(target, ASETarget) else 1.1)
    return x + 0.15 * rng.normal(tuple(x.shape), x, source)


def close(a, b):
    return torch.allclose(a, b, rtol=TOLERANCE[torch.float64], atol=TOLERANCE[torch.float64])


def test_dw4_is_the_double_loop_of_its_formula():
    for x in clouds(DW4()):
        expected = 0.0
        for i in range(4):
            for j in range(i + 1, 4):
                d = math.dist(x[i].tolist(), x[j].tolist())
                expected += 0.9 * (d - 4) ** 4 - 4 * (d - 4) ** 2
        assert float(DW4().energy(x)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("points", [2, 13, 55])
@pytest.mark.parametrize(("pairs", "each_pair"), [("ordered", 2), ("unordered", 1)])
def test_lennard_jones_is_the_double_loop_of_its_formula(points, pairs, each_pair):
    target = LennardJones(points, pairs=pairs, oscillator=0.7)
    (x,) = clouds(target, 1)
    centre = x.mean(0).tolist()
    expected = sum(0.35 * math.dist(point, centre) ** 2 for point in x.tolist())
    for i in range(points):
        for j in range(i):
            r = math.dist(x[i].tolist(), x[j].tolist())
            expected += each_pair * (r**-12 - 2 * r**-6)
    assert float(target.energy(x)) == pytest.approx(expected, rel=1e-12)


def test_a_pair_at_distance_one_sits_in_the_well():
    x = torch.tensor([[0.5, 0, 0], [-0.5, 0, 0]], dtype=torch.float64)
    assert float(LennardJones(2).energy(x)) == pytest.approx(-2 + 0.25)


def test_ase_energy_is_the_calculators_in_kt_plus_the_spring():
    x = clouds(copper(), 1)
    atoms = COPPER.copy()
    atoms.set_positions(x[0].numpy())
    atoms.calc = EMT()
    spring = 0.05 * float((x - x.mean(1, keepdim=True)).square().sum())
    expected = atoms.get_potential_energy() / (8.617333262e-5 * 600) + spring
    assert float(copper().energy(x)) == pytest.approx(expected, rel=1e-10)


def test_energy_is_invariant_under_motions_and_permutations(target):
    x = clouds(target)
    source = rng.generator(1, "test")
    turn = random_orthogonal(len(x), target.dimension, x, source)
    moved = x[:, rng.permutation(target.points, source)] @ turn.mT + 3.0
    assert close(target.energy(moved), target.energy(x))


def test_forces_are_the_gradient_of_the_energy(target):
    x = clouds(target).requires_grad_()
    (gradient,) = torch.autograd.grad(target.energy(x).sum(), x)
    energy, forces = target.energy_and_forces(x.detach())
    assert close(forces, -gradient)
    assert close(target.forces(x.detach()), -gradient)
    assert close(energy, target.energy(x).detach())


@pytest.mark.parametrize("make", [DW4, LennardJones, GaussianMixture, copper])
def test_gradient_agrees_with_finite_differences(make):
    x = clouds(make(), 2).requires_grad_()
    assert torch.autograd.gradcheck(make().energy, x)


@pytest.mark.parametrize("make", [DW4, LennardJones, GaussianMixture])
def test_forces_can_be_differentiated_again(make):
    x = clouds(make(), 1).requires_grad_()
    assert torch.autograd.gradcheck(make().forces, x)


def test_flat_positions_and_any_leading_shape_mean_the_same(target):
    x = clouds(target, 6)
    expected = target.energy(x)
    assert torch.equal(target.energy(x.flatten(1)), expected)
    assert close(target.energy(x.unflatten(0, (2, 3))), expected.unflatten(0, (2, 3)))
    assert target.energy(x[0]).shape == ()
    assert target.forces(x.flatten(1)).shape == (6, target.points * target.dimension)
    assert target.energy(x[:0]).shape == (0,)
    assert target.forces(x[:0]).shape == x[:0].shape


def test_float32_agrees_with_float64(target):
    x = clouds(target)
    single = target.energy(x.float())
    assert single.dtype == torch.float32
    expected = target.energy(x)
    assert torch.allclose(single.double(), expected, rtol=TOLERANCE[torch.float32], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [DW4, LennardJones, GaussianMixture])
def test_coincident_points_have_a_finite_energy_and_gradient(make, dtype):
    target = make()
    x = clouds(target, 2).to(dtype)
    x[0, 1] = x[0, 0]
    x[1] = 0
    x.requires_grad_()
    energy = target.energy(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    assert torch.isfinite(energy).all()
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(target.forces(x.detach())).all()


def test_virial_is_positions_times_gradient(target):
    x = clouds(target)
    x = x - x.mean(1, keepdim=True)
    assert close(target.virial(x), -(x * target.forces(x)).sum((1, 2)))


def test_degrees_of_freedom_are_those_of_the_zero_mean_subspace():
    found = [DW4().degrees_of_freedom, LennardJones(13).degrees_of_freedom]
    assert [*found, LennardJones(55).degrees_of_freedom] == [6, 36, 162]


def test_positions_that_do_not_fit_are_refused_with_both_shapes():
    with pytest.raises(ShapeError, match=r"DW4: found positions of shape \(3, 7\).*\(…, 4, 2\)"):
        DW4().energy(torch.zeros(3, 7))
    with pytest.raises(ShapeError, match="int64"):
        DW4().energy(torch.zeros(4, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LennardJones(13, pairs="both"), "ordered, unordered"),
        (lambda: LennardJones(13, oscillator=0.0), "oscillator=0.0"),
        (lambda: LennardJones(0), "0 points"),
        (lambda: GaussianMixture(scale=-1), "scale=-1"),
        (lambda: GaussianMixture(weights=[1.0]), "3 positive numbers"),
        (lambda: GaussianMixture(torch.zeros(1, 8, 2)), "at most 7"),
        (lambda: GaussianMixture(torch.zeros(1, 4, 3)), r"\(K, n, 2\)"),
        (lambda: ASETarget(EMT, COPPER, temperature=0), "temperature=0"),
        (lambda: ASETarget(EMT, Atoms("Cu", pbc=True, cell=[3, 3, 3]), 300), "periodic"),
        (lambda: DW4().sample(-1), "count=-1"),
        (lambda: copper().log_z, "not known"),
        (lambda: target_by_name("lj31"), "Did you mean 'lj13'"),
        (lambda: target_by_name("?"), "dw4, lj13, lj55, gaussian_mixture"),
    ],
)
def test_wrong_arguments_are_usage_errors_that_say_what_is_expected(make, message):
    with pytest.raises((UsageError, ShapeError), match=message):
        make()


def test_each_name_gives_its_target():
    sizes = {name: target_by_name(name).points for name in ("dw4", "lj13", "lj55")}
    assert sizes == {"dw4": 4, "lj13": 13, "lj55": 55}
    assert isinstance(target_by_name("gaussian_mixture"), GaussianMixture)
