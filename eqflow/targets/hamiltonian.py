r"""Hamiltonian Monte Carlo on centred clouds, many chains at once.

The energy of a chain is a point on the straight path from a Gaussian to the target,
:math:`U_\lambda = (1 - \lambda)\, \lVert x \rVert^2 / 2\sigma^2 + \lambda\, U`; `λ = 1` is the
target itself. Momenta are standard normal on the zero-mean subspace, a trajectory is a few
leapfrog steps with a step size scaled at random by ±20 % (so that no oscillation is in step with
it), and a proposal whose energy is not a number is never accepted.

Reference: MCMC using Hamiltonian dynamics (Neal, 2011), arXiv:1206.1901, section 5.2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eqflow import rng

if TYPE_CHECKING:
    from eqflow.targets.base import AbstractTarget

# HMC is cheapest at 0.65 for smooth targets in high dimension; a little more is safer.
ACCEPTANCE_GOAL = 0.75
STEP_JITTER = 0.2

Index = Tensor | slice | tuple[Tensor, ...]


@dataclass(frozen=True)
class State:
    """Chains and what is known about where they stand; leading axes are free.

    Attributes:
        x: Centred positions, shape (…, n, d).
        energy: Target energy U, shape (…).
        forces: `−∇U`, shape (…, n, d).
    """

    x: Tensor
    energy: Tensor
    forces: Tensor

    @classmethod
    def at(cls, target: AbstractTarget, x: Tensor) -> State:
        """The state at given positions."""
        return cls(x, *target.energy_and_forces(x))

    @classmethod
    def join(
        cls, combine: Callable[[tuple[Tensor, ...]], Tensor], states: Sequence[State]
    ) -> State:
        """`torch.cat` or `torch.stack` of several states."""
        return cls(
            combine(tuple(state.x for state in states)),
            combine(tuple(state.energy for state in states)),
            combine(tuple(state.forces for state in states)),
        )

    def chosen(self, index: Index) -> State:
        """The chains that an index of the leading axes picks."""
        return State(self.x[index], self.energy[index], self.forces[index])

    def flattened(self) -> State:
        """Two leading axes made one, (K, L, …) to (K·L, …)."""
        return State(self.x.flatten(0, 1), self.energy.flatten(0, 1), self.forces.flatten(0, 1))

    def unflattened(self, rows: int) -> State:
        """One leading axis made two, (K·L, …) to (K, L, …) with `rows` = K."""
        shape = (rows, -1)
        return State(
            self.x.unflatten(0, shape),
            self.energy.unflatten(0, shape),
            self.forces.unflatten(0, shape),
        )

    def replaced(self, chosen: Tensor, other: State) -> State:
        """`other` where `chosen`, of the shape of the energy, else this."""
        wide = chosen[..., None, None]
        return State(
            torch.where(wide, other.x, self.x),
            torch.where(chosen, other.energy, self.energy),
            torch.where(wide, other.forces, self.forces),
        )


def gaussian(shape: tuple[int, ...], scale: float, like: Tensor, source: torch.Generator) -> Tensor:
    """Normal draws on the zero-mean subspace, `shape` = (…, n, d)."""
    x = rng.normal(shape, like, source)
    return scale * (x - x.mean(-2, keepdim=True))


def gaussian_energy(x: Tensor, scale: float) -> Tensor:
    """`‖x‖² / 2σ²` of clouds (…, n, d)."""
    return x.square().sum((-2, -1)) / (2 * scale**2)


def move(
    target: AbstractTarget,
    state: State,
    fraction: Tensor,
    scale: float,
    step: Tensor,
    leapfrog: int,
    source: torch.Generator,
) -> tuple[State, Tensor]:
    """One trajectory for every chain.

    Args:
        target: Its `energy_and_forces` drives the chains.
        state: M chains.
        fraction: λ of each chain, shape (M,).
        scale: σ of the Gaussian at λ = 0.
        step: Step size of each chain, shape (M,), in the unit of the positions.
        leapfrog: Steps of a trajectory.
        source: Of the momenta and the decisions.

    Returns:
        The chains after the move, and the acceptance probability of each proposal, shape (M,).
    """
    mix, inverse = fraction[:, None, None], scale**-2

    def total_energy(at: State, momenta: Tensor) -> Tensor:
        path = (1 - fraction) * gaussian_energy(at.x, scale) + fraction * at.energy
        return path + 0.5 * momenta.square().sum((-2, -1))

    def force(at: State) -> Tensor:
        return mix * at.forces - ((1 - mix) * inverse) * at.x

    start = gaussian(tuple(state.x.shape), 1.0, state.x, source)
    jitter = 1 + STEP_JITTER * (2 * rng.uniform(tuple(step.shape), state.x, source) - 1)
    length = (step * jitter)[:, None, None]
    momenta = start + 0.5 * length * force(state)
    proposal = state
    for i in range(leapfrog):
        proposal = State.at(target, proposal.x + length * momenta)
        momenta = momenta + (length if i < leapfrog - 1 else 0.5 * length) * force(proposal)
    loss = total_energy(proposal, momenta) - total_energy(state, start)
    # exp(−NaN) is NaN, then 0: such a proposal is never accepted.
    acceptance = torch.exp(-loss).nan_to_num(nan=0.0).clamp(max=1)
    accepted = rng.uniform(tuple(step.shape), state.x, source) < acceptance
    return state.replaced(accepted, proposal), acceptance
