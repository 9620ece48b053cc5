r"""GRAFF: a gradient flow whose channel mixing decides between smoothing and sharpening.

.. math::
    \dot x = \tilde A x W - x \Omega + \beta x(0), \qquad
    \tilde a_{ij} = (d_i d_j)^{-1/2}

with `W` and `Ω` symmetric: the flow is :math:`-\nabla E` of

.. math::
    E(x) = \tfrac12 \sum_i \langle x_i, \Omega x_i \rangle
    - \tfrac12 \sum_{ij} \tilde a_{ij} \langle x_i, W x_j \rangle
    - \beta \sum_i \langle x_i, x_i(0) \rangle .

Positive eigenvalues of `W` attract along edges, negative ones repel. Kipf's GCN is one Euler step
of length 1 with `Ω = I`; a residual GCN has `Ω = 0`.

Reference: Understanding convolution on graphs via energies (Di Giovanni et al., 2022),
arXiv:2206.10991, eq. 10-12.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, segment_sum, weighted_sum
from eqflow.errors import UsageError
from eqflow.nn.arguments import require_counts
from eqflow.nn.diffusion.operator import AbstractDiffusion, Coefficients, start_of
from eqflow.nn.diffusion.symmetric_matrices import SymmetricMatrix
from eqflow.nn.graph_convolution import symmetric_weights


class GRAFF(AbstractDiffusion):
    """Gradient flow of node features on a fixed graph.

    Args:
        width: Channels C of a node's state.
        mixing: Form of `W`, see `symmetric_matrices`.
        damping: Form of `Ω`.
        source: Whether `β x(0)` is added, `β` being learned from 0.
        nonlinear: Whether the velocity passes a ReLU, as in a layer of a graph network; it is a
            gradient flow no longer.
        steps: Number of matrices `W, Ω` in turn over the time of the solve, one for each step of a
            fixed-step method; 1 for a constant one.
        time: Length of the solve that `steps` divide.

    Raises:
        UsageError: If a form is unknown, or a number out of range.
    """

    def __init__(
        self,
        width: int,
        *,
        mixing: str = "symmetric",
        damping: str = "diagonal",
        source: bool = True,
        nonlinear: bool = False,
        steps: int = 1,
        time: float = 1.0,
    ) -> None:
        super().__init__()
        require_counts("GRAFF", width=width, steps=steps)
        if not 0 < time < math.inf:
            raise UsageError(f"GRAFF: found time={time}, expected a finite number above 0.")
        self.width = width
        self.nonlinear = nonlinear
        self.time = time
        self.mixing = nn.ModuleList(SymmetricMatrix(width, mixing) for _ in range(steps))
        self.damping = nn.ModuleList(SymmetricMatrix(width, damping) for _ in range(steps))
        self.beta = nn.Parameter(torch.zeros(())) if source else None
        self.context_features = width if source else 0

    @property
    def is_linear(self) -> bool:
        """Whether there is no ReLU and one matrix for all times."""
        return not self.nonlinear and len(self.mixing) == 1

    @property
    def moves_by_coefficients(self) -> bool:
        """Whether there is no ReLU."""
        return not self.nonlinear

    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """Those of `ẋ = Ã x W − x Ω + β x(0)`; arguments as in `AbstractDiffusion`."""
        self.require_state(x, edges, self.width)
        weight = symmetric_weights(edges, x.dtype)
        place = self._step_at(t)
        source = None if self.beta is None else self.beta * start_of(self, x, context)
        return Coefficients(
            edges,
            weight,
            gain=segment_sum(weight, edges),
            mixing=self.mixing[place].dense(),
            damping=self.damping[place](),
            source=source,
        )

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity, shape (N, C); arguments as in `coefficients`."""
        velocity = super().forward(t, x, edges, context)
        return velocity.relu() if self.nonlinear else velocity

    def energy(self, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """`E` of each graph, shape (B,), on a graph with both directions of every edge.

        The matrices are those of the first step.
        """
        weight = symmetric_weights(edges, x.dtype)
        damped = (
            x @ self.damping[0].dense() - weighted_sum(weight, x, edges) @ self.mixing[0].dense()
        )
        energy = (x * damped).sum(1) / 2
        if self.beta is not None:
            energy = energy - self.beta * (x * start_of(self, x, context)).sum(1)
        return edges.clouds.sum(energy)

    def _step_at(self, t: Tensor) -> int:
        count = len(self.mixing)
        # A thousandth of a step early is rounding of the time, not the step before.
        return 0 if count == 1 else min(int(float(t) / self.time * count + 1e-3), count - 1)
