r"""Lennard-Jones clusters in a harmonic trap, in the two conventions that circulate.

:math:`U(x) = c \sum_{i<j} (r_{ij}^{-12} - 2 r_{ij}^{-6}) + \tfrac{k}{2} \sum_i \lVert x_i - \bar x
\rVert^2`, with `c = 2` when the sum runs over ordered pairs (`i ≠ j`) and `c = 1` when each pair
counts once. The public LJ13 samples, and the papers that use them, are the ordered sum: their
virial is 36.6 with it, 27 without.

Reference: Equivariant Flows (Köhler, Klein, Noé, 2020), arXiv:2006.02425, section 5.2.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from eqflow.errors import UsageError
from eqflow.targets.base import Thermodynamics
from eqflow.targets.free_energy import Estimate
from eqflow.targets.pairs import AbstractPairTarget
from eqflow.targets.tempering import Tempering

PREFACTOR = {"ordered": 2.0, "unordered": 1.0}

# Squared distances below this count as this: even coincident points have an energy that float32
# can hold (2e30 kT), and no force. No sampler ever gets there.
SMALLEST_SQUARE = 1e-5

# Measured by benchmarks/targets.py: (points, pairs, oscillator) to constants.
MEASURED = {
    (13, "ordered", 1.0): Thermodynamics(
        log_z=Estimate(59.895, 0.015),
        mean_energy=Estimate(-42.963, 0.033),
        entropy=Estimate(16.932, 0.032),
    ),
    (55, "ordered", 1.0): Thermodynamics(
        log_z=Estimate(384.17, 0.18),
        mean_energy=Estimate(-325.71, 0.37),
        entropy=Estimate(58.46, 0.44),
    ),
}


class LennardJones(AbstractPairTarget):
    """Points in 3-D that repel at contact, attract at distance 1 and are held by a spring.

    Args:
        points: Number of points: 13 and 55 are the usual ones.
        pairs: "ordered" sums each pair twice, as the public samples do; "unordered" once.
        oscillator: Spring constant to the centre, positive: without it the cluster evaporates.

    Raises:
        UsageError: If an argument is out of range.

    >>> LennardJones(13).degrees_of_freedom
    36
    """

    zero_square = 1e10

    def __init__(self, points: int = 13, pairs: str = "ordered", oscillator: float = 1.0) -> None:
        if pairs not in PREFACTOR:
            raise UsageError(
                f"LennardJones: found pairs={pairs!r}, expected one of {', '.join(PREFACTOR)}."
            )
        if not oscillator > 0:
            raise UsageError(
                f"LennardJones: found oscillator={oscillator}, expected a positive number: "
                "without a trap the cluster evaporates and no density exists."
            )
        super().__init__(points, dimension=3, oscillator=oscillator)
        self.pairs = pairs
        self.reference_scale = oscillator**-0.5
        self.tempering = (
            Tempering(ladders=256, burn_in=60, every=4, leapfrog=10)
            if points <= 20
            else Tempering(ladders=64, burn_in=60, every=4, leapfrog=10, swap_acceptance=0.3)
        )

    def pair_energy(self, square: Tensor) -> Tensor:
        """`c (r⁻¹² − 2 r⁻⁶)` of squared distances."""
        sixth = square.clamp(min=SMALLEST_SQUARE).reciprocal().pow(3)
        return PREFACTOR[self.pairs] * sixth * (sixth - 2)

    def pair_slope(self, square: Tensor) -> Tensor:
        """Derivative of the pair energy by the squared distance."""
        inverse = square.clamp(min=SMALLEST_SQUARE).reciprocal()
        sixth = inverse * inverse * inverse
        slope = (-6 * PREFACTOR[self.pairs]) * (sixth * (sixth - 1) * inverse)
        return slope.masked_fill(square < SMALLEST_SQUARE, 0)

    @cached_property
    def thermodynamics(self) -> Thermodynamics:
        """Constants measured once for LJ13 and LJ55, by a tempering run for others."""
        known = MEASURED.get((self.points, self.pairs, self.oscillator))
        return known if known is not None else super().thermodynamics
