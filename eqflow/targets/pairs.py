r"""Energies that are a sum over pairs, with a harmonic spring to the centre if wanted.

:math:`U(x) = \sum_{i<j} \varphi(r_{ij}^2) + \tfrac{k}{2} \sum_i \lVert x_i - \bar x \rVert^2`,
hence :math:`-\nabla_i U = -2 \sum_j \varphi'(r_{ij}^2)\,(x_i - x_j) - k\,(x_i - \bar x)`.

The differences are formed one coordinate at a time, as (…, n, n) matrices: smaller than one tensor
(…, n, n, d), and exact far from the origin where a Gram matrix is not.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from eqflow.targets.base import AbstractTarget, centred_dense

# Pairs handled at once in `energy_and_forces`: keeps every intermediate in the cache of one core.
PAIRS_AT_ONCE = 60_000


class AbstractPairTarget(AbstractTarget):
    """A target whose energy is a sum over pairs.

    Args:
        points: Number of points, n.
        dimension: Coordinates of a point, d.
        oscillator: Spring constant `k` of each point to the centre, in kT per squared length.
    """

    zero_square: float
    """A squared distance at which the pair energy vanishes: stands on the diagonal."""

    def __init__(self, points: int, dimension: int, oscillator: float = 0.0) -> None:
        super().__init__(points, dimension)
        self.oscillator = oscillator

    @abstractmethod
    def pair_energy(self, square: Tensor) -> Tensor:
        """`φ` of squared distances, in kT, with the shape of `square`."""

    @abstractmethod
    def pair_slope(self, square: Tensor) -> Tensor:
        """`φ'`, the derivative by the squared distance."""

    def _energy(self, x: Tensor) -> Tensor:
        energy = 0.5 * self.pair_energy(self._squares(self._differences(x))).sum((-2, -1))
        if self.oscillator:
            energy = energy + 0.5 * self.oscillator * centred_dense(x).square().sum((-2, -1))
        return energy

    def _forces(self, x: Tensor) -> Tensor:
        differences = self._differences(x)
        slope = -2 * self.pair_slope(self._squares(differences))
        forces = torch.stack([(slope * difference).sum(-1) for difference in differences], -1)
        return forces - self.oscillator * centred_dense(x) if self.oscillator else forces

    def _energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.reshape(-1, self.points, self.dimension)
        parts = [
            (self._energy(part), self._forces(part))
            for part in flat.split(max(1, PAIRS_AT_ONCE // self.points**2))
        ]
        energy, forces = (torch.cat(values) for values in zip(*parts, strict=True))
        return energy.reshape(x.shape[:-2]), forces.reshape(x.shape)

    def _differences(self, x: Tensor) -> list[Tensor]:
        """`x_i − x_j` for each coordinate, d tensors of shape (…, n, n)."""
        return [column.unsqueeze(-1) - column.unsqueeze(-2) for column in x.unbind(-1)]

    def _squares(self, differences: list[Tensor]) -> Tensor:
        total = differences[0].square()
        for difference in differences[1:]:
            total = torch.addcmul(total, difference, difference)
        diagonal = torch.eye(self.points, dtype=torch.bool, device=total.device)
        return total.masked_fill(diagonal, self.zero_square)
