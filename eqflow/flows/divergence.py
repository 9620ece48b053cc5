r"""Divergence of a velocity field on packed clouds: exact, Hutchinson, Hutch++.

Fields here are centred and translation invariant, so the trace of the Jacobian on the zero-mean
subspace is the trace over all coordinates; estimators project their probes onto the subspace, which
removes the variance of the null directions. Features beside positions have no such directions.

One interface: `probes` draws what stays fixed during a solve, and calling the object gives velocity
and trace. An estimator with `K` probes returns `K` independent estimates a cloud, in columns: their
mean is the estimate, their spread its standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.exact import Exact
from eqflow.flows.field_at import Pullback, carries_tangents, features_of
from eqflow.flows.trace import AbstractDivergence, Trace, Velocity
from eqflow.geometry import Segments, centred


class Hutchinson(AbstractDivergence):
    r"""Hutchinson's estimator, `tr J ≈ εᵀ J ε`, with `ε` projected onto the zero-mean subspace.

    Args:
        probes: Number of probes, each an independent estimate.
        distribution: "rademacher" (entries ±1) has the smaller variance; "gaussian" is the
            published flow's on molecules.

    Reference: FFJORD (Grathwohl et al., 2019), arXiv:1810.01367, section 3.1.
    """

    def __init__(
        self, probes: int = 1, distribution: Literal["rademacher", "gaussian"] = "rademacher"
    ) -> None:
        _require_probes(probes)
        if distribution not in ("rademacher", "gaussian"):
            raise UsageError(
                f"divergence.distribution: found {distribution!r}, "
                "expected 'rademacher' or 'gaussian'."
            )
        self.count = probes
        self.distribution = distribution

    def probes(
        self, x: Tensor, clouds: Segments, source: torch.Generator, features: int = 0
    ) -> Tensor:
        """Projected probes, shape (probes, N, d + features)."""
        draw = rng.rademacher if self.distribution == "rademacher" else rng.normal
        drawn = [draw(tuple(x.shape), x, source) for _ in range(self.count)]
        return torch.stack([centred(probe, clouds, features) for probe in drawn])

    def estimates(self) -> int:
        """One a probe."""
        return self.count

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity, an estimate a probe, and the Jacobian's norm.

        One probe goes forward with the state where the field carries tangents, `J ε`; several
        share a graph backwards, `εᵀ J`. The estimate is the same number.
        """
        if len(probes) == 1 and carries_tangents(velocity):
            value, pushed = velocity.pushforward(x, probes[0])
            estimate = clouds.sum((pushed * probes[0]).sum(-1))
            return Trace(value, estimate.unsqueeze(1), clouds.sum(pushed.square().sum(-1)))
        pullback = Pullback(velocity, x)
        rows = [pullback(probe) for probe in probes]  # εᵀ J
        estimates = [
            clouds.sum((row * probe).sum(-1)) for row, probe in zip(rows, probes, strict=True)
        ]
        norms = [clouds.sum(row.square().sum(-1)) for row in rows]
        return Trace(pullback.value, torch.stack(estimates, 1), torch.stack(norms, 1).mean(1))


