"""Training objectives: flow matching and maximum likelihood, on the same field."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eqflow import rng
from eqflow.errors import SolverFailed, UsageError
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow
from eqflow.flows.couplings import AbstractCoupling
from eqflow.flows.divergence import Hutchinson
from eqflow.flows.ode import Solver, Status
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Segments, degrees_of_freedom, split_state


class Batch(NamedTuple):
    """Structures in the units of the flow.

    Attributes:
        x: State of centred, standardised positions and K features, shape (N, d + K).
        clouds: Which points belong to which structure.
        context: Fixed node features, shape (N, C), or None.
        types: Points of one type may change places in the noise, shape (N,), int64; None: all may.
        kinds: Category that the features of each point stand for, shape (N,), int64, or None.
        log_density: What the log-density of a structure has besides that of its state and that of
            its size, shape (B,), or None.
    """

    x: Tensor
    clouds: Segments
    context: Tensor | None = None
    types: Tensor | None = None
    kinds: Tensor | None = None
    log_density: Tensor | None = None


class Loss(NamedTuple):
    """A scalar to minimise and named scalars to log."""

    value: Tensor
    terms: dict[str, float]


class AbstractObjective(ABC):
    """What a training step minimises."""

    @abstractmethod
    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        """The loss of one batch, all its randomness drawn from `source`."""


class FlowMatching(AbstractObjective):
    r"""Regress the field on the velocity of straight paths from structures to noise.

    :math:`\mathcal L = \mathbb E\, \lVert v(t, (1 - t) x + t z) - (z - x) \rVert^2 / ((n - 1) d)`,
    with one time :math:`t = u^p` a cloud, `u` uniform and stratified over the batch, and `(x, z)`
    drawn by the coupling. Features beside the positions have independent noise and a term of their
    own: the same per feature, or, where the field predicts categories, the cross-entropy of its
    posterior.

    Args:
        coupling: How noise is paired with structures.
        feature_weight: Weight of the features' term.
        time_power: `p`; above 1 there are more times near the structures than near the noise.

    Raises:
        UsageError: If the weight is negative, or the power not positive.

    References: Flow Matching for Generative Modeling (Lipman et al., 2023), arXiv:2210.02747,
    eq. 23; Variational Flow Matching for Graph Generation (Eijkelboom et al., 2024),
    arXiv:2406.04843, eq. 11, for categories.
    """

    def __init__(
        self, coupling: AbstractCoupling, feature_weight: float = 1.0, time_power: float = 1.0
    ) -> None:
        require_weights(feature_weight, time_power)
        self.coupling = coupling
        self.feature_weight = feature_weight
        self.time_power = time_power

    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        """The mean squared error of the velocity, per degree of freedom, and the features' term."""
        x, clouds, width = batch.x.detach(), batch.clouds, flow.field.state_features
        z = self._noise(x, clouds, batch.types, width, source)
        t = stratified_times(clouds.count, x, source) ** self.time_power
        s = clouds.expand(t).unsqueeze(1)
        v, logits = flow.velocity_and_logits(t, (1 - s) * x + s * z, clouds, batch.context)
        of_positions, of_features = split_state((v - (z - x)).square(), width)
        freedom = degrees_of_freedom(clouds, of_positions.shape[1]).clamp(min=1)
        loss = (clouds.sum(of_positions.sum(-1)) / freedom).mean()
        if not width:
            return Loss(loss, {"loss": float(loss.detach())})
        terms = {"loss_positions": float(loss.detach())}
        if logits is not None and batch.kinds is not None:
            features = cross_entropy(logits, batch.kinds)
        else:
            features = (clouds.sum(of_features.mean(-1)) / clouds.lengths.clamp(min=1)).mean()
        loss = loss + self.feature_weight * features
        terms["loss_features"] = float(features.detach())
        return Loss(loss, {"loss": float(loss.detach()), **terms})

    def _noise(
        self,
        x: Tensor,
        clouds: Segments,
        types: Tensor | None,
        width: int,
        source: torch.Generator,
    ) -> Tensor:
        positions, features = split_state(x, width)
        z = self.coupling(positions, clouds, types, source)
        return z if not width else torch.cat([z, rng.normal(features.shape, x, source)], -1)


