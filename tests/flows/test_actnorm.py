"""The standardisation of states: its inverse, its determinant, and the published constant."""

import math

import torch
from example_flows import subspace_basis
from torch import Tensor

from eqflow.flows import ActNorm
from eqflow.geometry import Segments, centred

CLOUDS = Segments.of_lengths(torch.tensor([4, 1, 3]))


def made() -> ActNorm:
    actnorm = ActNorm(2).double()
    with torch.no_grad():
        actnorm.position_log_scale.fill_(0.7)
        actnorm.feature_shift.copy_(torch.tensor([0.3, -1.1]))
        actnorm.feature_log_scale.copy_(torch.tensor([0.2, -0.5]))
    return actnorm


def states(seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return centred(torch.randn(8, 5, dtype=torch.float64, generator=source), CLOUDS, 2)


def test_the_inverse_brings_a_state_back() -> None:
    actnorm, state = made(), states()
    torch.testing.assert_close(actnorm.inverse(actnorm(state)), state, rtol=1e-14, atol=1e-14)


def test_the_determinant_is_that_of_the_jacobian_on_the_zero_mean_subspace() -> None:
    actnorm, n = made(), 3
    basis = subspace_basis(n, 3)  # ((n − 1) d, n, d)
    points = torch.cat([basis, torch.zeros(len(basis), n, 2, dtype=torch.float64)], 2)
    features = torch.eye(n * 2, dtype=torch.float64).reshape(-1, n, 2)
    rest = torch.cat([torch.zeros(n * 2, n, 3, dtype=torch.float64), features], 2)
    directions = torch.cat([points, rest]).reshape(len(basis) + n * 2, -1)

    def within(coefficients: Tensor) -> Tensor:
        state = (coefficients @ directions).reshape(n, 5)
        return directions @ actnorm(state).reshape(-1)

    zero = torch.zeros(len(directions), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(within, zero)
    found = actnorm.log_det(Segments.of_lengths(torch.tensor([n])), 3)
    torch.testing.assert_close(found[0], torch.linalg.slogdet(jacobian)[1])


def test_the_published_constant_counts_one_point_too_many() -> None:
    actnorm = made()
    right, published = (
        actnorm.log_det(CLOUDS, 3, published=published) for published in (False, True)
    )
    torch.testing.assert_close(right - published, torch.full((3,), 3 * 0.7, dtype=torch.float64))


def test_a_batch_it_was_fitted_to_is_standardised() -> None:
    actnorm, state = ActNorm(2).double(), states() * torch.tensor([3, 3, 3, 0.1, 40.0]) + 0.0
    actnorm.fit(state, CLOUDS)
    z = actnorm(state)
    freedom = float(((CLOUDS.lengths - 1) * 3).sum())
    assert math.isclose(float(z[:, :3].detach().square().sum()) / freedom, 1, rel_tol=1e-12)
    torch.testing.assert_close(z[:, 3:].mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z[:, 3:].var(0, correction=0), torch.ones(2).double())


def test_what_is_the_same_everywhere_keeps_its_scale() -> None:
    actnorm, alone = ActNorm(1).double(), Segments.of_lengths(torch.ones(4, dtype=torch.int64))
    actnorm.fit(torch.tensor([[0.0, 2.0]] * 4, dtype=torch.float64), alone)
    z = actnorm(torch.tensor([[0.0, 3.0]], dtype=torch.float64))
    torch.testing.assert_close(z, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
