r"""Integrals over four points in the plane under a pair energy, to many digits.

Let `y_i = x_i − x_1`. In each coordinate the zero-mean subspace with its own measure `dz`
satisfies `dz = n^{-1/2} dy`: the full measure is `d(√n x̄) dz` and also `dx_1 dy`, and at fixed
`y`, `dx_1 = dx̄`. With point 2 put on the first axis at distance `r`,

.. math:: Z = n^{-d/2} \int dy\, e^{-U(0, y)}
            = \tfrac14 \, 2\pi \int r\,dr\, e^{-u(r)} I(r), \quad
          I(r) = \int\!\!\int g_r(y_3)\, e^{-u(|y_3 - y_4|)}\, g_r(y_4)\, dy_3\, dy_4,

with :math:`g_r(y) = e^{-u(|y|) - u(|y - (r, 0)|)}`. The inner integral is a convolution, done by
FFT on a grid with room for no wrap-around. The integrand is smooth and vanishes at the boundary
(and, like `e^{−u(0)}`, at coincident points), so the trapezoid rule converges faster than any
power of the spacing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class FourPointQuadrature:
    """`log Z`, the mean energy and the pair-distance density of four points in the plane.

    Args:
        pair_energy: Energy in kT of squared distances.
        reach: Distance beyond which `exp(−u)` is negligible.
        spacing: Of the grid, in the same unit.

    Attributes:
        distances: Grid of pair distances, shape (R,).
        density: Probability density of a pair distance on that grid, shape (R,).
        log_z: In nats, for the measure of the zero-mean subspace.
        mean_energy: `⟨U⟩` in kT.
        virial: `⟨x·∇U⟩`, exactly 6: a check of the whole calculation.
    """

    def __init__(
        self, pair_energy: Callable[[Tensor], Tensor], reach: float, spacing: float
    ) -> None:
        self.distances = torch.arange(1, round(reach / spacing) + 1, dtype=torch.float64) * spacing
        weight = self.distances * torch.exp(-pair_energy(self.distances.square()))
        weight = weight * _inner(pair_energy, self.distances, reach, spacing)
        total = weight.sum() * spacing
        self.density = weight / total
        self.log_z = math.log(float(total) * 2 * math.pi / 4)

        square = self.distances.square().requires_grad_()
        energy = pair_energy(square)
        (slope,) = torch.autograd.grad(energy.sum(), square)
        # All six pairs are alike, so a mean over the target is six times a mean over one distance.
        self.mean_energy = self._mean_over_pairs(energy.detach())
        self.virial = self._mean_over_pairs(2 * square.detach() * slope)

    @property
    def entropy(self) -> float:
        """`⟨U⟩ + log Z` in nats."""
        return self.mean_energy + self.log_z

    def probability(self, edges: Tensor) -> Tensor:
        """Probability that a pair distance falls between consecutive `edges`, (H + 1,) to (H,)."""
        spacing = self.distances[0]
        cumulative = torch.cumsum(self.density * spacing, 0) - 0.5 * self.density * spacing
        # The running trapezoid sum is smooth; between grid points a straight line is good to h².
        place = (edges.to(torch.float64) / spacing - 1).clamp(0, len(self.distances) - 1 - 1e-9)
        left = place.floor().long()
        inside = place - left
        at = cumulative[left] * (1 - inside) + cumulative[left + 1] * inside
        return at[1:] - at[:-1]

    def _mean_over_pairs(self, values: Tensor) -> float:
        return 6 * float((self.density * values).sum() * self.distances[0])


def _inner(
    pair_energy: Callable[[Tensor], Tensor], distances: Tensor, reach: float, spacing: float
) -> Tensor:
    """`I(r)` for each distance, (R,)."""
    half = round(reach / spacing)
    # g needs a box of 2·reach, and the kernel another reach to either side.
    size = 4 * half
    axis = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64) * spacing
    across = axis.square().unsqueeze(0)
    kernel = torch.exp(-pair_energy(axis.square().unsqueeze(1) + across))
    spectrum = torch.fft.rfft2(kernel)
    values = []
    for r in distances:
        shifted = torch.exp(-pair_energy((axis - r).square().unsqueeze(1) + across))
        g = kernel * shifted
        values.append((g * torch.fft.irfft2(torch.fft.rfft2(g) * spectrum, s=g.shape)).sum())
    return torch.stack(values) * spacing**4