class MaximumLikelihood(AbstractObjective):
    r"""Minimise the negative log-likelihood per structure, with regularised dynamics.

    :math:`\mathcal L = \mathbb E[-\log p(x)] + \lambda_K \int \lVert v \rVert^2 dt
    + \lambda_J \int \lVert \partial v / \partial x \rVert_F^2 dt`, in nats of standardised
    positions.

    Args:
        solver: How the path is integrated; `solver.gradient` says how it is differentiated.
        divergence: Estimator of the trace.
        kinetic: :math:`\lambda_K`.
        jacobian: :math:`\lambda_J`.

    Raises:
        UsageError: If regularised with a divergence that does not estimate the Jacobian's norm.

    Reference: How to train your neural ODE (Finlay et al., 2020), arXiv:2002.02798, eq. 13.
    """

    def __init__(
        self,
        solver: Solver,
        divergence: AbstractDivergence,
        kinetic: float = 0.0,
        jacobian: float = 0.0,
    ) -> None:
        self.measure_path = kinetic > 0 or jacobian > 0
        if self.measure_path and not isinstance(divergence, Hutchinson):
            raise UsageError(
                "objective: regularisation needs objective.trace=hutchinson, which also estimates "
                f"the Jacobian's norm; found {type(divergence).__name__}."
            )
        self.solver = solver
        self.divergence = divergence
        self.kinetic = kinetic
        self.jacobian = jacobian

    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        """The mean negative log-likelihood and the regularisation, in one solve."""
        clouds = batch.clouds
        there = flow.transport(
            batch.x,
            clouds,
            batch.context,
            start=DATA,
            end=LATENT,
            solver=self.solver,
            divergence=self.divergence,
            source=source,
            measure_path=self.measure_path,
        )
        if not bool(there.succeeded.all()):
            lost = [status.value for status in there.status if status is not Status.SUCCESS]
            raise SolverFailed(
                f"maximum likelihood: {len(lost)} of {clouds.count} structures failed: "
                f"{'; '.join(sorted(set(lost)))}. Try a fixed-step method, a larger "
                "solver.step_limit or regularisation."
            )
        log_prob = flow.base.log_prob(there.x, clouds) + there.log_det.mean(1)
        if batch.log_density is not None:
            log_prob = log_prob + batch.log_density
        nll = -log_prob.mean()
        terms = {"nll": float(nll.detach()), "evaluations": float(there.evaluations.max())}
        loss = nll
        if self.measure_path:
            kinetic, jacobian = there.path.mean(0)
            loss = loss + self.kinetic * kinetic + self.jacobian * jacobian
            terms |= {"kinetic": float(kinetic.detach()), "jacobian": float(jacobian.detach())}
        return Loss(loss, {"loss": float(loss.detach()), **terms})


def require_weights(feature_weight: float, time_power: float) -> None:
    """Check what weighs the parts of an objective that matches a flow.

    Raises:
        UsageError: If the weight is negative, or the power not positive.
    """
    if not 0 <= feature_weight < math.inf:
        raise UsageError(f"objective.feature_weight: found {feature_weight}, expected 0 or more.")
    if not 0 < time_power < math.inf:
        raise UsageError(f"objective.time_power: found {time_power}, expected above 0.")


def stratified_times(count: int, like: Tensor, source: torch.Generator) -> Tensor:
    """Times in [0, 1), one in each of `count` equal intervals, in random order, shape (count,)."""
    places = rng.permutation(count, source).to(like.dtype)
    return (places + rng.uniform((count,), like, source)) / max(count, 1)
