"""What a density over structures promises, whatever it is a density of.

`Flow` knows positions given what the points are, `MolecularFlow` whole molecules; both score and
draw clouds in the unit of the data, and say how each integration ended.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eqflow.errors import UsageError
from eqflow.flows.continuous import ContinuousFlow
from eqflow.flows.inpainting import Fixed
from eqflow.flows.objectives import Batch
from eqflow.flows.ode import Solver
from eqflow.flows.properties import Asked, Properties
from eqflow.flows.results import Drawn, Scores
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Clouds, Segments, centred


class AbstractFlow(nn.Module, ABC):
    """A density over structures.

    Attributes:
        continuous: The flow of states in standardised units.
        dimension: Number of coordinates of a point.
        elements: Atomic numbers it knows, rising; empty where points have no element.
        properties: What it is conditioned on besides, or None.
        solver: How to integrate unless a call says otherwise.
    """

    continuous: ContinuousFlow
    dimension: int
    elements: tuple[int, ...]
    solver: Solver
    properties: Properties | None

    @abstractmethod
    def batch(self, clouds: Clouds, source: torch.Generator) -> Batch:
        """Structures as a training step takes them.

        Args:
            clouds: Structures in the unit of the data.
            source: Where features that stand for labels are drawn from.

        Raises:
            UsageError: If the clouds have another dimension.
            UnknownElement: If an element is not one of the model's.
        """

    @abstractmethod
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

        It is that given the properties which the clouds have, of those that the flow knows.

        Args:
            clouds: Structures in the unit of the data; where they are does not matter.
            divergence: "exact", "hutchinson", or a configured estimator.
            seed: Whatever is drawn is a function of it.
            solver: How to integrate; the flow's own where None.
            fallback: Whether other solvers are tried on structures where it fails; `Scores.solver`
                says which gave a result. See `eqflow.flows.fallback`.
            check_convergence: Whether to score again by a finer solver; `Scores.log_prob_change`
                is what that changes. See `eqflow.flows.convergence`.
        """

    @abstractmethod
    def draw(
        self,
        count: int,
        *,
        seed: int = 0,
        sizes: int | Sequence[int] | None = None,
        properties: Asked | None = None,
        guidance: float = 1.0,
        fixed: Clouds | Fixed | None = None,
        solver: Solver | None = None,
        fallback: bool = True,
    ) -> Drawn:
        """Draw structures; a failed one is marked, not raised.

        Args:
            count: How many.
            seed: All draws are a function of it.
            sizes: Number of points of all, or of each; where None by the training frequencies, of
                structures near the properties asked for.
            properties: What to draw structures with, by name: a value, or that of each. Those of
                the drawn clouds are what was asked, as `asked_<name>`.
            guidance: How much properties count, see `GuidedField`; 1 is the density itself.
            fixed: A fragment that all structures have, around which the rest is grown: their first
                atoms, left where they are. See `inpainting`, which is approximate.
            solver: How to integrate; the flow's own where None, or one step of Heun's method over
                each stretch where atoms are fixed.
            fallback: Whether other solvers are tried on structures where it fails; `Drawn.solver`
                says which gave a result.
        """

    @abstractmethod
    def make_up(
        self,
        count: int,
        *,
        seed: int = 0,
        sizes: int | Sequence[int] | None = None,
        properties: Asked | None = None,
        fixed: Clouds | Fixed | None = None,
    ) -> Clouds:
        """What `draw` would draw with the same arguments, with all points at the origin.

        Its sizes, and elements where they are not drawn with the positions, can be passed to
        `draw`, so that structures drawn one by one are of the make-up they have together.
        """

    def conditions(
        self, count: int, properties: Asked | None, guidance: float
    ) -> tuple[dict[str, Tensor], ContinuousFlow]:
        """Properties of structures to be drawn, and the flow that draws them.

        Raises:
            UsageError: If they are none of the flow's, or guidance is out of range or of nothing.
        """
        if not 0 <= guidance < math.inf:
            raise UsageError(f"guidance: found {guidance}, expected 0 or more.")
        if not properties:
            if guidance != 1:
                raise UsageError(f"guidance: found {guidance}, expected properties with it.")
            return {}, self.continuous
        if self.properties is None:
            raise UsageError(
                f"properties: found {', '.join(properties)}, but this model knows none. Train one "
                "with data.properties=[…]."
            )
        asked = self.properties.asked(properties, count)
        return asked, self.properties.guided(self.continuous, guidance)

    def sample(self, count: int, seed: int = 0, **options: Any) -> Clouds:
        """Draw `count` structures in the unit of the data; options are those of `draw`.

        Raises:
            SolverFailed: If an integration failed.
        """
        drawn = self.draw(count, seed=seed, **options)
        drawn.require_success()
        return drawn.clouds

    def log_prob(
        self,
        clouds: Clouds,
        seed: int = 0,
        *,
        divergence: AbstractDivergence | str = "exact",
        solver: Solver | None = None,
        fallback: bool = True,
        check_convergence: bool = False,
    ) -> Tensor:
        """Log-likelihood of each cloud in nats, shape (B,); see `score`.

        A cloud whose integration failed gets NaN, with a warning that names it.
        """
        scores = self.score(
            clouds,
            divergence=divergence,
            seed=seed,
            solver=solver,
            fallback=fallback,
            check_convergence=check_convergence,
        )
        if scores.failures:
            warnings.warn(
                f"log_prob: {scores.failures}; their log-likelihood is NaN.",
                RuntimeWarning,
                stacklevel=2,
            )
        return scores.log_prob

    def _positions(self, clouds: Clouds, scale: float = 1.0) -> tuple[Tensor, Segments]:
        """Centred positions in units of `scale`, as precise as the weights, and whose.

        Raises:
            UsageError: If the clouds have another dimension.
        """
        if clouds.dimension != self.dimension:
            raise UsageError(
                f"found clouds in {clouds.dimension} dimensions, expected {self.dimension}."
            )
        like = next(self.parameters())
        segments = Segments(clouds.ptr.to(like.device))
        x = centred(clouds.x.to(like.device, torch.float64), segments) / scale
        return x.to(like.dtype), segments

    def _context(self, clouds: Clouds, segments: Segments, like: Tensor) -> Tensor | None:
        """What is known of points by the properties of their structure, where any is known."""
        if self.properties is None:
            return None
        return self.properties.context(clouds, segments, like)
