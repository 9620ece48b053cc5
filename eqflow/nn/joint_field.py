r"""The velocity of positions and features that evolve together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from eqflow.edges import Dual, Edges
from eqflow.errors import UsageError
from eqflow.geometry import centred, split_state
from eqflow.nn.conditioning import Conditioning
from eqflow.nn.egcl import CoordinateUpdate
from eqflow.nn.egnn import EGNN
from eqflow.nn.exact_trace import is_linearisable, shift_features_and_trace
from eqflow.nn.field import AbstractField


class JointEGNNField(AbstractField):
    r"""The field of the equivariant normalizing flow on molecules.

    :math:`(\dot x, \dot h) = (x^L - x, h^L)` with
    :math:`(x^L, h^L) = \mathrm{EGNN}(x, [h, \mathrm{context}, \tau(t)])`, the mean of `ẋ` removed;
    `ḣ` is what the network puts out, not a difference. A state is `[x, h]`, shape (N, d + K).

    Args:
        features: Number K of features that evolve with the positions.
        context_features: Width of the conditioning node features, which stay.
        width, layers, attention, coordinate_update, coordinate_range: As in `EGNN`.
        time_frequencies: As in `Conditioning`; 0 is the published form.
        cutoff: Connect points within this distance (in the unit of `x`), their messages ending
            smoothly; complete graphs where None.

    Raises:
        UsageError: If there is no feature, or an option is out of range.

    Reference: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016,
    eq. 7-12.
    """

    is_equivariant = True

    def __init__(
        self,
        features: int,
        context_features: int = 0,
        width: int = 64,
        layers: int = 6,
        *,
        attention: bool = True,
        coordinate_update: CoordinateUpdate = "stabilized",
        coordinate_range: float | None = 15.0,
        time_frequencies: int = 0,
        cutoff: float | None = None,
    ) -> None:
        super().__init__()
        if features < 1:
            raise UsageError(
                f"JointEGNNField: found features={features}, expected at least 1; "
                "use EGNNField for positions alone."
            )
        self.conditioning = Conditioning(context_features, time_frequencies)
        self.state_features = features
        self.context_features = context_features
        self.cutoff = cutoff
        self.message_width = width
        self.egnn = EGNN(
            features + self.conditioning.width,
            width,
            layers,
            attention=attention,
            coordinate_update=coordinate_update,
            coordinate_range=coordinate_range,
            input_distance=True,
            cutoff=cutoff,
            output_features=features,
        )

    @property
    def carries_tangents(self) -> bool:
        """Whether `pushforward` is that of this very `forward`, also in its network."""
        return super().carries_tangents and self.egnn.is_as_made

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity; arguments as in `AbstractField`."""
        positions, h = split_state(x, self.state_features)
        fixed = self.conditioning(t, edges.clouds, context)
        positions = centred(positions, edges.clouds)  # far from the origin differences lose digits
        moved, h = self.egnn(positions, torch.cat([h, fixed], -1), edges)
        return torch.cat([centred(moved - positions, edges.clouds), h], -1)

    def pushforward(
        self, t: Tensor, x: Dual, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Velocity and tangents; arguments as in `AbstractField`."""
        fixed = self.conditioning(t, edges.clouds, context)
        (positions, h), (dx, dh) = (split_state(part, self.state_features) for part in x)
        positions = Dual(centred(positions, edges.clouds), centred(dx, edges.clouds))
        h = Dual(torch.cat([h, fixed], -1), pad(dh, (0, fixed.shape[-1])))
        moved, h = self.egnn.pushforward(positions, h, edges)
        value, tangent = (
            torch.cat([centred(there - here, edges.clouds), features], -1)
            for there, here, features in zip(moved, positions, h, strict=True)
        )
        return value, tangent

    def exact_trace(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Velocity and divergence on complete graphs; arguments as in `AbstractField`."""
        if not edges.is_complete or not is_linearisable(self.egnn):
            return None
        positions, h = split_state(x, self.state_features)
        fixed = self.conditioning(t, edges.clouds, context)
        found = shift_features_and_trace(
            self.egnn,
            centred(positions, edges.clouds),
            torch.cat([h, fixed], -1),
            edges.clouds,
            self.state_features,
        )
        velocity = torch.cat([centred(found.shift, edges.clouds), found.out], -1)
        of_features = found.blocks.diagonal(dim1=1, dim2=2).sum(1)
        return velocity, found.trace + edges.clouds.sum(of_features)
