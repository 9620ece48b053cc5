r"""`Flow`: what users hold. Clouds in the data's own units go in and come out.

Standardisation is part of the density: with scale `s`,
:math:`\log p(x) = \log p_Z(z) + \int \mathrm{tr} J \, dt - (n - 1) d \log s`
for `n` labelled points in `d` dimensions, in nats, on the zero-mean subspace. For a model conditioned on
elements this is `p(positions | elements)`; where sizes vary it is `p(positions | size)`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqflow import rng
from eqflow.errors import SolverFailed, UsageError
from eqflow.flows.compositions import Compositions
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow, Transport
from eqflow.flows.divergence import AbstractDivergence, Exact, Hutchinson
from eqflow.flows.objectives import Batch
from eqflow.flows.ode import Solver, Status
from eqflow.geometry import Clouds, Segments, centred, degrees_of_freedom

# Clouds solved together: enough to fill a core, few enough to share a step size.
GROUP = 256
GROUP_PAIRS = 40_000


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods with everything they are made of.

    Attributes:
        log_prob: Nats, shape (B,); NaN where the integration failed.
        log_prob_se: Standard error of the trace estimate, shape (B,): 0 for the exact trace, NaN
            for a single probe, which cannot tell.
        terms: Named parts that add up to `log_prob`, each shape (B,).
        evaluations: Evaluations of the field, shape (B,).
        status: How each integration ended.
    """

    log_prob: Tensor
    log_prob_se: Tensor
    terms: dict[str, Tensor]
    evaluations: Tensor
    status: tuple[Status, ...]


@dataclass(frozen=True)
class Drawn:
    """Samples and how each integration ended; failed ones have NaN positions.

    Attributes:
        clouds: Positions in the unit of the data.
        log_prob: Nats, shape (B,), where asked for.
        evaluations: Evaluations of the field, shape (B,).
        status: How each integration ended.
    """

    clouds: Clouds
    log_prob: Tensor | None
    evaluations: Tensor
    status: tuple[Status, ...]


