"""What a density over structures promises, whatever it is a density of.

`Flow` knows positions given what the points are, `MolecularFlow` whole molecules; both score and
draw clouds in the unit of the data, and say how each integration ended.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from eqflow.flows.ode import Solver
from eqflow.flows.results import Drawn, Scores
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Clouds


class AbstractFlow(nn.Module, ABC):
    """A density over structures.

    Attributes:
        dimension: Number of coordinates of a point.
        elements: Atomic numbers it knows, rising; empty where points have no element.
        solver: How to integrate unless a call says otherwise.
    """

    dimension: int
    elements: tuple[int, ...]
    solver: Solver

    @abstractmethod
    def score(
        self,
        clouds: Clouds,
        *,
        divergence: AbstractDivergence | str = "exact",
        seed: int = 0,
        solver: Solver | None = None,
    ) -> Scores:
        """Log-likelihood of each cloud with its terms, error and cost, without gradients.

        Args:
            clouds: Structures in the unit of the data; where they are does not matter.
            divergence: "exact", "hutchinson", or a configured estimator.
            seed: Whatever is drawn is a function of it.
            solver: How to integrate; the flow's own where None.
        """

    @abstractmethod
    def draw(
        self,
        count: int,
        *,
        seed: int = 0,
        sizes: int | Sequence[int] | None = None,
        solver: Solver | None = None,
    ) -> Drawn:
        """Draw structures; a failed one is marked, not raised.

        Args:
            count: How many.
            seed: All draws are a function of it.
            sizes: Number of points of all, or of each; by the training frequencies where None.
            solver: How to integrate; the flow's own where None.
        """

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
        if scores.failures:
            warnings.warn(
                f"log_prob: {scores.failures}; their log-likelihood is NaN.",
                RuntimeWarning,
                stacklevel=2,
            )
        return scores.log_prob