class HutchPlusPlus(AbstractDivergence):
    r"""Hutch++: the trace exactly on a sketched subspace `Q`, Hutchinson on the rest.

    :math:`\mathrm{tr} J = \mathrm{tr}(Q^\top J Q) + \mathbb{E}\, g^\top R J R g`, `R = I − Q Qᵀ`,
    with `Q` an orthonormal basis of `Jᵀ S`. The identity holds for any orthonormal `Q`, so `Q` is a
    constant to the derivative and the gradient stays unbiased.

    Args:
        probes: Number of residual probes `g`, each an independent estimate given the sketch.
        sketch: Number of columns of `S`.

    Reference: Hutch++: Optimal Stochastic Trace Estimation (Meyer et al., 2021), arXiv:2010.09649,
    algorithm 1.
    """

    def __init__(self, probes: int = 1, sketch: int = 2) -> None:
        _require_probes(probes)
        if sketch < 1:
            raise UsageError(f"divergence.sketch: found {sketch}, expected at least 1.")
        self.count = probes
        self.sketch = sketch

    def probes(
        self, x: Tensor, clouds: Segments, source: torch.Generator, features: int = 0
    ) -> Tensor:
        """The sketch, then the residual probes, projected, (sketch + probes, N, d + features)."""
        shape = tuple(x.shape)
        # Gaussian columns span as many dimensions as they are; signs may coincide.
        drawn = [rng.normal(shape, x, source) for _ in range(self.sketch)]
        drawn += [rng.rademacher(shape, x, source) for _ in range(self.count)]
        return torch.stack([centred(probe, clouds, features) for probe in drawn])

    def estimates(self) -> int:
        """One a probe."""
        return self.count

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity, and an estimate for each residual probe."""
        pullback = Pullback(velocity, x)
        basis = self._basis(pullback, clouds, probes[: self.sketch])
        on_basis = [clouds.sum((pullback(q) * q).sum(-1)) for q in basis]
        exact = torch.stack(on_basis).sum(0)

        estimates = []
        for probe in probes[self.sketch :]:
            inside = [
                clouds.expand(clouds.sum((probe * q).sum(-1))).unsqueeze(1) * q for q in basis
            ]
            rest = probe - torch.stack(inside).sum(0)
            row = pullback(rest)
            estimates.append(exact + clouds.sum((row * rest).sum(-1)))
        return Trace(pullback.value, torch.stack(estimates, 1))

    def _basis(self, pullback: Pullback, clouds: Segments, sketch: Tensor) -> list[Tensor]:
        """Orthonormal directions within each cloud, each shape (N, d)."""
        with torch.no_grad():
            features = features_of(pullback.velocity)
            rows = [centred(pullback(s).detach(), clouds, features) for s in sketch]
            images = torch.stack(rows, -1)
            directions: list[Tensor] = []
            # What is left of a direction already spanned is rounding: its own square root away.
            rounding = torch.finfo(images.dtype).eps ** 0.5
            for image in images.unbind(-1):
                column = image
                # Twice is enough (Giraud et al., 2005) for orthogonality to rounding.
                for _ in range(2):
                    for q in directions:
                        overlap = clouds.expand(clouds.sum((column * q).sum(-1)))
                        column = column - overlap.unsqueeze(1) * q
                size, whole = _length(column, clouds), _length(image, clouds)
                # A direction already spanned is dropped: zero leaves the identity intact.
                spanned = size <= rounding * whole
                directions.append(torch.where(spanned, torch.zeros_like(column), column / size))
        return directions


def _length(x: Tensor, clouds: Segments) -> Tensor:
    """Norm of each cloud's rows together, repeated for its rows, shape (N, 1)."""
    return clouds.expand(clouds.sum(x.square().sum(-1)).sqrt()).unsqueeze(1)


def _require_probes(probes: int) -> None:
    if probes < 1:
        raise UsageError(f"divergence.probes: found {probes}, expected at least 1.")


DIVERGENCES: dict[str, Callable[[], AbstractDivergence]] = {
    "exact": Exact,
    "hutchinson": lambda: Hutchinson(probes=4),
    "hutch_plus_plus": lambda: HutchPlusPlus(probes=4),
}


def divergence_by_name(divergence: AbstractDivergence | str) -> AbstractDivergence:
    """An estimator as it is, or the one that a name stands for, with four probes.

    A standard error of four has three degrees of freedom: read it as such, above all on clouds of
    so few points that two probes may be the same but for the sign.

    Raises:
        UsageError: If there is no such name.
    """
    if isinstance(divergence, AbstractDivergence):
        return divergence
    if divergence not in DIVERGENCES:
        raise UsageError(
            f"divergence: found {divergence!r}, expected one of {', '.join(sorted(DIVERGENCES))}."
        )
    return DIVERGENCES[divergence]()
