r"""Guidance: the velocity that a condition brings about, stretched.

Of a field that was trained with its condition and without it (`PropertyDropout`),

.. math::
    v = v_\varnothing + w \, (v_c - v_\varnothing)

is the conditional velocity at `w = 1` and the unconditional one at `w = 0`; beyond 1 the condition
counts for more than it should, and the flow is one of no density that was fitted to data.

References: Classifier-Free Diffusion Guidance (Ho, Salimans, 2022), arXiv:2207.12598, eq. 6, whose
`w` is one less; Guided Flows for Generative Modeling and Decision Making (Zheng et al., 2023),
arXiv:2311.13443, on velocities.
"""

from __future__ import annotations

import math

from torch import Tensor

from eqflow.edges import Dual, Edges
from eqflow.errors import UsageError
from eqflow.geometry import Segments
from eqflow.nn.field import AbstractField


class GuidedField(AbstractField):
    """A field whose condition is weighted, with twice its cost.

    It shares the weights of that field, and all that is known of it: tangents, and an exact trace
    of its own, are weighted alike.

    Args:
        field: Velocity with and without the condition.
        condition: Number of last context features that are the condition; zeros mean none.
        guidance: The weight `w`.

    Raises:
        UsageError: If the weight is negative, or the field has no such context.
    """

    def __init__(self, field: AbstractField, condition: int, guidance: float) -> None:
        super().__init__()
        if not 0 <= guidance < math.inf:
            raise UsageError(f"guidance: found {guidance}, expected 0 or more.")
        if not 0 < condition <= field.context_features:
            raise UsageError(
                f"GuidedField: found a condition of {condition} features, expected 1 to the "
                f"{field.context_features} context features of the field."
            )
        self.field = field
        self.condition = condition
        self.guidance = guidance
        self.state_features = field.state_features
        self.cutoff = field.cutoff
        self.context_features = field.context_features
        self.is_equivariant = field.turns_with_state
        self.message_width = field.message_width

    def connect(self, x: Tensor, clouds: Segments) -> Edges:
        """The graph that the field connects."""
        return self.field.connect(x, clouds)

    @property
    def carries_tangents(self) -> bool:
        """Whether the field does."""
        return super().carries_tangents and self.field.carries_tangents

    @property
    def traces_itself(self) -> bool:
        """Whether the field does."""
        return super().traces_itself and self.field.traces_itself

    @property
    def turns_with_state(self) -> bool:
        """Whether the field does."""
        return self.field.turns_with_state

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity; arguments as in `AbstractField`."""
        with_it, without = (self.field(t, x, edges, each) for each in self._contexts(context))
        return self._weighted(with_it, without)

    def velocity_and_logits(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The velocity, and logits where the field has them, weighted alike."""
        with_it, without = (
            self.field.velocity_and_logits(t, x, edges, each) for each in self._contexts(context)
        )
        v = self._weighted(with_it[0], without[0])
        if with_it[1] is None or without[1] is None:
            return v, None
        return v, self._weighted(with_it[1], without[1])

    def pushforward(
        self, t: Tensor, x: Dual, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Velocity and tangents; arguments as in `AbstractField`."""
        with_it, without = (
            self.field.pushforward(t, x, edges, each) for each in self._contexts(context)
        )
        return self._weighted(with_it[0], without[0]), self._weighted(with_it[1], without[1])

    def exact_trace(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Velocity and divergence where the field gives both; arguments as in `AbstractField`."""
        with_it, without = (
            self.field.exact_trace(t, x, edges, each) for each in self._contexts(context)
        )
        if with_it is None or without is None:
            return None
        return self._weighted(with_it[0], without[0]), self._weighted(with_it[1], without[1])

    def _weighted(self, with_it: Tensor, without: Tensor) -> Tensor:
        return without + self.guidance * (with_it - without)

    def _contexts(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Context with the condition, and without it."""
        if context is None:
            return None, None
        without = context.clone()
        without[:, -self.condition :] = 0
        return context, without
