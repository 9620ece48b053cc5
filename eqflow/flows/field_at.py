"""A velocity field at one time on one graph, and its derivative from the right and the left."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor

from eqflow.edges import Dual, Edges
from eqflow.edges.network import constant_weights
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
        """The velocity at `x`, shape (N, d + K)."""
        velocity: Tensor = self.field(self.t.to(x.dtype), x, self.edges, self.context)
        return velocity

    def outside_inference(self) -> FieldAt:
        """The same field, its time and context such as a graph may keep."""
        context = None if self.context is None else _ordinary(self.context)
        return replace(self, t=_ordinary(self.t), context=context)

    def pushforward(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and its derivative along `direction`, all of shape (N, d + K)."""
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


def features_of(velocity: Velocity) -> int:
    """Number of features in the last columns of the state; a bare function has positions alone."""
    return velocity.field.state_features if isinstance(velocity, FieldAt) else 0


@dataclass
class Pullback:
    """`u ↦ uᵀ J` at one state, through one retained graph."""

    velocity: Velocity
    x: Tensor

    def __post_init__(self) -> None:
        self.differentiable = torch.is_grad_enabled()
        velocity = self.velocity
        if isinstance(velocity, FieldAt):
            velocity = velocity.outside_inference()
        constant = nullcontext() if self.differentiable else constant_weights()
        with torch.inference_mode(False), torch.enable_grad(), constant:
            if not (self.differentiable and self.x.requires_grad):
                self.x = _ordinary(self.x).detach().requires_grad_()
            self.graph_value = velocity(self.x)
        self.value = self.graph_value if self.differentiable else self.graph_value.detach()

    def __call__(self, covector: Tensor) -> Tensor:
        """`uᵀ J`, shape (N, d + K)."""
        with torch.inference_mode(False), torch.enable_grad():
            (row,) = torch.autograd.grad(
                self.graph_value,
                self.x,
                _ordinary(covector),
                retain_graph=True,
                create_graph=self.differentiable,
                materialize_grads=True,
            )
        return row


def jacobian_of(velocity: Velocity, x: Tensor) -> Tensor:
    """`∂v/∂x` with both flat, shape (N w, N w), by one reverse pass an entry of `v`."""
    pullback = Pullback(velocity, x)
    count = x.numel()
    if not pullback.graph_value.requires_grad:  # the velocity is the same everywhere
        return x.new_zeros(count, count)
    units = torch.eye(count, dtype=x.dtype, device=x.device).reshape(count, *x.shape)
    rows = [pullback(unit).reshape(-1) for unit in units]
    return torch.stack(rows) if rows else x.new_zeros(0, 0)


def _ordinary(x: Tensor) -> Tensor:
    """A tensor that a graph may keep, which one made in inference mode is not."""
    return x.clone() if x.is_inference() else x
