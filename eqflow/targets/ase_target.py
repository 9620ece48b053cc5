r"""The Boltzmann density of any ASE calculator, as a target.

:math:`U(x) = E(x) / kT + \tfrac{k}{2} \sum_i \lVert x_i - \bar x \rVert^2` with `E` in eV and `x`
in Å. Structures go through the calculator one at a time; its forces make the energy differentiable
(once) in torch. The atoms are a molecule or a cluster: a periodic cell would break the rotations
that a flow here takes for granted.

ASE is imported by whoever makes the atoms; this module only talks to the objects it is handed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import NumericalError, UsageError
from eqflow.targets.base import AbstractTarget, Thermodynamics, centred_dense
from eqflow.targets.hamiltonian import ACCEPTANCE_GOAL, State, move

if TYPE_CHECKING:
    import ase
    from ase.calculators.calculator import Calculator

BOLTZMANN = 8.617333262e-5  # eV/K, exact in the SI of 2019 to the digits given

CHAINS = 8
BURN_IN = 100
EVERY = 5
LEAPFROG = 8
FIRST_STEP = 0.01  # Å; adapted in burn-in


class ASETarget(AbstractTarget):
    """Density `exp(−E/kT)` of the energy of an ASE calculator, in Å.

    Args:
        calculator: An ASE calculator, or a function without arguments that makes one.
        atoms: Which elements, and where sampling starts; no periodic directions.
        temperature: In kelvin.
        oscillator: Spring constant of each atom to the centre, in kT/Å²; 0 for none. Without one a
            molecule that can fall apart has no density.

    Raises:
        UsageError: If the temperature or the spring is out of range, or the atoms are periodic.
    """

    def __init__(
        self,
        calculator: Calculator | Callable[[], Calculator],
        atoms: ase.Atoms,
        temperature: float,
        oscillator: float = 0.0,
    ) -> None:
        super().__init__(points=len(atoms), dimension=3)
        if not temperature > 0 or not oscillator >= 0:
            raise UsageError(
                f"ASETarget: found temperature={temperature} and oscillator={oscillator}, "
                "expected a positive number of kelvin and a spring of at least 0."
            )
        if any(atoms.pbc):
            raise UsageError(
                f"ASETarget: found atoms periodic in {list(map(bool, atoms.pbc))}, expected "
                "a molecule or a cluster. Set atoms.pbc = False."
            )
        self.temperature = temperature
        self.oscillator = oscillator
        self._atoms = atoms.copy()
        self._start = torch.from_numpy(atoms.get_positions())
        # A calculator is no function; its class is, and makes one.
        self._atoms.calc = calculator() if callable(calculator) else calculator

    def _energy(self, x: Tensor) -> Tensor:
        return _BoltzmannEnergy.apply(x, self) + self._spring(x)

    def _energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, forces = self._calculate(x)
        return energy + self._spring(x), forces - self.oscillator * centred_dense(x)

    def _spring(self, x: Tensor) -> Tensor:
        return 0.5 * self.oscillator * centred_dense(x).square().sum((-2, -1))

    def _calculate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and forces by the calculator, in kT and kT/Å; not a number where it fails."""
        flat = x.detach().cpu().double().reshape(-1, self.points, self.dimension).numpy()
        energies, forces = np.empty(len(flat)), np.empty(flat.shape)
        for i, positions in enumerate(flat):
            energies[i], forces[i] = self._evaluate(positions)
        kt = BOLTZMANN * self.temperature
        return (
            torch.from_numpy(energies / kt).to(x).reshape(x.shape[:-2]),
            torch.from_numpy(forces / kt).to(x).reshape(x.shape),
        )

    def _evaluate(self, positions: np.ndarray) -> tuple[float, np.ndarray | float]:
        if not np.isfinite(positions).all():
            return float("nan"), float("nan")
        self._atoms.set_positions(positions)
        return self._atoms.get_potential_energy(), self._atoms.get_forces()

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Draws by Hamiltonian Monte Carlo in a few chains that start from the given atoms.

        Centred, float32, shape (count, n, 3). The chains stay in the basin of the start unless kT
        is enough to leave it; the order of the atoms and their handedness are kept.

        Raises:
            UsageError: If `count` is negative.
            NumericalError: If the energy at the start is not a number.
        """
        if self.draws_nothing(count):
            return torch.empty(0, self.points, self.dimension)
        source = rng.generator(seed, "targets", "chains")
        chains = min(CHAINS, count)
        state = State.at(self, centred_dense(self._start).repeat(chains, 1, 1))
        if not torch.isfinite(state.energy).all():
            raise NumericalError(
                "ASETarget: the energy of the given atoms is not a number. Relax them first."
            )
        ones = torch.ones(chains, dtype=torch.float64)
        step = FIRST_STEP * ones
        kept: list[Tensor] = []
        for sweep in range(BURN_IN + EVERY * -(-count // chains)):
            # At λ = 1 the Gaussian end of the path has no weight, whatever its scale.
            state, accepted = move(self, state, ones, 1.0, step, LEAPFROG, source)
            if sweep < BURN_IN:
                step = step * torch.exp((accepted.mean() - ACCEPTANCE_GOAL) / (1 + sweep) ** 0.5)
            elif (sweep - BURN_IN + 1) % EVERY == 0:
                kept.append(state.x)
        return centred_dense(torch.cat(kept)[:count]).float()

    @cached_property
    def thermodynamics(self) -> Thermodynamics:
        """Not known for a calculator.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "ASETarget: log Z of a calculator's energy is not known; use energy() for unnormalised "
            "log-densities (−U)."
        )


class _BoltzmannEnergy(torch.autograd.Function):
    """The calculator's energy in kT, with its forces as derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: ASETarget) -> Tensor:
        energy, forces = target._calculate(x)
        ctx.save_for_backward(forces)
        return energy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_energy: Tensor) -> tuple[Tensor, None]:
        (forces,) = ctx.saved_tensors
        return -by_energy[..., None, None] * forces, None
