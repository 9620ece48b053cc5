r"""A multimodal density on planar clouds that is known in closed form, with every symmetry exact.

Each of `K` shapes is a template cloud `μ_k`; a draw is one of them, reordered, rotated or
reflected at random, plus centred Gaussian noise of scale `σ`. The average over rotations of the
plane is a Bessel function:

.. math:: p(x) = \sum_k w_k \frac{1}{n!} \sum_\pi \frac12 \sum_\pm
            \frac{e^{-(\lVert x \rVert^2 + \lVert \mu_k \rVert^2) / 2\sigma^2}}
                 {(2\pi\sigma^2)^{(n-1)d/2}}
            I_0\!\Big(\frac{|c^\pm_\pi|}{\sigma^2}\Big),

with `x` and `μ` as complex numbers, :math:`c^+_\pi = \sum_i \bar\mu_{\pi(i)} x_i` and
:math:`c^-_\pi = \sum_i \mu_{\pi(i)} x_i`. It integrates to one on the zero-mean subspace (`log Z =
0`), so a model's distance from it is free of any constant that had to be estimated.

Reference: the integral over the circle is Abramowitz and Stegun (1964), 9.6.16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import ShapeError, UsageError
from eqflow.targets.base import AbstractTarget, Thermodynamics, centred_dense
from eqflow.targets.free_energy import Estimate

# The sum over orders has n! terms.
MOST_POINTS = 7
# Squared moduli below this count as this: the root of zero has no derivative.
SMALLEST_SQUARE = 1e-24
ENTROPY_DRAWS = 40_000

SQUARE = ((1.0, 1.0), (1.0, -1.0), (-1.0, -1.0), (-1.0, 1.0))
LINE = ((-3.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (3.0, 0.0))
STAR = ((0.0, 0.0), (0.0, 2.0), (3.0**0.5, -1.0), (-(3.0**0.5), -1.0))


class GaussianMixture(AbstractTarget):
    """Noisy copies of a few planar shapes: by default four points in a square, a line or a star.

    Args:
        shapes: Templates, shape (K, n, 2), n at most 7; they are centred.
        scale: Standard deviation of the noise of a coordinate, in the unit of the templates.
        weights: Probability of each shape, K positive numbers, normalised here; equal by default.

    Raises:
        ShapeError: If the templates are not (K, n, 2).
        UsageError: If another argument is out of range.

    >>> target = GaussianMixture()
    >>> target.log_z.value, tuple(target.sample(5).shape)
    (0.0, (5, 4, 2))
    """

    def __init__(
        self,
        shapes: Tensor | Sequence[Sequence[Sequence[float]]] = (SQUARE, LINE, STAR),
        scale: float = 0.3,
        weights: Sequence[float] | None = None,
    ) -> None:
        templates = torch.as_tensor(shapes, dtype=torch.float64)
        if templates.dim() != 3 or templates.shape[2] != 2 or 0 in templates.shape:
            raise ShapeError(
                f"GaussianMixture.shapes: found {tuple(templates.shape)}, expected (K, n, 2)."
            )
        super().__init__(points=templates.shape[1], dimension=2)
        if self.points > MOST_POINTS:
            raise UsageError(
                f"GaussianMixture: found {self.points} points, expected at most {MOST_POINTS}: "
                "the density is a sum over all their orders."
            )
        if not scale > 0:
            raise UsageError(f"GaussianMixture: found scale={scale}, expected a positive number.")
        share = torch.ones(len(templates)) if weights is None else torch.as_tensor(weights)
        if share.shape != templates.shape[:1] or not (share > 0).all():
            raise UsageError(
                f"GaussianMixture: found weights={weights}, "
                f"expected {len(templates)} positive numbers."
            )
        self.shapes = centred_dense(templates)
        self.scale = scale
        self.weights = share.to(torch.float64) / share.sum()
        orders = torch.tensor(list(itertools.permutations(range(self.points))))
        self._ordered = self.shapes[:, orders]  # (K, n!, n, 2)

    def _energy(self, x: Tensor) -> Tensor:
        x = centred_dense(x)
        shapes, ordered = self.shapes.to(x), self._ordered.to(x)
        ax, ay = x[..., 0], x[..., 1]
        bx, by = ordered[..., 0].flatten(0, 1).T, ordered[..., 1].flatten(0, 1).T
        # Real and imaginary parts of c⁺ and of c⁻, each (…, K · n!).
        same, cross = (ax @ bx, ay @ by), (ay @ bx, ax @ by)
        moduli = torch.stack(
            [
                (same[0] + same[1]).square() + (cross[0] - cross[1]).square(),
                (same[0] - same[1]).square() + (cross[0] + cross[1]).square(),
            ],
            -1,
        )
        z = moduli.clamp(min=SMALLEST_SQUARE).sqrt() / self.scale**2
        z = z.unflatten(-2, (len(shapes), -1)).flatten(-2)  # (…, K, 2 n!)
        averaged = torch.logsumexp(z + torch.special.i0e(z).log(), -1) - math.log(z.shape[-1])
        norms = x.square().sum((-2, -1)).unsqueeze(-1) + shapes.square().sum((-2, -1))
        each = self.weights.to(x).log() + averaged - norms / (2 * self.scale**2)
        constant = 0.5 * self.degrees_of_freedom * math.log(2 * math.pi * self.scale**2)
        return constant - torch.logsumexp(each, -1)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Exact independent draws, float32, shape (count, n, 2); a function of `seed`."""
        if self.draws_nothing(count):
            return torch.empty(0, self.points, self.dimension)
        return self._draw(count, seed).float()

    def _draw(self, count: int, seed: int) -> Tensor:
        source = rng.generator(seed, "targets", "mixture")
        bounds = self.weights.cumsum(0)
        which = torch.searchsorted(bounds, rng.uniform((count,), bounds, source))
        x = self.symmetrised(self.shapes[which.clamp(max=len(bounds) - 1)], source)
        noise = rng.normal(tuple(x.shape), x, source)
        return centred_dense(x + self.scale * noise)

    @property
    def log_z(self) -> Estimate:
        """Zero, exactly: the density integrates to one."""
        return Estimate(0.0, 0.0)

    @cached_property
    def thermodynamics(self) -> Thermodynamics:
        """`log Z = 0` exactly; the entropy as a mean over independent draws."""
        energy = self.energy(self._draw(ENTROPY_DRAWS, seed=0))
        mean = Estimate(float(energy.mean()), float(energy.std()) / ENTROPY_DRAWS**0.5)
        return Thermodynamics(self.log_z, mean, mean)
