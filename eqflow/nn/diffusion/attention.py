r"""Edge weights from node states: a diffusivity made positive, normalised, its heads averaged.

:math:`a_e = H^{-1} \sum_h f(l_e^h) / \sum_{e'} f(l_{e'}^h)` with `f` the exponential or squareplus,
the sum over the incoming edges of a receiver ("rows" of the attention matrix) or the outgoing edges
of a sender ("columns").
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, segment_sum
from eqflow.edges.primitives import End
from eqflow.edges.weights import Normaliser
from eqflow.errors import UsageError
from eqflow.nn.diffusion.diffusivity import AbstractDiffusivity
from eqflow.nn.diffusion.operator import Coefficients

Over = Literal["rows", "columns"]
ENDS: dict[Over, End] = {"rows": "receiver", "columns": "sender"}


class Attention(nn.Module):
    """Weights `a_e` of edges, shape (E,), each row or column of which sums to 1.

    Args:
        diffusivity: The logits.
        normaliser: "softmax" or "squareplus", `(l + √(l² + 4)) / 2`.
        over: "rows" or "columns".

    Raises:
        UsageError: If one of them is of no known name.
    """

    def __init__(
        self,
        diffusivity: AbstractDiffusivity,
        normaliser: Normaliser = "softmax",
        over: Over = "rows",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("normaliser", normaliser, get_args(Normaliser)),
            ("over", over, get_args(Over)),
        ):
            if value not in known:
                raise UsageError(f"{name}: found {value!r}, expected one of {', '.join(known)}.")
        self.diffusivity = diffusivity
        self.normaliser: Normaliser = normaliser
        self.over: Over = over

    def heads(self, z: Tensor, edges: Edges) -> Tensor:
        """The weights of each head, shape (E, H)."""
        return self.diffusivity.weights(z, edges, self.normaliser, ENDS[self.over])

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The mean over heads, shape (E,)."""
        return self.heads(z, edges).mean(1)


class Rates(nn.Module):
    r"""Speed and source of an attention diffusion, `ẋ = σ(α) (Ā x − x) + β x(0)`.

    Args:
        source: Whether there is a source, `β` being learned from 0.
    """

    def __init__(self, source: bool) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(())) if source else None

    def coefficients(
        self, attention: Tensor, edges: Edges, over: Over, start: Tensor | None
    ) -> Coefficients:
        """Those of the diffusion with weights `attention` (E,).

        Rows that sum to 1 leave nothing on the diagonal, and a node without edges where it is;
        columns that do leave `γ_i = σ(α) (Σ_j a_ij − 1)`.
        """
        speed = self.alpha.sigmoid()
        gain = None
        if over == "columns":
            gain = speed * (segment_sum(attention, edges) - 1)
        source = None if self.beta is None or start is None else self.beta * start
        return Coefficients(edges, speed * attention, gain, source=source)
