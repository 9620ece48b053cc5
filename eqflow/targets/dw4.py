r"""DW4: four points in the plane, each pair in a double well.

:math:`U(x) = \sum_{i<j} a\,(d_{ij} - d_0)^4 + b\,(d_{ij} - d_0)^2` with `a = 0.9, b = −4, d₀ = 4`.
The wells of a pair lie at `d₀ ± 1.49`, 4.4 kT below the barrier at `d₀`.

Reference: Equivariant Flows (Köhler, Klein, Noé, 2020), arXiv:2006.02425, section 5.1; parameters
of E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from eqflow.targets.base import Thermodynamics
from eqflow.targets.free_energy import Estimate
from eqflow.targets.pairs import AbstractPairTarget
from eqflow.targets.quadrature import FourPointQuadrature
from eqflow.targets.tempering import Tempering

# Squared distances below this count as this: the root of zero has no derivative.
SMALLEST_SQUARE = 1e-24


class DW4(AbstractPairTarget):
    """Four points in 2-D under a double-well pair energy; log Z by quadrature.

    Coincident points have a finite energy and zero force between them.

    >>> round(DW4().log_z.value, 4)
    29.6672
    """

    well_quartic = 0.9
    well_quadratic = -4.0
    well_centre = 4.0
    zero_square = well_centre**2
    reference_scale = 2.0
    tempering = Tempering(ladders=512, burn_in=60, every=4, leapfrog=8)

    def __init__(self) -> None:
        super().__init__(points=4, dimension=2)

    def pair_energy(self, square: Tensor) -> Tensor:
        """`a (d − d₀)⁴ + b (d − d₀)²` of squared distances."""
        offset = (square.clamp(min=SMALLEST_SQUARE).sqrt() - self.well_centre).square()
        return offset * (self.well_quartic * offset + self.well_quadratic)

    def pair_slope(self, square: Tensor) -> Tensor:
        """Derivative of the pair energy by the squared distance."""
        distance = square.clamp(min=SMALLEST_SQUARE).sqrt()
        offset = distance - self.well_centre
        by_distance = offset * (4 * self.well_quartic * offset.square() + 2 * self.well_quadratic)
        return 0.5 * by_distance / distance

    @cached_property
    def quadrature(self) -> FourPointQuadrature:
        """Integrals over the target on a grid, exact to about 1e-10."""
        return FourPointQuadrature(self.pair_energy, reach=8.0, spacing=0.125)

    @cached_property
    def thermodynamics(self) -> Thermodynamics:
        """Constants by quadrature; the error is the change when the grid is coarsened by half."""
        fine = self.quadrature
        coarse = FourPointQuadrature(self.pair_energy, reach=8.0, spacing=0.25)
        errors = [
            abs(fine.log_z - coarse.log_z),
            abs(fine.mean_energy - coarse.mean_energy),
            abs(fine.entropy - coarse.entropy),
        ]
        values = [fine.log_z, fine.mean_energy, fine.entropy]
        return Thermodynamics(*(Estimate(*pair) for pair in zip(values, errors, strict=True)))
