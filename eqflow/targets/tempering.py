r"""Parallel tempering from an exactly sampled Gaussian to a target, many ladders at once.

Rung `k` samples `exp(−U_k)` with :math:`U_k = G + \lambda_k (U - G)`, `G = ‖x‖²/2σ²`, `λ_0 = 0`,
`λ_K = 1`. A sweep draws rung 0 afresh (it is a Gaussian on the zero-mean subspace), moves the
other rungs by Hamiltonian Monte Carlo and swaps neighbours, even pairs and odd pairs in turn, with
probability :math:`\min(1, e^{(\lambda' - \lambda)(V(x') - V(x))})`, `V = U − G`. So fresh
independent clouds travel up to `λ = 1`, and the same samples give log Z by Bennett's ratio between
neighbours. Ladders run side by side and never meet: errors come from their scatter.

A pilot places the rungs: it anneals the same Gaussian draws, each time going as far as the wanted
swap acceptance allows, and leaves starting points and step sizes behind. No spacing has to be
known, not even for the `r⁻¹²` core of Lennard-Jones, whose first rung is at about 1e-9.

Reference: Non-reversible parallel tempering (Syed, Bouchard-Côté, Deligiannidis, Doucet, 2021),
arXiv:1905.02939; Sequential Monte Carlo samplers (Del Moral, Doucet, Jasra, 2006),
doi:10.1111/j.1467-9868.2006.00553.x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import NumericalError, UsageError
from eqflow.targets.free_energy import Estimate, bennett, standard_error
from eqflow.targets.hamiltonian import ACCEPTANCE_GOAL, State, gaussian, gaussian_energy, move

if TYPE_CHECKING:
    from eqflow.targets.base import AbstractTarget

# The pilot gives up beyond this many rungs: the Gaussian is then no start for this target.
RUNG_LIMIT = 500
PILOT_MOVES = 12
SMALLEST_GAP = 1e-25


@dataclass(frozen=True)
class Tempering:
    """Settings of a run.

    Attributes:
        ladders: Independent ladders side by side; at least 32, for the pilot learns from them.
        burn_in: Sweeps before the first draw, in which step sizes still adapt.
        every: Sweeps from one draw of a ladder to its next.
        leapfrog: Steps of a Hamiltonian trajectory.
        swap_acceptance: Wanted between neighbours; places the rungs.
    """

    ladders: int = 256
    burn_in: int = 50
    every: int = 2
    leapfrog: int = 8
    swap_acceptance: float = 0.5

    def __post_init__(self) -> None:
        if self.ladders < 32 or self.burn_in < 0 or self.every < 1 or self.leapfrog < 1:
            raise UsageError(
                f"{self}: expected ladders ≥ 32, burn_in ≥ 0, every ≥ 1, leapfrog ≥ 1."
            )
        if not 0.05 <= self.swap_acceptance <= 0.95:
            raise UsageError(f"{self}: expected swap_acceptance between 0.05 and 0.95.")


@dataclass(frozen=True)
class Tempered:
    """What a run leaves behind.

    Attributes:
        x: Draws at `λ = 1`, centred, float64, shape (S, L, n, d): S draws of each of L ladders.
        energy: Their energies, shape (S, L).
        difference: `V = U − G` on every rung after each sweep, shape (K + 1, L, T).
        fractions: λ of the rungs, shape (K + 1,).
        step: Step sizes, shape (K,), of rungs 1 to K.
        acceptance: Mean acceptance of the moves of rungs 1 to K, shape (K,).
        swaps: Mean acceptance of the swaps between rungs k and k + 1, shape (K,).
        reference_log_z: log Z of the Gaussian.
    """

    x: Tensor
    energy: Tensor
    difference: Tensor
    fractions: Tensor
    step: Tensor
    acceptance: Tensor
    swaps: Tensor
    reference_log_z: float

    @cached_property
    def _bennett(self) -> tuple[Tensor, Tensor]:
        gap = self.fractions.diff()[:, None, None]
        return bennett(gap * self.difference[:-1], gap * self.difference[1:])

    @property
    def log_z(self) -> Estimate:
        """Log Z of the target by Bennett's ratio along the ladder."""
        values, shifts = self._bennett
        return Estimate(self.reference_log_z - float(values.sum()), standard_error(shifts.sum(0)))

    @property
    def mean_energy(self) -> Estimate:
        """`⟨U⟩` in kT."""
        return Estimate(float(self.energy.mean()), standard_error(self._energy_shifts))

    @property
    def entropy(self) -> Estimate:
        """`⟨U⟩ + log Z` in nats; its error knows that both come from the same ladders."""
        value = self.mean_energy.value + self.log_z.value
        return Estimate(value, standard_error(self._energy_shifts - self._bennett[1].sum(0)))

    @property
    def effective_size(self) -> float:
        """Independent draws that would give the mean energy as well as these do."""
        return float(self.energy.var()) / self.mean_energy.error**2

    @property
    def _energy_shifts(self) -> Tensor:
        per_ladder = self.energy.mean(0)
        return (per_ladder - per_ladder.mean()) / per_ladder.numel()


