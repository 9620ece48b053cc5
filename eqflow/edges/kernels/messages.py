"""The message pass on a GPU: which calls there are kernels for, and the way to them.

A width that is no power of two is filled up with features whose weights are zero. They stay zero
through every layer, so that the results are exact.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from eqflow.edges.backend import active_precision
from eqflow.edges.graph import Edges
from eqflow.edges.kernels.device import INTERPRETED
from eqflow.edges.kernels.launch import why_not
from eqflow.edges.kernels.message_derivatives import apply_dual, apply_messages
from eqflow.edges.kernels.message_setting import Setting, Slots, weights_of
from eqflow.edges.network import EdgeNetwork, Gate, MessageDual, MessageInputs, MessageTangents

NARROWEST, WIDEST = 32, 256
MOST_DIMENSIONS = 3
MOST_SCALARS = 32

# A double takes twice the registers and shared memory: there is no room for it on a device.
_DTYPES = (torch.float32, torch.float64) if INTERPRETED else (torch.float32,)


def egcl_messages(
    x: Tensor,
    receiver: Tensor,
    sender: Tensor,
    scalars: Tensor | None,
    network: EdgeNetwork,
    edges: Edges,
    envelope: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Coordinate shift and message sum; see `eqflow.edges.egcl_messages`."""
    inputs = MessageInputs(x, receiver, sender, scalars, envelope)
    setting, slots = _prepared(inputs, network, edges)
    shift, message = apply_messages(setting, slots)
    return shift, message[:, : receiver.shape[1]]


def egcl_messages_dual(
    primal: MessageInputs, tangent: MessageTangents, network: EdgeNetwork, edges: Edges
) -> MessageDual:
    """Both sums with their tangents; see `eqflow.edges.egcl_messages_dual`."""
    setting, slots = _prepared(primal, network, edges)
    width = primal.receiver.shape[1]
    missing = _missing(width)
    moved = tangent._replace(
        receiver=_filled(tangent.receiver, missing),
        sender=_filled(tangent.sender, missing),
        # Directions of what is not there move nothing.
        scalars=None if primal.scalars is None else tangent.scalars,
        envelope=None if primal.envelope is None else tangent.envelope,
    )
    dual = apply_dual(setting, slots[: len(primal)], list(moved), slots[len(primal) :])
    return dual._replace(
        message=dual.message[:, :width], message_tangent=dual.message_tangent[..., :width]
    )


def why_not_messages(operation: str, *arguments: Any) -> str | None:
    """Why there is no kernel for a call of either operation, or None where there is."""
    if operation == "egcl_messages_dual":
        primal, tangent, network, edges = arguments
        directions = [part for part in tangent if part is not None]
    else:
        x, receiver, sender, scalars, network, edges, envelope = arguments
        primal, directions = MessageInputs(x, receiver, sender, scalars, envelope), []
    given = [part for part in primal if part is not None]
    (_, dimension), width = primal.x.shape, primal.receiver.shape[1]
    if reason := why_not([*given, *directions, *network.tensors()], edges):
        return reason
    if primal.x.dtype not in _DTYPES:
        name = str(primal.x.dtype).removeprefix("torch.")
        return f"messages are made in float32, not in {name}"
    if not 1 <= dimension <= MOST_DIMENSIONS:
        return f"points have {dimension} dimensions, at most {MOST_DIMENSIONS} are possible"
    if width > WIDEST:
        return f"messages are {width} wide, at most {WIDEST} is possible"
    if network.scalar_weight.shape[1] - 1 > MOST_SCALARS:
        return f"edges have more than {MOST_SCALARS} scalars"
    if any(part.shape[1] == 0 for part in directions):
        return "there are no directions"
    return None


def _prepared(inputs: MessageInputs, network: EdgeNetwork, edges: Edges) -> tuple[Setting, Slots]:
    """The setting of a pass, and its inputs and weights filled up to a width with a kernel."""
    missing = _missing(inputs.receiver.shape[1])
    if missing:
        inputs = inputs._replace(
            receiver=pad(inputs.receiver, (0, missing)), sender=pad(inputs.sender, (0, missing))
        )
        network = _filled_network(network, missing)
    slots = [*inputs, *weights_of(network)]
    setting = Setting(
        edges,
        active_precision(),
        network.coordinate_range,
        network.stabilized,
        tuple(value is not None for value in slots),
    )
    return setting, slots


def _missing(width: int) -> int:
    return max(triton.next_power_of_2(width), NARROWEST) - width


def _filled(values: Tensor | None, missing: int) -> Tensor | None:
    return values if values is None or missing == 0 else pad(values, (0, missing))


def _filled_network(network: EdgeNetwork, missing: int) -> EdgeNetwork:
    def gate(part: Gate | None) -> Gate | None:
        return part and Gate(pad(part.weight, (0, missing)), part.bias)

    last, both = (0, missing), (0, missing, 0, missing)
    return network._replace(
        scalar_weight=pad(network.scalar_weight, (0, 0, 0, missing)),
        message_weight=pad(network.message_weight, both),
        message_bias=pad(network.message_bias, last),
        coordinate_weight=pad(network.coordinate_weight, both),
        coordinate_bias=pad(network.coordinate_bias, last),
        coordinate_out=pad(network.coordinate_out, last),
        attention=gate(network.attention),
        inference=gate(network.inference),
    )
