r"""GRAND: graph neural diffusion, with attention as the diffusivity.

.. math::
    \dot x = \sigma(\alpha) (\bar A x - x) + \beta x(0)

with `Ā` the mean over heads of the attention matrix: of the state at the start (GRAND-l, a linear
equation) or of the state at hand (GRAND-nl).

Reference: GRAND: Graph Neural Diffusion (Chamberlain et al., 2021), arXiv:2106.10934, eq. 9-11.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from eqflow.edges import Edges
from eqflow.edges.weights import Normaliser
from eqflow.nn.arguments import require_counts
from eqflow.nn.diffusion.attention import Attention, Over, Rates
from eqflow.nn.diffusion.diffusivity import AbstractDiffusivity, diffusivity_by_name
from eqflow.nn.diffusion.operator import AbstractDiffusion, Coefficients, start_of

Rewire = Callable[[Tensor, Edges], Edges]


class GRAND(AbstractDiffusion):
    """Attention diffusion of node features.

    Args:
        width: Channels C of a node's state.
        heads: Heads of attention, averaged.
        attention_width: Channels of queries and keys, of all heads together.
        diffusivity: "scaled_dot", "cosine", "pearson", "exponential", "additive", "distance" or
            "gaussian_mixture"; or a module.
        normaliser: "softmax" or "squareplus".
        over: What sums to 1: "rows" (a receiver's edges) or "columns" (a sender's).
        nonlinear: Whether attention is that of the state at hand (GRAND-nl) and not of the start.
        source: Whether `β x(0)` is added, `β` being learned from 0.

    Raises:
        UsageError: If a name is unknown or the heads do not fit.

    >>> import torch
    >>> field = GRAND(16, heads=2)
    >>> edges = Edges.from_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
    >>> x = torch.ones(3, 16)
    >>> field(torch.zeros(()), x, edges, context=x).abs().max() < 1e-6
    tensor(True)
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        attention_width: int = 64,
        diffusivity: str | AbstractDiffusivity = "scaled_dot",
        normaliser: Normaliser = "softmax",
        over: Over = "rows",
        nonlinear: bool = False,
        source: bool = True,
    ) -> None:
        super().__init__()
        require_counts(type(self).__name__, width=width)
        if isinstance(diffusivity, str):
            diffusivity = diffusivity_by_name(diffusivity, width, heads, attention_width)
        self.width = width
        self.nonlinear = nonlinear
        self.attention = Attention(diffusivity, normaliser, over)
        self.rates = Rates(source)
        self.needs_start = source or not nonlinear
        self.context_features = width if self.needs_start else 0

    @property
    def is_linear(self) -> bool:
        """Whether attention stays that of the start."""
        return not self.nonlinear

    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """Those of `ẋ = σ(α) (Ā x − x) + β x(0)`; arguments as in `AbstractDiffusion`."""
        self.require_state(x, edges, self.width)
        start = start_of(self, x, context) if self.needs_start else None
        attention = self.attention(x if start is None or self.nonlinear else start, edges)
        return self.rates.coefficients(attention, edges, self.attention.over, start)