class _Ladder(NamedTuple):
    fractions: Tensor  # (K + 1,)
    state: State  # (K + 1, L, …)
    step: Tensor  # (K,)


def temper(target: AbstractTarget, count: int, seed: int = 0) -> Tempered:
    """Run the sampler until there are at least `count` draws, `target.tempering` saying how.

    Args:
        target: Its density must be proper on the zero-mean subspace.
        count: Wanted draws; rounded up to a multiple of the ladders.
        seed: The run is a function of it on CPU.

    Raises:
        UsageError: If `count` is not positive.
        NumericalError: If no ladder leads from the Gaussian to the target.
    """
    if count < 1:
        raise UsageError(f"temper: found count={count}, expected at least 1.")
    settings, scale = target.tempering, target.reference_scale
    source = rng.generator(seed, "targets", "tempering")
    with torch.no_grad():
        ladder = _pilot(target, source)
        rungs = ladder.step.numel()
        state, step = ladder.state, ladder.step.clone()
        fraction = ladder.fractions[1:].repeat_interleave(settings.ladders)
        draws = math.ceil(count / settings.ladders)
        kept_x, kept_energy, kept_difference = [], [], []
        acceptance, swaps = torch.zeros_like(step), torch.zeros_like(step)
        sweeps = settings.burn_in + draws * settings.every
        for sweep in range(sweeps):
            fresh = _reference(target, settings.ladders, source)
            moved, accepted = move(
                target,
                state.chosen(slice(1, None)).flattened(),
                fraction,
                scale,
                step.repeat_interleave(settings.ladders),
                settings.leapfrog,
                source,
            )
            rates = accepted.reshape(rungs, -1).mean(1)
            state = State.join(
                torch.cat,
                [fresh.unflattened(1), moved.unflattened(rungs)],
            )
            state, swapped = _swap(state, ladder.fractions, scale, sweep % 2, source)
            if sweep < settings.burn_in:
                step = step * torch.exp((rates - ACCEPTANCE_GOAL) / (1 + sweep) ** 0.5)
                continue
            acceptance += rates / (sweeps - settings.burn_in)
            swaps += swapped / (sweeps - settings.burn_in)
            kept_difference.append(state.energy - gaussian_energy(state.x, scale))
            if (sweep - settings.burn_in + 1) % settings.every == 0:
                kept_x.append(state.x[-1])
                kept_energy.append(state.energy[-1])
    return Tempered(
        torch.stack(kept_x),
        torch.stack(kept_energy),
        torch.stack(kept_difference, -1),
        ladder.fractions,
        step,
        acceptance,
        swaps,
        0.5 * target.degrees_of_freedom * math.log(2 * math.pi * scale**2),
    )


