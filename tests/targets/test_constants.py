"""log Z, entropy and mean energy, by quadrature and in closed form."""

import math

import pytest
import torch

from eqflow import rng
from eqflow.targets import DW4, GaussianMixture, LennardJones
from eqflow.targets.free_energy import bennett, standard_error
from eqflow.targets.quadrature import FourPointQuadrature


def test_quadrature_of_springs_tends_to_the_normal_they_are():
    # Σ_{i<j} r²/2 = n ‖x‖²/2 on the zero-mean subspace: a normal of variance 1/n a coordinate.
    # It does not vanish at coincident points, so the error falls as h²: extrapolate it away.
    coarse, fine = (
        math.exp(FourPointQuadrature(lambda square: 0.5 * square, 8.0, spacing).log_z)
        for spacing in (0.2, 0.1)
    )
    assert math.log((4 * fine - coarse) / 3) == pytest.approx(3 * math.log(math.pi / 2), abs=1e-5)


def test_quadrature_of_dw4_converges_faster_than_any_power_of_the_spacing():
    truth = FourPointQuadrature(DW4().pair_energy, reach=9.0, spacing=0.1)
    errors = []
    for spacing in (0.5, 0.25, 0.125):
        found = FourPointQuadrature(DW4().pair_energy, reach=8.0, spacing=spacing)
        errors.append(abs(found.log_z - truth.log_z))
    assert errors[0] < 0.02
    assert errors[1] < 5e-5
    assert errors[2] < 1e-10
    assert truth.virial == pytest.approx(6, abs=1e-9)


def test_dw4_constants_are_the_published_ones():
    # Two annealed SMC runs of 40,000 gave 29.668 ± 0.005, −22.552 ± 0.007 and 7.116 ± 0.01.
    target = DW4()
    assert target.log_z.value == pytest.approx(29.668, abs=0.01)
    assert target.mean_energy.value == pytest.approx(-22.552, abs=0.014)
    assert target.entropy.value == pytest.approx(7.116, abs=0.02)
    assert target.log_z.error < 1e-4


def test_entropy_is_mean_energy_plus_log_z():
    for target in (DW4(), GaussianMixture(), LennardJones(13)):
        log_z, mean_energy, entropy = target.thermodynamics
        assert entropy.value == pytest.approx(log_z.value + mean_energy.value, abs=0.02)


def test_log_prob_is_minus_energy_minus_log_z():
    x = torch.randn(3, 4, 2, dtype=torch.float64) * 3
    target = DW4()
    assert torch.allclose(target.log_prob(x), -target.energy(x) - target.log_z.value)


@pytest.mark.parametrize("points", [2, 3])
def test_gaussian_mixture_integrates_to_one_over_the_zero_mean_subspace(points):
    shapes = torch.tensor([[[0.0, 0], [1, 0], [0, 2]], [[-1, 0], [0, 0.5], [1, 0]]])[:, :points]
    target = GaussianMixture(shapes, scale=0.4, weights=[1, 3])
    # An orthonormal basis of the subspace, and a grid over its coordinates.
    full = torch.linalg.qr(torch.cat([torch.ones(points, 1), torch.eye(points)], 1))[0]
    basis = full[:, 1:points].double()
    axis = torch.arange(-4.5, 4.5, 0.3, dtype=torch.float64)
    dof = target.degrees_of_freedom
    total = 0.0
    for first in axis:
        rest = torch.cartesian_prod(*[axis] * (dof - 1)).reshape(-1, dof - 1)
        z = torch.cat([first.expand(len(rest), 1), rest], 1).unflatten(1, (points - 1, 2))
        total += float(target.log_prob(basis @ z).exp().sum()) * 0.3**dof
    assert total == pytest.approx(1, abs=1e-6)


def test_gaussian_mixture_of_one_point_shapes_at_the_origin_is_a_normal():
    target = GaussianMixture(torch.zeros(1, 4, 2), scale=0.7)
    x = torch.randn(5, 4, 2, dtype=torch.float64)
    x = x - x.mean(1, keepdim=True)
    normal = -x.square().sum((1, 2)) / (2 * 0.49) - 3 * math.log(2 * math.pi * 0.49)
    assert torch.allclose(target.log_prob(x), normal, rtol=1e-10)


def test_gaussian_mixture_draws_are_alike_under_its_own_density():
    target = GaussianMixture()
    x = target.sample(20_000, seed=1).double()
    assert x.mean(1).abs().max() < 1e-5
    # E[virial] = dof holds only if the draws and the density belong together.
    virial = target.virial(x)
    error = float(virial.std()) / len(virial) ** 0.5
    assert abs(float(virial.mean()) - target.degrees_of_freedom) < 4 * error
    energy = target.energy(x)
    mean, spread = target.mean_energy, float(energy.std()) / len(energy) ** 0.5
    assert abs(float(energy.mean()) - mean.value) < 4 * math.hypot(spread, mean.error)


def test_bennett_finds_the_free_energy_between_two_normals():
    # From exp(−x²/2) to exp(−2x²): log Z falls by log 2.
    like = torch.empty(0, dtype=torch.float64)
    first = rng.normal((1, 100, 200), like, rng.generator(0, "first"))
    second = 0.5 * rng.normal((1, 100, 200), like, rng.generator(0, "second"))
    difference, shifts = bennett(1.5 * first**2, 1.5 * second**2)
    error = standard_error(shifts.sum(0))
    assert abs(float(difference) - math.log(2)) < 4 * error
    assert error < 0.01
    assert abs(float(shifts.sum())) < 1e-6
