r"""The message pass of an equivariant graph convolution: its geometry around an edge network.

`egcl_messages` is the value. `egcl_messages_dual` carries tangents beside it by hand, a product
rule a line, so that `S` directional derivatives cost `S` linear passes through a network evaluated
once, and backward through them sees first derivatives only.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from eqflow.edges.backend import current_choice
from eqflow.edges.graph import Edges
from eqflow.edges.network import (
    DISTANCE_EPSILON,
    EdgeNetwork,
    MessageDual,
    MessageInputs,
    MessageTangents,
)
from eqflow.edges.primitives import gather, segment_sum
from eqflow.edges.reference import by_hand, compiled
from eqflow.edges.reference.edge_mlp import (
    Inputs,
    Tangents,
    composed,
    composed_dual,
)
from eqflow.edges.watched import is_watched

# Edges times features from where on the pass by hand was the faster one on a CPU.
SMALL = 3 * 2**14


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
    D = gather(x, edges) - gather(x, edges, "receiver")  # x_j − x_i
    d2 = D.square().sum(-1, keepdim=True)
    a = d2 if scalars is None else torch.cat([d2, scalars], -1)
    s = None if envelope is None else envelope.unsqueeze(1)

    is_plain = is_watched(x) or _is_small(receiver, edges)
    edge_mlp = composed if is_plain else _wide(x).edge_mlp
    c, message = edge_mlp(Inputs(receiver, sender, a, s), network, edges)
    if network.coordinate_range is not None:
        c = network.coordinate_range * torch.tanh(c)
    c = c / ((d2 + DISTANCE_EPSILON).sqrt() + 1 if network.stabilized else _degree(edges, c))
    if s is not None:
        c = c * s
    return segment_sum(-c * D, edges), message


def egcl_messages_dual(
    primal: MessageInputs, tangent: MessageTangents, network: EdgeNetwork, edges: Edges
) -> MessageDual:
    """Both sums with their tangents; see `eqflow.edges.egcl_messages_dual`.

    `c` and `dc` are value and tangent throughout; tangents have a second axis for directions.
    """
    D = gather(primal.x, edges) - gather(primal.x, edges, "receiver")
    dD = gather(tangent.x, edges) - gather(tangent.x, edges, "receiver")
    d2 = D.square().sum(-1, keepdim=True)
    dd2 = 2 * (D.unsqueeze(1) * dD).sum(-1, keepdim=True)

    a, da = d2, dd2
    if primal.scalars is not None:
        moved = tangent.scalars
        if moved is None:
            moved = dd2.new_zeros(*dd2.shape[:2], primal.scalars.shape[1])
        a, da = torch.cat([d2, primal.scalars], -1), torch.cat([dd2, moved], -1)
    s = None if primal.envelope is None else primal.envelope.unsqueeze(1)
    ds = None if tangent.envelope is None else tangent.envelope.unsqueeze(2)

    is_plain = tangent.x.shape[1] > 1 or is_watched(primal.x) or _is_small(primal.receiver, edges)
    dual_edge_mlp = composed_dual if is_plain else _wide(primal.x).dual_edge_mlp
    c, message, dc, dmessage = dual_edge_mlp(
        Inputs(primal.receiver, primal.sender, a, s),
        Tangents(tangent.receiver, tangent.sender, da, ds),
        network,
        edges,
    )
    if network.coordinate_range is not None:
        R = network.coordinate_range
        c = R * torch.tanh(c)
        dc = (R - c.square() / R).unsqueeze(1) * dc
    if network.stabilized:
        d = (d2 + DISTANCE_EPSILON).sqrt()
        inverse = 1 / (d + 1)
        c = c * inverse
        dc = dc * inverse.unsqueeze(1) - (c * inverse / (2 * d)).unsqueeze(1) * dd2
    else:
        degree = _degree(edges, c)
        c, dc = c / degree, dc / degree.unsqueeze(1)
    if s is not None:
        moved = dc * s.unsqueeze(1)
        dc = moved if ds is None else moved + c.unsqueeze(1) * ds
        c = c * s
    return MessageDual(
        segment_sum(-c * D, edges),
        message,
        segment_sum(-(dc * D.unsqueeze(1) + c.unsqueeze(1) * dD), edges),
        dmessage,
    )


def _wide(like: Tensor) -> ModuleType:
    """What computes the wide part where the plain formulas need not be seen."""
    return compiled if current_choice().compiled and not like.is_cuda else by_hand


def _is_small(features: Tensor, edges: Edges) -> bool:
    """Whether preparing a pass by hand would cost more than it saves."""
    return not features.is_cuda and edges.count * features.shape[1] < SMALL


def _degree(edges: Edges, like: Tensor) -> Tensor:
    degree = edges.incoming.lengths.clamp(min=1).to(like.dtype)
    return gather(degree.unsqueeze(1), edges, "receiver")