def _reference(target: AbstractTarget, count: int, source: torch.Generator) -> State:
    like = torch.empty(0, dtype=torch.float64)
    shape = (count, target.points, target.dimension)
    return State.at(target, gaussian(shape, target.reference_scale, like, source))


def _swap(
    state: State, fractions: Tensor, scale: float, parity: int, source: torch.Generator
) -> tuple[State, Tensor]:
    """Swap neighbours (k, k + 1) for k of one parity; the swap probability of all pairs, (K,)."""
    difference = state.energy - gaussian_energy(state.x, scale)
    ratio = fractions.diff()[:, None] * difference.diff(dim=0)
    probability = torch.exp(ratio).nan_to_num(nan=0.0).clamp(max=1)
    chosen = rng.uniform(tuple(ratio.shape), state.x, source) < probability
    chosen[1 - parity :: 2] = False
    order = torch.arange(fractions.numel())[:, None].expand_as(difference).clone()
    order[:-1] += chosen.long()
    order[1:] -= chosen.long()
    ladder = torch.arange(difference.shape[1]).expand_as(order)
    return state.chosen((order, ladder)), probability.mean(1)


def _pilot(target: AbstractTarget, source: torch.Generator) -> _Ladder:
    """Anneal Gaussian draws to the target, leaving a rung wherever swaps want one."""
    settings, scale = target.tempering, target.reference_scale
    state = _reference(target, settings.ladders, source)
    step = torch.full((settings.ladders,), 0.5 * scale, dtype=torch.float64)
    fractions, states, steps = [0.0], [state], []
    while fractions[-1] < 1:
        difference = state.energy - gaussian_energy(state.x, scale)
        following = _next_fraction(difference, fractions[-1], settings.swap_acceptance)
        if len(fractions) > RUNG_LIMIT or not following > fractions[-1]:
            raise NumericalError(
                f"{target!r}: no ladder of at most {RUNG_LIMIT} rungs leads from a Gaussian of "
                f"scale {scale:g} to the target; it stopped at λ = {fractions[-1]:.3g}. "
                "Set reference_scale to the typical size of a coordinate, and check that the "
                "energy is finite there."
            )
        weights = torch.softmax(-(following - fractions[-1]) * difference, 0)
        state = state.chosen(_systematic(weights, source))
        fraction = torch.full_like(step, following)
        for i in range(PILOT_MOVES):
            state, accepted = move(target, state, fraction, scale, step, settings.leapfrog, source)
            step = step * torch.exp((accepted.mean() - ACCEPTANCE_GOAL) * 2 / (1 + i) ** 0.5)
        fractions.append(following)
        states.append(state)
        steps.append(step[0])
    rungs = torch.tensor(fractions, dtype=torch.float64)
    return _Ladder(rungs, State.join(torch.stack, states), torch.stack(steps))


def _next_fraction(difference: Tensor, fraction: float, goal: float) -> float:
    """The λ whose swaps with `fraction` would be accepted with probability `goal`, 1 at most.

    The acceptance between here and λ' is estimated by reweighting the same draws.
    """

    def acceptance(gap: float) -> float:
        weights = torch.softmax(-gap * difference, 0)
        pairs = torch.exp(gap * (difference[None, :] - difference[:, None])).clamp(max=1)
        return float((pairs.mean(0) * weights).sum())

    if acceptance(1 - fraction) >= goal:
        return 1.0
    if not acceptance(SMALLEST_GAP) >= goal:
        return fraction
    # The gap spans many orders of magnitude, so the bisection is in its logarithm.
    low, high = math.log(SMALLEST_GAP), math.log(1 - fraction)
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if acceptance(math.exp(middle)) >= goal else (low, middle)
    return fraction + math.exp(low)


def _systematic(weights: Tensor, source: torch.Generator) -> Tensor:
    """Indices drawn in proportion to `weights` with the least scatter, shape (L,)."""
    count = weights.numel()
    points = (torch.arange(count) + rng.uniform((1,), weights, source)) / count
    return torch.searchsorted(weights.cumsum(0), points).clamp(max=count - 1)
