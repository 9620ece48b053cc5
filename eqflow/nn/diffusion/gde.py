r"""GDE: graph convolutions as a velocity, a baseline beside the diffusions.

.. math::
    \dot x = \sigma(\tilde A x W + b) + \beta x(0)

with the symmetric :math:`\tilde A` of a graph with self loops; several layers follow each other,
each with its `σ`. As published there is no source, `β = 0`. Unlike the models beside it this is no
diffusion: it does not make states alike, and they may grow as long as it runs.
`eqflow.flows.diffuse` solves it by the methods that need no coefficients of a diffusion. An Euler
step of length 1 of one layer is residual GCN.

The published code draws dropout anew at each evaluation, so that its right-hand side is none that a
solver can follow; here there is none.

Reference: Graph Neural Ordinary Differential Equations (Poli et al., 2019), arXiv:1911.07532,
the convolutional variant (GCDE).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.nn.arguments import require_counts
from eqflow.nn.diffusion.operator import start_of
from eqflow.nn.field import AbstractField
from eqflow.nn.graph_convolution import GraphConvolution


class GDE(AbstractField):
    """A velocity of graph convolutions.

    Args:
        width: Channels C of the state.
        layers: Graph convolutions, each followed by the activation; one as published.
        activation: `σ`.
        source: Whether `β x(0)` is added, `β` being learned from 0.

    Raises:
        UsageError: If a number is not at least 1, or the activation cannot be called.
    """

    def __init__(
        self,
        width: int,
        layers: int = 1,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        *,
        source: bool = False,
    ) -> None:
        super().__init__()
        require_counts("GDE", width=width, layers=layers)
        if not callable(activation):
            raise UsageError(
                f"GDE: found an activation of type {type(activation).__name__}, expected a "
                "function of a tensor, such as torch.tanh."
            )
        self.width = width
        self.convolutions = nn.ModuleList(GraphConvolution(width, width) for _ in range(layers))
        self.activation = activation
        self.beta = nn.Parameter(torch.zeros(())) if source else None
        self.context_features = width if source else 0

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity, shape (N, C), of a state (N, C); time does not enter.

        Args:
            t: Time.
            x: State, shape (N, C).
            edges: The graph, or a batch of graphs, with or without self loops.
            context: With a source, the state at the start of the solve, shape (N, C).

        Raises:
            ShapeError: If the state has another width, type or device, or the context is not there.
            UsageError: If the edges are no graph.
        """
        velocity = x
        for convolution in self.convolutions:
            velocity = self.activation(convolution(velocity, edges))
        if self.beta is None:
            return velocity
        return velocity + self.beta * start_of(self, x, context)
