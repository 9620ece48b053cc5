r"""BLEND: Beltrami diffusion, of positions and features together.

The state of a node is `z = (u, x)`: a position `u` in a space of encodings (where the graph says it
is) and features `x`. Both evolve, and the diffusivity sees both:

.. math::
    \dot z = \sigma(\alpha) (\bar A(z) z - z) + \beta z(0)

The graph itself may follow the positions: `E'(t)`, neighbours in `u(t)`, recomputed at every
evaluation. Such a right-hand side jumps where neighbours change: take fixed steps with it.

References: Beltrami Flow and Neural Diffusion on Graphs (Chamberlain et al., 2021),
arXiv:2110.09443, eq. 7-9.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from eqflow.edges import Edges, squared_distance
from eqflow.edges.weights import Normaliser
from eqflow.errors import UsageError
from eqflow.nn.arguments import require_counts
from eqflow.nn.diffusion.attention import Attention, Over, Rates
from eqflow.nn.diffusion.diffusivity import (
    AbstractDiffusivity,
    Distance,
    Exponential,
    diffusivity_by_name,
)
from eqflow.nn.diffusion.grand import Rewire
from eqflow.nn.diffusion.hyperbolic import squared_hyperbolic_distance
from eqflow.nn.diffusion.operator import AbstractDiffusion, Coefficients, start_of

Space = Literal["euclidean", "hyperbolic"]


class PositionAndFeature(AbstractDiffusivity):
    r"""A kernel of positions times a kernel of features.

    :math:`l_e = \sigma_u^2 e^{-d(u_r, u_c)^2 / 2 \ell_u^2} \cdot \sigma_x^2
    e^{-\lVert q_r - k_c \rVert^2 / 2 \ell_x^2}`, with `d` the distance of the space that positions
    lie in: no motion of that space changes the weights.

    Args:
        position_width: Channels of `u`, first in the state.
        feature_width: Channels of `x`.
        heads, attention_width: Of the kernel of features.
        space: "euclidean", or "hyperbolic" for positions in the Poincaré ball.
    """

    def __init__(
        self,
        position_width: int,
        feature_width: int,
        heads: int = 1,
        attention_width: int = 64,
        space: Space = "euclidean",
    ) -> None:
        super().__init__()
        if space not in ("euclidean", "hyperbolic"):
            raise UsageError(f"space: found {space!r}, expected 'euclidean' or 'hyperbolic'.")
        self.heads = heads
        self.position_width = position_width
        self.space = space
        self.of_positions = Distance(heads)
        self.of_features = Exponential(feature_width, heads, attention_width)

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits, shape (E, H)."""
        u, x = z[:, : self.position_width], z[:, self.position_width :]
        distance = squared_hyperbolic_distance if self.space == "hyperbolic" else squared_distance
        return self.of_positions.of_squared(distance(u, edges)) * self.of_features(x, edges)


class BLEND(AbstractDiffusion):
    """Attention diffusion of positions and features.

    Args:
        position_width: Channels of `u`, the first of the state.
        feature_width: Channels of `x`, the others.
        heads, attention_width, normaliser, over: As in `GRAND`.
        diffusivity: As in `GRAND`, of the whole of `z`; or "position_and_feature", a kernel of
            distances times one of features: positions then move equivariantly, `E(d)` for
            `space="euclidean"`, and features invariantly.
        space: Where positions lie, for "position_and_feature".
        nonlinear: Whether attention is that of the state at hand and not of the start.
        source: Whether `β z(0)` is added, `β` being learned from 0.
        rewire: Takes positions (N, P) and the edges, returns the edges used at this moment, such as
            neighbours in `u(t)`; None for the graph as it is.

    Raises:
        UsageError: If a name is unknown or the heads do not fit.
    """

    def __init__(
        self,
        position_width: int,
        feature_width: int,
        *,
        heads: int = 8,
        attention_width: int = 64,
        diffusivity: str | AbstractDiffusivity = "scaled_dot",
        normaliser: Normaliser = "softmax",
        over: Over = "rows",
        space: Space = "euclidean",
        nonlinear: bool = True,
        source: bool = True,
        rewire: Rewire | None = None,
    ) -> None:
        super().__init__()
        require_counts("BLEND", position_width=position_width, feature_width=feature_width)
        width = position_width + feature_width
        if diffusivity == "position_and_feature":
            diffusivity = PositionAndFeature(
                position_width, feature_width, heads, attention_width, space
            )
        elif space != "euclidean":
            raise UsageError(
                f"space: found {space!r} with diffusivity={diffusivity!r}, expected "
                "diffusivity='position_and_feature', which alone knows distances of positions."
            )
        if isinstance(diffusivity, str):
            diffusivity = diffusivity_by_name(diffusivity, width, heads, attention_width)
        self.width = width
        self.position_width = position_width
        self.state_features = feature_width
        self.nonlinear = nonlinear
        self.attention = Attention(diffusivity, normaliser, over)
        self.rates = Rates(source)
        self.rewire = rewire
        self.needs_start = source or not nonlinear
        self.context_features = width if self.needs_start else 0

    @property
    def is_linear(self) -> bool:
        """Whether attention and edges stay those of the start."""
        return not self.nonlinear and self.rewire is None

    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """Those of `ż = σ(α) (Ā z − z) + β z(0)`; arguments as in `AbstractDiffusion`."""
        self.require_state(x, edges, self.width)
        start = start_of(self, x, context) if self.needs_start else None
        if self.rewire is not None:
            edges = self.rewire(x[:, : self.position_width].detach(), edges)
        attention = self.attention(x if start is None or self.nonlinear else start, edges)
        return self.rates.coefficients(attention, edges, self.attention.over, start)
