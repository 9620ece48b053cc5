r"""What every target is: an energy `U` of a cloud, with a known density `exp(−U) / Z`.

Energies are in units of kT (β = 1) and do not change when a cloud is moved, so the density lives
on the zero-mean subspace of `n` points in `d` dimensions, which has `(n − 1) d` dimensions. All
constants (`Z`, the entropy) refer to the Lebesgue measure of that subspace, the measure of
`eqflow.flows.CenteredNormal`. With them the distance of a model from the target is known and not
only its likelihood: :math:`\mathrm{KL}(p \,\Vert\, q) = \langle -\log q - U - \log Z \rangle_p`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import random_orthogonal
from eqflow.targets.free_energy import Estimate
from eqflow.targets.tempering import Tempered, Tempering, temper

# Draws of each ladder when log Z has to be measured.
CONSTANTS_DRAWS = 8


class Thermodynamics(NamedTuple):
    """Constants of a target in nats, each with its standard error.

    They obey `entropy = mean_energy + log_z`.
    """

    log_z: Estimate
    mean_energy: Estimate
    entropy: Estimate


class AbstractTarget(ABC):
    """Density `exp(−U(x)) / Z` on centred clouds of one size.

    Args:
        points: Number of points, n.
        dimension: Coordinates of a point, d.

    A subclass writes `_energy`; it may write `_forces` where a formula is faster than autograd, set
    `reference_scale` and `tempering` to suit the sampler, and replace `thermodynamics` or `sample`
    where these are known exactly.
    """

    reference_scale: float = 1.0
    """Standard deviation of a coordinate in the Gaussian that the sampler starts from."""

    tempering: Tempering = Tempering()
    """Settings of the sampler."""

    def __init__(self, points: int, dimension: int) -> None:
        if points < 1 or dimension < 1:
            raise UsageError(
                f"{type(self).__name__}: found {points} points in {dimension} dimensions, "
                "expected at least 1 of each."
            )
        self.points = points
        self.dimension = dimension

    @abstractmethod
    def _energy(self, x: Tensor) -> Tensor:
        """Energy of each cloud, (…, n, d) to (…)."""

    def _forces(self, x: Tensor) -> Tensor:
        """`−∇U`, (…, n, d); differentiable where `x` is."""
        differentiable = x.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if differentiable else x.detach().requires_grad_()
            total = self._energy(leaf).sum()
            (gradient,) = torch.autograd.grad(total, leaf, create_graph=differentiable)
        return -gradient

    def _energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._energy(x), self._forces(x)

    @property
    def degrees_of_freedom(self) -> int:
        """Dimension `(n − 1) d` of the zero-mean subspace; also the exact virial `⟨x·∇U⟩`."""
        return (self.points - 1) * self.dimension

    def as_clouds(self, x: Tensor) -> Tensor:
        """Positions of shape (…, n, d) from (…, n, d) or flat (…, n·d).

        Raises:
            ShapeError: If the last axes are neither, or the positions are not floats.
        """
        n, d = self.points, self.dimension
        if x.is_floating_point():
            if x.dim() >= 2 and x.shape[-2:] == (n, d):
                return x
            if x.dim() >= 1 and x.shape[-1] == n * d:
                return x.unflatten(-1, (n, d))
        raise ShapeError(
            f"{type(self).__name__}: found positions of shape {tuple(x.shape)} of {x.dtype}, "
            f"expected floats (…, {n}, {d}) or (…, {n * d})."
        )

    def energy(self, x: Tensor) -> Tensor:
        """Energy in kT of each cloud, (…, n, d) or (…, n·d) to (…), differentiable.

        Raises:
            ShapeError: If the positions do not fit.
        """
        return self._energy(self.as_clouds(x))

    def forces(self, x: Tensor) -> Tensor:
        """`−∇U` in kT per unit of length, with the shape of `x`."""
        return self._forces(self.as_clouds(x)).reshape(x.shape)

    def energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both at the price of one: (…) and the shape of `x`."""
        energy, forces = self._energy_and_forces(self.as_clouds(x))
        return energy, forces.reshape(x.shape)

    def virial(self, x: Tensor) -> Tensor:
        """`x·∇U` of each cloud, (…); its mean over the target is `degrees_of_freedom`.

        Holds because `∫ ∇·(x exp(−U)) dx = 0`: a check of any data set that claims this energy.
        """
        return -(self.as_clouds(x) * self.forces(self.as_clouds(x))).sum((-2, -1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density `−U(x) − log Z` on the zero-mean subspace in nats, (…)."""
        return -self.energy(x) - self.log_z.value

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Draws from the target, a function of `seed` on CPU.

        Returns:
            Centred float32 positions, shape (count, n, d), with a random rotation, reflection and
            order of the points (exact symmetries of the energy).

        Raises:
            UsageError: If `count` is negative.
        """
        if self.draws_nothing(count):
            return torch.empty(0, self.points, self.dimension)
        x = self.sample_report(count, seed).x.flatten(0, 1)[:count]
        return centred_dense(
            self.symmetrised(x, rng.generator(seed, "targets", "symmetry"))
        ).float()

    def draws_nothing(self, count: int) -> bool:
        """Whether `count` is zero; a negative one is a `UsageError`."""
        if count < 0:
            raise UsageError(f"{type(self).__name__}.sample: found count={count}, expected ≥ 0.")
        return count == 0

    def sample_report(self, count: int, seed: int = 0) -> Tempered:
        """A tempering run with at least `count` draws: swap rates, effective size, log Z."""
        return temper(self, count, seed)

    def symmetrised(self, x: Tensor, source: torch.Generator) -> Tensor:
        """Clouds (B, n, d) each rotated or reflected and reordered at random."""
        order = rng.uniform(x.shape[:2], x, source).argsort(-1)
        turn = random_orthogonal(x.shape[0], self.dimension, x, source)
        return x.gather(1, order.unsqueeze(-1).expand_as(x)) @ turn.transpose(-1, -2)

    @cached_property
    def thermodynamics(self) -> Thermodynamics:
        """Constants of the target, by a tempering run where nothing better is known."""
        run = self.sample_report(CONSTANTS_DRAWS * self.tempering.ladders)
        return Thermodynamics(run.log_z, run.mean_energy, run.entropy)

    @property
    def log_z(self) -> Estimate:
        """`log ∫ exp(−U)` over the zero-mean subspace, with its standard error."""
        return self.thermodynamics.log_z

    @property
    def mean_energy(self) -> Estimate:
        """`⟨U⟩` in kT, with its standard error."""
        return self.thermodynamics.mean_energy

    @property
    def entropy(self) -> Estimate:
        """`−⟨log p⟩ = ⟨U⟩ + log Z` in nats, with its standard error: the least possible NLL."""
        return self.thermodynamics.entropy

    def __repr__(self) -> str:
        return f"{type(self).__name__}(points={self.points}, dimension={self.dimension})"


def centred_dense(x: Tensor) -> Tensor:
    """Clouds (…, n, d) with their centres of mass at the origin."""
    return x - x.mean(-2, keepdim=True)
