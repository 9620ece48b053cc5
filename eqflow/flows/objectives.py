"""Training objectives: flow matching and maximum likelihood, on the same field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import SolverFailed, UsageError
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow
from eqflow.flows.couplings import AbstractCoupling
from eqflow.flows.divergence import Hutchinson
from eqflow.flows.ode import Solver, Status
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Segments, degrees_of_freedom


class Batch(NamedTuple):
    """Structures in the units of the flow.

    Attributes:
        x: Centred, standardised positions, shape (N, d).
        clouds: Which points belong to which structure.
        context: Fixed node features, shape (N, C), or None.
        types: Which points are alike, shape (N,), int64, or None where all are.
    """

    x: Tensor
    clouds: Segments
    context: Tensor | None = None
    types: Tensor | None = None


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
    with one time a cloud, stratified over the batch, and `(x, z)` drawn by the coupling.

    Args:
        coupling: How noise is paired with structures.

    Reference: Flow Matching for Generative Modeling (Lipman et al., 2023), arXiv:2210.02747,
    eq. 23.
    """

    def __init__(self, coupling: AbstractCoupling) -> None:
        self.coupling = coupling

    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        """The mean squared error of the velocity, per degree of freedom."""
        x, clouds, context, types = batch
        z = self.coupling(x, clouds, types, source)
        t = stratified_times(clouds.count, x, source)
        s = clouds.expand(t).unsqueeze(1)
        v = flow.velocity(t, (1 - s) * x + s * z, clouds, context)
        freedom = degrees_of_freedom(clouds, x.shape[1]).clamp(min=1)
        loss = (clouds.sum((v - (z - x)).square().sum(-1)) / freedom).mean()
        return Loss(loss, {"loss": float(loss.detach())})


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
        x, clouds, context, _ = batch
        there = flow.transport(
            x,
            clouds,
            context,
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
        nll = -(flow.base.log_prob(there.x, clouds) + there.log_det.mean(1)).mean()
        terms = {"nll": float(nll.detach()), "evaluations": float(there.evaluations.max())}
        loss = nll
        if self.measure_path:
            kinetic, jacobian = there.path.mean(0)
            loss = loss + self.kinetic * kinetic + self.jacobian * jacobian
            terms |= {"kinetic": float(kinetic.detach()), "jacobian": float(jacobian.detach())}
        return Loss(loss, {"loss": float(loss.detach()), **terms})


def stratified_times(count: int, like: Tensor, source: torch.Generator) -> Tensor:
    """Times in [0, 1), one in each of `count` equal intervals, in random order, shape (count,)."""
    places = rng.permutation(count, source).to(like.dtype)
    return (places + rng.uniform((count,), like, source)) / max(count, 1)
