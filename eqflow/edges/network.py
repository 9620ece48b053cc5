"""What a fused message pass takes: the weights of its edge functions, and its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

# Softens a distance at coincident points, where its gradient would be NaN (unit of x squared).
DISTANCE_EPSILON = 1e-8


_WEIGHTS_ARE_CONSTANT = ContextVar("weights_are_constant", default=False)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Message passes begun within may leave out the derivatives by their weights on the way back.

    A pass written by hand gives all that its inputs ask for, whether it is wanted or not.
    """
    token = _WEIGHTS_ARE_CONSTANT.set(True)
    try:
        yield
    finally:
        _WEIGHTS_ARE_CONSTANT.reset(token)


def are_weights_constant() -> bool:
    """Whether this is within `constant_weights`."""
    return _WEIGHTS_ARE_CONSTANT.get()


class Gate(NamedTuple):
    """A scalar weight in (0, 1) for each message: `sigmoid(w · m + b)`; `w` (1, F), `b` (1,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, m: Tensor) -> Tensor:
        """The weight of each message, (E, F) to (E, 1)."""
        return torch.sigmoid(linear(m, self.weight, self.bias))


class EdgeNetwork(NamedTuple):
    r"""Weights of one equivariant graph convolution's edge functions, width F, K edge scalars.

    Attributes:
        scalar_weight: `W_a`, applied to `[d², a]`, shape (F, 1 + K).
        message_weight, message_bias: Second layer of `φ_e`, shapes (F, F) and (F,).
        coordinate_weight, coordinate_bias: First layer of `φ_x`, shapes (F, F) and (F,).
        coordinate_out: Second layer of `φ_x`, without bias, shape (1, F).
        attention: Gate on the message itself, or None.
        inference: Gate on the message in the feature sum only ("inferred edges"), or None.
        coordinate_range: `c ↦ R tanh(c)` bounds the coordinate weight, or None.
        stabilized: Divide by `d + 1`; otherwise by the receiver's number of neighbours.
    """

    scalar_weight: Tensor
    message_weight: Tensor
    message_bias: Tensor
    coordinate_weight: Tensor
    coordinate_bias: Tensor
    coordinate_out: Tensor
    attention: Gate | None
    inference: Gate | None
    coordinate_range: float | None
    stabilized: bool

    def tensors(self) -> tuple[Tensor, ...]:
        """All weights, in the order of the attributes."""
        gates = [part for gate in (self.attention, self.inference) if gate for part in gate]
        return (*self[:6], *gates)

    def with_tensors(self, tensors: Sequence[Tensor]) -> EdgeNetwork:
        """The same network with other weights, in the order of `tensors`."""
        rest = list(tensors[6:])
        attention = Gate(rest.pop(0), rest.pop(0)) if self.attention else None
        inference = Gate(rest.pop(0), rest.pop(0)) if self.inference else None
        a, b, c, d, e, f = tensors[:6]
        return EdgeNetwork(
            a,
            b,
            c,
            d,
            e,
            f,
            attention=attention,
            inference=inference,
            coordinate_range=self.coordinate_range,
            stabilized=self.stabilized,
        )


class MessageInputs(NamedTuple):
    """What a message pass depends on besides its weights.

    Attributes:
        x: Positions, shape (N, d).
        receiver: `W₁ h + b`, the receiver's part of the first layer of `φ_e`, shape (N, F).
        sender: `W₂ h`, the sender's part, shape (N, F).
        scalars: Edge attributes `a`, shape (E, K), or None for K = 0.
        envelope: `s`, the weight of each edge in both sums, such as `smooth_cutoff`, shape (E,).
    """

    x: Tensor
    receiver: Tensor
    sender: Tensor
    scalars: Tensor | None = None
    envelope: Tensor | None = None


class MessageTangents(NamedTuple):
    """S directions at `MessageInputs`, on the second axis of each part; a part None is zero.

    Attributes:
        x: Shape (N, S, d).
        receiver, sender: Shape (N, S, F).
        scalars: Shape (E, S, K).
        envelope: Shape (E, S).
    """

    x: Tensor
    receiver: Tensor | None = None
    sender: Tensor | None = None
    scalars: Tensor | None = None
    envelope: Tensor | None = None


class MessageDual(NamedTuple):
    """Both sums of a message pass and their derivatives along S directions.

    Attributes:
        shift: Coordinate shift, shape (N, d).
        message: Message sum, shape (N, F).
        shift_tangent: Shape (N, S, d).
        message_tangent: Shape (N, S, F).
    """

    shift: Tensor
    message: Tensor
    shift_tangent: Tensor
    message_tangent: Tensor
