"""Graphs that follow the state: `E'(t)`, recomputed from positions while a flow is integrated.

A field such as `BLEND` calls its rewiring at each evaluation with the positional part `u(t)` of the
state. Edges are piecewise constant in `u`, so such a right-hand side jumps wherever neighbours
change. Three things follow:

- Integrate with fixed steps. A solver that adapts its steps takes a jump for an error that no step
  is small enough to mend, and spends its evaluations there.
- The order of a method is that of Euler's across a jump, whatever it is elsewhere.
- Gradients go through the edges that are there and not through the choice of them; positions are
  handed over detached.

Reference: Beltrami Flow and Neural Diffusion on Graphs (Chamberlain et al., 2021),
arXiv:2110.09443, section 4, BLEND-kNN.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import UsageError


class AbstractRewiring(ABC):
    """Edges from positions, as `rewire` of a diffusion field takes them."""

    @abstractmethod
    def __call__(self, u: Tensor, edges: Edges) -> Edges:
        """The edges of this moment.

        Args:
            u: Positions, shape (N, P).
            edges: The graph that the field was given: its `clouds` say which nodes may be joined.

        Returns:
            Edges over the same nodes and clouds.
        """


@dataclass(frozen=True)
class KNNRewiring(AbstractRewiring):
    """From each node's `k` nearest by position within its graph, all where there are fewer.

    Raises:
        UsageError: If `k` is no whole number of at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise UsageError(f"rewiring: found k = {self.k!r}, expected a whole number above 0.")

    def __call__(self, u: Tensor, edges: Edges) -> Edges:
        """`Edges.knn` of the positions."""
        return Edges.knn(u.detach(), self.k, edges.clouds)


@dataclass(frozen=True)
class RadiusRewiring(AbstractRewiring):
    """Between all nodes of a graph at most `r` apart; a node may be left alone.

    Raises:
        UsageError: If `r` is not positive and finite.
    """

    r: float

    def __post_init__(self) -> None:
        if not 0 < self.r < math.inf:
            raise UsageError(f"rewiring: found r = {self.r}, expected a positive, finite cutoff.")

    def __call__(self, u: Tensor, edges: Edges) -> Edges:
        """`Edges.radius` of the positions."""
        return Edges.radius(u.detach(), self.r, edges.clouds)