class Flow(nn.Module):
    """A trained density over structures.

    Args:
        continuous: The flow in standardised units.
        dimension: Number of coordinates of a point.
        scale: Length that one unit of the flow stands for, in the unit of the data.
        compositions: Make-up of the training structures.
        solver: How to integrate unless a call says otherwise.

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
    ) -> None:
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise UsageError(f"Flow: found scale {scale}, expected a positive length.")
        self.continuous = continuous
        self.dimension = dimension
        self.scale = scale
        self.compositions = compositions
        self.solver = Solver() if solver is None else solver

    def encode(self, clouds: Clouds) -> Batch:
        """Clouds in the data's units as a batch of the flow: centred, scaled, elements one-hot.

        Raises:
            UsageError: If the clouds have another dimension.
            UnknownElement: If an element is not one of the model's.
        """
        if clouds.dimension != self.dimension:
            raise UsageError(
                f"found clouds in {clouds.dimension} dimensions, expected {self.dimension}."
            )
        like = next(self.parameters())
        x = clouds.x.to(like.device, torch.float64)
        segments = Segments(clouds.ptr.to(like.device))
        x = (centred(x, segments) / self.scale).to(like.dtype)
        types = self.compositions.types(clouds)
        if types is None:
            return Batch(x, segments)
        types = types.to(like.device)
        context = nn.functional.one_hot(types, len(self.compositions.elements)).to(like.dtype)
        return Batch(x, segments, context, types)

    def score(
        self,
        clouds: Clouds,
        *,
        divergence: AbstractDivergence | str = "exact",
        seed: int = 0,
        solver: Solver | None = None,
    ) -> Scores:
        """Log-likelihood of each cloud with its terms, error and cost.

        Args:
            clouds: Structures in the unit of the data; their position and orientation do not matter.
            divergence: "exact", "hutchinson", or a configured estimator.
            seed: Probes of an estimator are a function of it.
            solver: How to integrate; the flow's own where None.
        """
        method = divergence_by_name(divergence)
        groups = [
            self._score(group, method, rng.generator(seed, "score", start), solver or self.solver)
            for start, group in _groups(clouds)
        ]
        return Scores(
            torch.cat([group.log_prob for group in groups]),
            torch.cat([group.log_prob_se for group in groups]),
            {name: torch.cat([group.terms[name] for group in groups]) for name in groups[0].terms},
            torch.cat([group.evaluations for group in groups]),
            tuple(status for group in groups for status in group.status),
        )

    def log_prob(
        self,
        clouds: Clouds,
        seed: int = 0,
        *,
        divergence: AbstractDivergence | str = "exact",
        solver: Solver | None = None,
    ) -> Tensor:
        """Log-likelihood of each cloud in nats, shape (B,); see `score`.

        A cloud whose integration failed gets NaN, with a warning that names it.
        """
        scores = self.score(clouds, divergence=divergence, seed=seed, solver=solver)
        failed = [i for i, status in enumerate(scores.status) if status is not Status.SUCCESS]
        if failed:
            warnings.warn(
                f"log_prob: {len(failed)} of {len(clouds)} structures failed (first: {failed[0]}, "
                f"{scores.status[failed[0]].value}); their log-likelihood is NaN.",
                RuntimeWarning,
                stacklevel=2,
            )
        return scores.log_prob

    def draw(
        self,
        count: int,
        *,
        seed: int = 0,
        sizes: int | Sequence[int] | None = None,
        numbers: Sequence[int] | Tensor | None = None,
        with_log_prob: bool = False,
        divergence: AbstractDivergence | str = "exact",
        solver: Solver | None = None,
    ) -> Drawn:
        """Draw structures; a failed one is marked, not raised.

        Args:
            count: How many.
            seed: All draws are a function of it.
            sizes: Number of points of all, or of each; by the training frequencies where None.
            numbers: Atomic numbers of every structure, shape (n,): a fixed composition.
            with_log_prob: Integrate the trace along the way.
            divergence: How, see `score`.
            solver: How to integrate; the flow's own where None.
        """
        if count < 1:
            raise UsageError(f"sample: found n = {count}, expected at least 1.")
        template = self._template(count, seed, sizes, numbers)
        method = divergence_by_name(divergence) if with_log_prob else None
        x, log_probs, evaluations, status = [], [], [], []
        with torch.no_grad():
            for start, group in _groups(template):
                batch = self.encode(group)
                source = rng.generator(seed, "sample", "noise", start, device=batch.x.device)
                z = self.continuous.base.sample(batch.clouds, self.dimension, batch.x, source)
                there = self.continuous.transport(
                    z,
                    batch.clouds,
                    batch.context,
                    start=LATENT,
                    end=DATA,
                    solver=solver or self.solver,
                    divergence=method,
                    source=rng.generator(seed, "sample", "probes", start, device=batch.x.device),
                )
                x.append(centred(there.x, batch.clouds).to(template.x.dtype).cpu() * self.scale)
                evaluations.append(there.evaluations)
                status.extend(there.status)
                if with_log_prob:
                    # From noise to data the integral runs backwards, and changes its sign.
                    base = self.continuous.base.log_prob(z, batch.clouds)
                    log_prob = base - there.log_det.mean(1) + self._log_scale(batch.clouds)
                    log_probs.append(log_prob.cpu())
        return Drawn(
            template.with_positions(torch.cat(x)),
            torch.cat(log_probs) if with_log_prob else None,
            torch.cat(evaluations),
            tuple(status),
        )

    def sample(
        self,
        count: int,
        seed: int = 0,
        *,
        sizes: int | Sequence[int] | None = None,
        numbers: Sequence[int] | Tensor | None = None,
        solver: Solver | None = None,
    ) -> Clouds:
        """Draw `count` structures in the unit of the data; see `draw`.

        Raises:
            SolverFailed: If an integration failed.
        """
        drawn = self.draw(count, seed=seed, sizes=sizes, numbers=numbers, solver=solver)
        _require_success(drawn)
        return drawn.clouds

    def sample_and_log_prob(
        self,
        count: int,
        seed: int = 0,
        *,
        sizes: int | Sequence[int] | None = None,
        numbers: Sequence[int] | Tensor | None = None,
        divergence: AbstractDivergence | str = "exact",
        solver: Solver | None = None,
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
        )
        _require_success(drawn)
        if drawn.log_prob is None:
            raise SolverFailed("sample_and_log_prob: no log-likelihood was computed.")
        return drawn.clouds, drawn.log_prob

    def trajectory(
        self,
        count: int,
        frames: int = 25,
        seed: int = 0,
        *,
        sizes: int | Sequence[int] | None = None,
        numbers: Sequence[int] | Tensor | None = None,
        solver: Solver | None = None,
    ) -> list[Clouds]:
        """Structures on their way from noise (first frame) to data (last frame).

        Args:
            count: How many structures.
            frames: How many equally spaced times, at least 2.

        Raises:
            SolverFailed: If the integration failed.
        """
        if frames < 2:
            raise UsageError(f"trajectory: found frames = {frames}, expected at least 2.")
        template = self._template(count, seed, sizes, numbers)
        with torch.no_grad():
            batch = self.encode(template)
            source = rng.generator(seed, "sample", "noise", 0, device=batch.x.device)
            z = self.continuous.base.sample(batch.clouds, self.dimension, batch.x, source)
            times = torch.linspace(LATENT, DATA, frames, dtype=z.dtype, device=z.device)
            solution = self.continuous.trajectory(
                z, batch.clouds, times, batch.context, solver=solver or self.solver
            )
            solution.final()
        states = solution.states[0] if solution.states else ()
        return [
            template.with_positions(frame.to(template.x.dtype).cpu() * self.scale)
            for frame in states
        ]

    def _score(
        self, clouds: Clouds, method: AbstractDivergence, source: torch.Generator, solver: Solver
    ) -> Scores:
        with torch.no_grad():
            batch = self.encode(clouds)
            there: Transport = self.continuous.transport(
                batch.x,
                batch.clouds,
                batch.context,
                start=DATA,
                end=LATENT,
                solver=solver,
                divergence=method,
                source=source,
            )
            # The centre drifts by rounding only; what is left of it belongs to no degree of freedom.
            base = self.continuous.base.log_prob(centred(there.x, batch.clouds), batch.clouds)
        terms = {
            "log_prob_base": base,
            "log_det_flow": there.log_det.mean(1),
            "log_det_scale": self._log_scale(batch.clouds),
        }
        return Scores(
            torch.stack(list(terms.values())).sum(0).cpu(),
            _standard_error(there.log_det, method).cpu(),
            {name: term.cpu() for name, term in terms.items()},
            there.evaluations,
            there.status,
        )

    def _log_scale(self, clouds: Segments) -> Tensor:
        like = next(self.parameters())
        return -degrees_of_freedom(clouds, self.dimension).to(like.dtype) * math.log(self.scale)

    def _template(
        self,
        count: int,
        seed: int,
        sizes: int | Sequence[int] | None,
        numbers: Sequence[int] | Tensor | None,
    ) -> Clouds:
        """Clouds with the make-up to be drawn and all points at the origin."""
        if numbers is not None:
            if sizes is not None:
                raise UsageError("sample: sizes and numbers contradict each other; pass one.")
            if not self.compositions.elements:
                raise UsageError("sample: this model knows no elements; pass sizes, not numbers.")
            one = torch.as_tensor(numbers, dtype=torch.int64)
            lengths, drawn = torch.full((count,), len(one)), one.repeat(count)
        else:
            source = rng.generator(seed, "sample", "compositions")
            lengths, drawn = self.compositions.draw(count, source, sizes)
        segments = Segments.of_lengths(lengths)
        x = torch.zeros(segments.rows, self.dimension, dtype=next(self.parameters()).dtype)
        return Clouds(x, segments.ptr, drawn)


def divergence_by_name(divergence: AbstractDivergence | str) -> AbstractDivergence:
    """An estimator as it is, or the one that a name stands for."""
    if isinstance(divergence, AbstractDivergence):
        return divergence
    named = {"exact": Exact, "hutchinson": lambda: Hutchinson(probes=8)}
    if divergence not in named:
        raise UsageError(
            f"divergence: found {divergence!r}, expected one of {', '.join(sorted(named))}."
        )
    return named[divergence]()


def _groups(clouds: Clouds) -> list[tuple[int, Clouds]]:
    """Consecutive clouds, at most `GROUP` of them and `GROUP_PAIRS` ordered pairs, with their start."""
    groups = []
    start = pairs = 0
    for i, size in enumerate(clouds.sizes.tolist()):
        if i > start and (i - start == GROUP or pairs + size * (size - 1) > GROUP_PAIRS):
            groups.append((start, clouds[start:i]))
            start, pairs = i, 0
        pairs += size * (size - 1)
    return [*groups, (start, clouds[start:])]


def _standard_error(estimates: Tensor, method: AbstractDivergence) -> Tensor:
    count = estimates.shape[1]
    if method.is_exact:
        return estimates.new_zeros(len(estimates))
    if count < 2:
        return estimates.new_full((len(estimates),), float("nan"))
    return estimates.std(1) / math.sqrt(count)


def _require_success(drawn: Drawn) -> None:
    failed = [i for i, status in enumerate(drawn.status) if status is not Status.SUCCESS]
    if failed:
        raise SolverFailed(
            f"sample: {len(failed)} of {len(drawn.status)} structures failed (first: {failed[0]}, "
            f"{drawn.status[failed[0]].value}). Try a fixed-step method or a larger "
            "solver.step_limit; flow.draw returns the others."
        )
