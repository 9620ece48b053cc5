r"""Gradient gating (G²): each channel of each node moves as fast as it differs from its neighbours.

.. math::
    \tau_i = \tanh\Big( \frac{1}{|N_i|} \sum_{e \to i} |g_c - g_i|^p \Big), \quad
    x_i \leftarrow (1 - \tau_i) \odot x_i + \tau_i \odot \sigma(\mathrm{conv}(x))_i ,

per channel, with `g = σ(gate(x))`. The mean over neighbours is that of the authors' code; the paper
prints their sum. Where features become alike the rates go to zero, and what is left does not decay.

Reference: Gradient Gating for Deep Multi-Rate Learning on Graphs (Rusch, Chamberlain, Mahoney,
Bronstein, Mishra, 2023), arXiv:2210.00513, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, gather, segment_sum
from eqflow.errors import ShapeError, UsageError
from eqflow.nn.per_graph import degrees


def gating_rates(g: Tensor, edges: Edges, power: float = 2.0) -> Tensor:
    """`τ`, the rate of each channel of each node: between 0 and 1, and 0 without neighbours.

    Args:
        g: Gating features, shape (N, F).
        edges: The graph; repeated edges count as often as they are there.
        power: `p`, at least 1. At differences of zero the derivative is taken for zero.

    Returns:
        Shape (N, F).

    Raises:
        UsageError: If the power is below 1 or not finite.
    """
    _require_power(power)
    difference = gather(g, edges) - gather(g, edges, "receiver")
    steepness = segment_sum(_absolute_power(difference, power), edges)
    return torch.tanh(steepness / degrees(edges, g.dtype).clamp(min=1).unsqueeze(-1))


class GradientGating(nn.Module):
    """A layer whose update is gated by the differences of its own features along edges.

    Args:
        convolution: `conv(x, edges)`, which keeps the width of `x`.
        gate: Convolution of the gating features, of the same width; the layer's own where None, as
            the authors' code does by default.
        power: `p`, at least 1.
        activation: `σ` of both. Leave it out of the gates of logits: give such a layer `None`.

    Raises:
        UsageError: If the power is below 1 or not finite.
    """

    def __init__(
        self,
        convolution: nn.Module,
        gate: nn.Module | None = None,
        *,
        power: float = 2.0,
        activation: Callable[[Tensor], Tensor] | None = torch.relu,
    ) -> None:
        super().__init__()
        _require_power(power)
        self.convolution = convolution
        self.gate = gate
        self.power = power
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """Features of the next layer.

        Args:
            x: Node features, shape (N, F).
            edges: The graph, or a batch of graphs.

        Returns:
            Shape (N, F).

        Raises:
            ShapeError: If a convolution changes the width.
        """
        proposed = self.activation(self.convolution(x, edges))
        g = proposed if self.gate is None else self.activation(self.gate(x, edges))
        for name, found in (("convolution", proposed), ("gate", g)):
            if found.shape != x.shape:
                raise ShapeError(
                    f"GradientGating: the {name} returned {tuple(found.shape)}, expected "
                    f"{tuple(x.shape)} as x. Change the width before or after this layer."
                )
        return torch.lerp(x, proposed, gating_rates(g, edges, self.power))


def _absolute_power(difference: Tensor, power: float) -> Tensor:
    """`|δ|^p`, with derivatives of any order that are finite at 0."""
    if power == 2:
        return difference.square()
    is_zero = difference == 0
    return difference.masked_fill(is_zero, 1).abs().pow(power).masked_fill(is_zero, 0)


def _require_power(power: float) -> None:
    if not 1 <= power < math.inf:
        raise UsageError(
            f"gradient gating: found a power of {power}, expected 1 or more: below, the rates have "
            "no derivative where neighbours are alike."
        )
