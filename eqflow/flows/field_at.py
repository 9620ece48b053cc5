"""A velocity field at one time on one graph, and its derivative from the right and the left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from eqflow.edges import Dual, Edges
from eqflow.flows.trace import Velocity
from eqflow.nn.field import AbstractField


@dataclass(frozen=True)
class FieldAt:
    """A field at one time on one graph, as a function of the state alone.

    Attributes:
        field: The velocity field.
        t: Time, a scalar.
        edges: The graph.
        context: Fixed node features, shape (N, C), or None.
    """

    field: AbstractField
    t: Tensor
    edges: Edges
    context: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The velocity at `x`, shape (N, d)."""
        velocity: Tensor = self.field(self.t.to(x.dtype), x, self.edges, self.context)
        return velocity

    def frozen(self) -> Velocity:
        """The same function with weights, time and context as constants to its derivative.

        Parameters are stood in for while the field is called, as `torch.func.functional_call` does.
        """
        context = None if self.context is None else self.context.detach()
        fixed = replace(self, t=self.t.detach(), context=context)

        def velocity(x: Tensor) -> Tensor:
            held: list[tuple[dict[str, Any], str, Tensor]] = [
                (module._parameters, name, parameter)
                for module in self.field.modules()
                for name, parameter in module._parameters.items()
                if parameter is not None and parameter.requires_grad
            ]
            try:
                for owner, name, parameter in held:
                    owner[name] = parameter.detach()
                return fixed(x)
            finally:
                for owner, name, parameter in held:
                    owner[name] = parameter

        return velocity

    def pushforward(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and its derivative along `direction`, all of shape (N, d)."""
        value, tangent = self.field.pushforward(
            self.t.to(x.dtype), Dual(x, direction.unsqueeze(1)), self.edges, self.context
        )
        return value, tangent.squeeze(1)

    def exact_trace(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Velocity and divergence by the field's own way, where it has one."""
        if not self.field.traces_itself:
            return None
        return self.field.exact_trace(self.t.to(x.dtype), x, self.edges, self.context)


def carries_tangents(velocity: Velocity) -> TypeGuard[FieldAt]:
    """Whether a velocity is that of a field which carries tangents beside its state."""
    return isinstance(velocity, FieldAt) and velocity.field.carries_tangents


@dataclass
class Pullback:
    """`u ↦ uᵀ J` at one state, through one retained graph."""

    velocity: Velocity
    x: Tensor

    def __post_init__(self) -> None:
        self.differentiable = torch.is_grad_enabled()
        velocity = self.velocity
        if isinstance(velocity, FieldAt) and not self.differentiable:
            # A backward pass written by hand gives all that its inputs ask for, wanted or not.
            velocity = velocity.frozen()
        with torch.enable_grad():
            if not (self.differentiable and self.x.requires_grad):
                self.x = self.x.detach().requires_grad_()
            self.graph_value = velocity(self.x)
        self.value = self.graph_value if self.differentiable else self.graph_value.detach()

    def __call__(self, covector: Tensor) -> Tensor:
        """`uᵀ J`, shape (N, d)."""
        with torch.enable_grad():
            (row,) = torch.autograd.grad(
                self.graph_value,
                self.x,
                covector,
                retain_graph=True,
                create_graph=self.differentiable,
                materialize_grads=True,
            )
        return row
