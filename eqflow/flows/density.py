r"""`Flow`: what users hold. Clouds in the data's own units go in and come out.

Standardisation is part of the density: with scale `s`,
:math:`\log p(x) = \log p_Z(z) + \int \mathrm{tr} J \, dt - (n - 1) d \log s`
for `n` labelled points in `d` dimensions, in nats, on the zero-mean subspace. For a model that is
conditioned on elements this is `p(positions | elements)`; where sizes vary, `p(positions | size)`;
and given whatever properties of the structures are known besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.compositions import Compositions, Numbers
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow
from eqflow.flows.convergence import checked
from eqflow.flows.divergence import divergence_by_name
from eqflow.flows.fallback import carry
from eqflow.flows.groups import groups
from eqflow.flows.inpainting import Fixed, inpaint
from eqflow.flows.objectives import Batch
from eqflow.flows.ode import Solver
from eqflow.flows.positions import AbstractPositionFlow
from eqflow.flows.properties import Asked, Properties
from eqflow.flows.results import Drawn, Scores
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Clouds, Segments, centred, degrees_of_freedom


class Flow(AbstractPositionFlow):
    """A trained density over structures.

    Args:
        continuous: The flow in standardised units.
        dimension: Number of coordinates of a point.
        scale: Length that one unit of the flow stands for, in the unit of the data.
        compositions: Make-up of the training structures.
        solver: How to integrate unless a call says otherwise.
        properties: What positions are conditioned on besides, or None.

    Example:
        >>> from eqflow.nn import EGNNField
        >>> pairs = Compositions((), torch.tensor([[2]]), torch.tensor([1]))
        >>> flow = Flow(ContinuousFlow(EGNNField(width=8, layers=1)), 3, 1.0, pairs)
        >>> drawn = flow.sample(4, seed=0)
        >>> drawn.x.shape, flow.log_prob(drawn, divergence="exact").shape
        (torch.Size([8, 3]), torch.Size([4]))
    """

    def __init__(
        self,
        continuous: ContinuousFlow,
        dimension: int,
        scale: float,
        compositions: Compositions,
        solver: Solver | None = None,
        properties: Properties | None = None,
    ) -> None:
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise UsageError(f"Flow: found scale {scale}, expected a positive length.")
        if continuous.field.state_features:
            raise UsageError(
                f"Flow: found a field of positions and {continuous.field.state_features} features, "
                "expected one of positions alone; use MolecularFlow."
            )
        self.continuous = continuous
        self.dimension = dimension
        self.scale = scale
        self.compositions = compositions
        self.elements = compositions.elements
        self.solver = Solver() if solver is None else solver
        self.properties = properties

    def score(
        self,
        clouds: Clouds,
        *,
        divergence: AbstractDivergence | str = "exact",
        seed: int = 0,
        solver: Solver | None = None,
        fallback: bool = True,
        check_convergence: bool = False,
    ) -> Scores:
        """Log-likelihood of each cloud with its terms, error and cost, without gradients.

        To train on a likelihood, or to differentiate it by positions, see `MaximumLikelihood` and
        `ContinuousFlow.transport`.

        Args:
            clouds: Structures in the unit of the data; where they are does not matter.
            divergence: "exact", "hutchinson", or a configured estimator.
            seed: Probes of an estimator are a function of it and of the place in the batch.
            solver: How to integrate; the flow's own where None.
            fallback, check_convergence: As in `AbstractFlow`.
        """
        method = divergence_by_name(divergence)

        def by(solver: Solver) -> Scores:
            return Scores.join(
                [
                    self._score(group, method, seed, start, solver, fallback)
                    for start, group in groups(clouds)
                ]
            )

        asked = solver or self.solver
        dtype = next(self.parameters()).dtype
        return checked(by, asked, dtype) if check_convergence else by(asked)

    @torch.no_grad()
    def draw(
        self,
        count: int,
        *,
        seed: int = 0,
        sizes: int | Sequence[int] | None = None,
        numbers: Numbers | None = None,
        properties: Asked | None = None,
        guidance: float = 1.0,
        fixed: Clouds | Fixed | None = None,
        with_log_prob: bool = False,
        divergence: AbstractDivergence | str = "exact",
        solver: Solver | None = None,
        fallback: bool = True,
    ) -> Drawn:
        """Draw structures; a failed one is marked, not raised.

        Args:
            count: How many.
            seed: All draws are a function of it.
            sizes: Number of points of all, or of each; by the training frequencies where None.
            numbers: Atomic numbers that every structure has, (n,), or those of each.
            properties, guidance, fixed, solver, fallback: As in `AbstractFlow`; where sizes are
                given, elements are drawn by the training frequencies.
            with_log_prob: Integrate the trace along the way, of the guided flow where there is one.
            divergence: How, see `score`.

        Raises:
            UsageError: If there is nothing to draw, or options do not fit each other or the flow.
            UnknownElement: If an element is not one of the model's.
        """
        asked, continuous = self.conditions(count, properties, guidance)
        given = None if fixed is None else Fixed.of(fixed)
        if with_log_prob and given is not None:
            raise UsageError("draw: structures around fixed atoms have no log-likelihood.")
        template = self._template(count, seed, sizes, numbers, asked, given)
        method = divergence_by_name(divergence) if with_log_prob else None
        parts = []
        for start, group in groups(template):
            batch = self.encode(group)
            clouds, noise = batch.clouds, self._noise(batch, seed, start)
            log_prob = None
            if given is None:
                z = noise()
                there = carry(
                    continuous,
                    z,
                    clouds,
                    batch.context,
                    start=LATENT,
                    end=DATA,
                    solver=solver or self.solver,
                    divergence=method,
                    source=rng.generator(seed, "sample", "probes", start, device=z.device),
                    fallback=fallback,
                )
                if with_log_prob:
                    # From noise to data the integral runs backwards, and changes its sign.
                    base = self.continuous.base.log_prob(z, clouds)
                    log_prob = base - there.log_det.mean(1) + self._log_scale(clouds)
                    log_prob = log_prob.cpu()
            else:
                known, rows = self.encode(given.repeated(len(group))).x, given.within(clouds)
                there = inpaint(
                    continuous, known, rows, clouds, batch.context, noise, given, solver, fallback
                )
            drawn = self._decoded(group, there.x, given)
            parts.append(Drawn(drawn, log_prob, **there.ending()))
        return Drawn.join(parts)

    def sample_and_log_prob(
        self,
        count: int,
        seed: int = 0,
        *,
        sizes: int | Sequence[int] | None = None,
        numbers: Numbers | None = None,
        divergence: AbstractDivergence | str = "exact",
        solver: Solver | None = None,
        fallback: bool = True,
    ) -> tuple[Clouds, Tensor]:
        """Draw structures and their log-likelihoods in one integration; see `draw`.

        Raises:
            SolverFailed: If an integration failed.
        """
        drawn = self.draw(
            count,
            seed=seed,
            sizes=sizes,
            numbers=numbers,
            with_log_prob=True,
            divergence=divergence,
            solver=solver,
            fallback=fallback,
        )
        drawn.require_success()
        return drawn.clouds, drawn.scored()

    @torch.no_grad()
    def trajectory(
        self,
        count: int,
        frames: int = 25,
        seed: int = 0,
        *,
        sizes: int | Sequence[int] | None = None,
        numbers: Numbers | None = None,
        solver: Solver | None = None,
    ) -> list[Clouds]:
        """Structures on their way from noise (first frame) to what `sample` draws (last frame).

        Args:
            count: How many structures.
            frames: How many equally spaced times, at least 2.
            seed, sizes, numbers, solver: As in `draw`.

        Raises:
            SolverFailed: If the integration failed.
        """
        if frames < 2:
            raise UsageError(f"trajectory: found frames = {frames}, expected at least 2.")
        template = self._template(count, seed, sizes, numbers, {}, None)
        films = []
        for start, group in groups(template):
            batch = self.encode(group)
            z = self._noise(batch, seed, start)()
            times = torch.linspace(LATENT, DATA, frames, dtype=z.dtype, device=z.device)
            states = self.continuous.trajectory(
                z, batch.clouds, times, batch.context, solver=solver or self.solver
            ).require()
            films.append([self._decoded(group, frame, None) for frame in states[0]])
        return [Clouds.join(frame) for frame in zip(*films, strict=True)]

    def _noise(self, batch: Batch, seed: int, start: int) -> Callable[[], Tensor]:
        """Gives a draw of noise at each call, by the seed and the place of the first structure."""
        source = rng.generator(seed, "sample", "noise", start, device=batch.x.device)
        return partial(self.continuous.base.sample, batch.clouds, self.dimension, batch.x, source)

    @torch.no_grad()
    def _score(
        self,
        clouds: Clouds,
        method: AbstractDivergence,
        seed: int,
        start: int,
        solver: Solver,
        fallback: bool,
    ) -> Scores:
        batch = self.encode(clouds)
        there = carry(
            self.continuous,
            batch.x,
            batch.clouds,
            batch.context,
            start=DATA,
            end=LATENT,
            solver=solver,
            divergence=method,
            source=rng.generator(seed, "score", start, device=batch.x.device),
            fallback=fallback,
        )
        # The centre drifts by rounding only, and belongs to no degree of freedom.
        z = centred(there.x, batch.clouds)
        terms = {
            "log_prob_base": self.continuous.base.log_prob(z, batch.clouds),
            "log_det_flow": there.log_det.mean(1),
            "log_det_scale": self._log_scale(batch.clouds),
        }
        return Scores(
            torch.stack(list(terms.values())).sum(0).cpu(),
            method.standard_error(there.log_det).cpu(),
            {name: term.cpu() for name, term in terms.items()},
            **there.ending(),
        )

    def _log_scale(self, clouds: Segments) -> Tensor:
        like = next(self.parameters())
        return -degrees_of_freedom(clouds, self.dimension).to(like.dtype) * math.log(self.scale)
