"""Velocity fields: right-hand sides `field(t, x, edges, context) -> dx/dt` of a flow."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from eqflow.edges import Dual, Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Segments, centred, split_state
from eqflow.nn.conditioning import Conditioning
from eqflow.nn.egcl import CoordinateUpdate
from eqflow.nn.egnn import EGNN
from eqflow.nn.exact_trace import is_linearisable, shift_and_trace


class AbstractField(nn.Module, ABC):
    """A velocity for every row of a packed state, given time, graph and fixed node features.

    The state of a row is a position of `d` coordinates, centred per cloud, and behind it as many
    features as evolve along with it.

    Attributes:
        state_features: Number K of features in the last columns of the state; 0 where it holds
            positions alone.
        cutoff: Distance within which points are connected, or None for complete graphs. A field
            with a cutoff must end its messages smoothly there.
        context_features: Width of the fixed node features it is conditioned on, 0 for none.
        is_equivariant: Whether turning the positions turns their velocity and no other, the graph
            and the context staying as they are; the exact divergence then asks for fewer
            directions. It is said of the `forward` beside it: a subclass with a `forward` of its
            own says it again.
        message_width: Numbers that a layer holds for each edge and direction, by which directions
            are taken in parts that fit a cache.
    """

    state_features: int = 0
    cutoff: float | None = None
    context_features: int = 0
    is_equivariant: bool = False
    message_width: int = 64

    def connect(self, x: Tensor, clouds: Segments) -> Edges:
        """The graph of the state `x`, shape (N, d + K), which is that of its positions."""
        if self.cutoff is None:
            return Edges.complete(clouds)
        return Edges.radius(split_state(x, self.state_features)[0], self.cutoff, clouds)

    @property
    def carries_tangents(self) -> bool:
        """Whether `pushforward` is there, and is that of this very `forward`."""
        return self._belongs_to_forward("pushforward")

    @property
    def traces_itself(self) -> bool:
        """Whether `exact_trace` is there, and is that of this very `forward`."""
        return self._belongs_to_forward("exact_trace")

    @property
    def turns_with_state(self) -> bool:
        """Whether `is_equivariant` is said, and of this very `forward`."""
        return self.is_equivariant and self._belongs_to_forward("is_equivariant")

    def _belongs_to_forward(self, member: str) -> bool:
        """Whether a member was written for the `forward` in force, and no hook changes that."""
        where = {
            name: next(k for k, kind in enumerate(type(self).__mro__) if name in vars(kind))
            for name in ("forward", member)
        }
        is_own = type(self).__mro__[where[member]] is not AbstractField
        changed = self._forward_hooks or self._forward_pre_hooks or "forward" in vars(self)
        return is_own and where[member] <= where["forward"] and not changed

    def pushforward(
        self, t: Tensor, x: Dual, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The velocity and its derivatives along S directions, in one pass.

        Args:
            t, edges, context: As in `forward`.
            x: State (N, d + K) and directions (N, S, d + K).

        Returns:
            Shapes (N, d + K) and (N, S, d + K), differentiable once.

        Raises:
            UsageError: If the field does not carry tangents.
        """
        raise UsageError(f"{type(self).__name__} carries no tangents; differentiate `forward`.")

    def exact_trace(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Velocity (N, d + K) and divergence (B,), where the field has a way of its own to get it.

        Arguments are those of `forward`. Nothing that is returned can be differentiated. None where
        there is no such way for this graph.
        """
        return None

    def velocity_and_logits(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The velocity, and the logits (N, K) of each point's category where it predicts them.

        Arguments are those of `forward`.
        """
        return self(t, x, edges, context), None

    @abstractmethod
    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity `dx/dt`.

        Args:
            t: Time, a scalar, or one a cloud, shape (B,).
            x: State, shape (N, d + K).
            edges: The graph, as `connect` made it for this state.
            context: Fixed node features, shape (N, context_features), or None.

        Returns:
            Shape (N, d + K).
        """


class EGNNField(AbstractField):
    r"""The field of the equivariant normalizing flow: `ẋ = x^L − x`, its mean removed.

    :math:`x^L = \mathrm{EGNN}(x, [\mathrm{context}, \tau(t)])` with time as node features, see
    `Conditioning`.

    Args:
        context_features: Width of the conditioning node features.
        width, layers, attention, coordinate_update, coordinate_range: As in `EGNN`.
        time_frequencies: Number K of cosine-sine pairs beside `t`; 0 is the published form.
        cutoff: Connect points within this distance (in the unit of `x`), their messages ending
            smoothly; complete graphs where None.

    Reference: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016,
    eq. 7-12.
    """

    is_equivariant = True

    def __init__(
        self,
        context_features: int = 0,
        width: int = 64,
        layers: int = 3,
        *,
        attention: bool = True,
        coordinate_update: CoordinateUpdate = "stabilized",
        coordinate_range: float | None = 15.0,
        time_frequencies: int = 0,
        cutoff: float | None = None,
    ) -> None:
        super().__init__()
        self.conditioning = Conditioning(context_features, time_frequencies)
        self.context_features = context_features
        self.cutoff = cutoff
        self.message_width = width
        self.egnn = EGNN(
            self.conditioning.width,
            width,
            layers,
            attention=attention,
            coordinate_update=coordinate_update,
            coordinate_range=coordinate_range,
            input_distance=True,
            cutoff=cutoff,
            positions_only=True,
        )

    @property
    def carries_tangents(self) -> bool:
        """Whether `pushforward` is that of this very `forward`, also in its network."""
        return super().carries_tangents and self.egnn.is_as_made

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity; arguments as in `AbstractField`."""
        h = self.conditioning(t, edges.clouds, context)
        x = centred(x, edges.clouds)  # far from the origin `x^L − x` would lose digits
        moved = self.egnn(x, h, edges)[0]
        return centred(moved - x, edges.clouds)

    def pushforward(
        self, t: Tensor, x: Dual, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Velocity and tangents; arguments as in `AbstractField`."""
        _require_one_type(x.value, self.egnn)
        h = self.conditioning(t, edges.clouds, context)
        x = Dual(*(centred(part, edges.clouds) for part in x))
        moved, _ = self.egnn.pushforward(x, Dual(h), edges)
        value, tangent = (
            centred(there - here, edges.clouds) for there, here in zip(moved, x, strict=True)
        )
        return value, tangent

    def exact_trace(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Velocity and divergence on complete graphs; arguments as in `AbstractField`."""
        # What the distances of half precision are divided by would be 0.
        if not edges.is_complete or x.dtype is torch.float16 or not is_linearisable(self.egnn):
            return None
        _require_one_type(x, self.egnn)
        h = self.conditioning(t, edges.clouds, context)
        shift, trace = shift_and_trace(self.egnn, centred(x, edges.clouds), h, edges.clouds)
        return centred(shift, edges.clouds), trace


def _require_one_type(x: Tensor, egnn: EGNN) -> None:
    """Positions are of the type of the weights, which under autocast need not be so."""
    own = egnn.embed.weight.dtype
    if x.dtype is not own and not torch.is_autocast_enabled(x.device.type):
        raise ShapeError(
            f"EGNNField: found positions of {x.dtype} and weights of {own}, expected one type. "
            "Convert either: field.to(x.dtype), or x.to the type of the weights."
        )
