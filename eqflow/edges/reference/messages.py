r"""The message pass of an equivariant graph convolution, composed of primitives.

`egcl_messages` is the value. `egcl_messages_dual` carries tangents beside it by hand: a product
rule a line, so that `S` directional derivatives cost `S` linear passes through a network evaluated
once, and backward through them sees first derivatives only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from eqflow.edges.dual import dual_silu
from eqflow.edges.graph import Edges
from eqflow.edges.network import (
    DISTANCE_EPSILON,
    EdgeNetwork,
    Gate,
    MessageDual,
    MessageInputs,
    MessageTangents,
)
from eqflow.edges.primitives import edge_linear, gather, segment_sum


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
    difference = gather(x, edges) - gather(x, edges, "receiver")  # x_j − x_i
    d2 = difference.square().sum(-1, keepdim=True)
    a = d2 if scalars is None else torch.cat([d2, scalars], -1)

    z = edge_linear(receiver, sender, a, network.scalar_weight, edges)
    m = silu(linear(silu(z), network.message_weight, network.message_bias))
    if network.attention is not None:
        m = m * network.attention(m)

    c = linear(
        silu(linear(m, network.coordinate_weight, network.coordinate_bias)), network.coordinate_out
    )
    if network.coordinate_range is not None:
        c = network.coordinate_range * torch.tanh(c)

    c = c / ((d2 + DISTANCE_EPSILON).sqrt() + 1 if network.stabilized else _degree(edges, c))
    if network.inference is not None:
        m = network.inference(m) * m
    if envelope is not None:
        m, c = m * envelope.unsqueeze(1), c * envelope.unsqueeze(1)
    return segment_sum(-c * difference, edges), segment_sum(m, edges)


def egcl_messages_dual(
    primal: MessageInputs, tangent: MessageTangents, network: EdgeNetwork, edges: Edges
) -> MessageDual:
    """Both sums with their tangents; see `eqflow.edges.egcl_messages_dual`.

    `m` and `dm` are value and tangent throughout; tangents have a second axis for directions.
    """
    D = gather(primal.x, edges) - gather(primal.x, edges, "receiver")
    dD = gather(tangent.x, edges) - gather(tangent.x, edges, "receiver")
    d2 = D.square().sum(-1, keepdim=True)
    dd2 = 2 * (D.unsqueeze(1) * dD).sum(-1, keepdim=True)

    a = d2 if primal.scalars is None else torch.cat([d2, primal.scalars], -1)
    da = dd2
    if primal.scalars is not None:
        moved = tangent.scalars
        if moved is None:
            moved = dd2.new_zeros(*dd2.shape[:2], primal.scalars.shape[1])
        da = torch.cat([dd2, moved], -1)

    z = edge_linear(primal.receiver, primal.sender, a, network.scalar_weight, edges)
    dz = linear(da, network.scalar_weight)
    if tangent.receiver is not None:
        dz = dz + gather(tangent.receiver, edges, "receiver")
    if tangent.sender is not None:
        dz = dz + gather(tangent.sender, edges)

    m, dm = dual_silu(z, dz)
    m, dm = dual_silu(*_layer(m, dm, network.message_weight, network.message_bias))
    if network.attention is not None:
        m, dm = _gated(m, dm, network.attention)

    c, dc = dual_silu(*_layer(m, dm, network.coordinate_weight, network.coordinate_bias))
    c, dc = linear(c, network.coordinate_out), linear(dc, network.coordinate_out)
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
    if network.inference is not None:
        m, dm = _gated(m, dm, network.inference)
    if primal.envelope is not None:
        s, ds = primal.envelope.unsqueeze(1), tangent.envelope
        m, dm = _weighted(m, dm, s, ds)
        c, dc = _weighted(c, dc, s, ds)
    return MessageDual(
        segment_sum(-c * D, edges),
        segment_sum(m, edges),
        segment_sum(-(dc * D.unsqueeze(1) + c.unsqueeze(1) * dD), edges),
        segment_sum(dm, edges),
    )


def _layer(m: Tensor, dm: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return linear(m, weight, bias), linear(dm, weight)


def _gated(m: Tensor, dm: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    g = gate(m)
    dg = (g * (1 - g)).unsqueeze(1) * linear(dm, gate.weight)
    return m * g, dm * g.unsqueeze(1) + m.unsqueeze(1) * dg


def _weighted(m: Tensor, dm: Tensor, s: Tensor, ds: Tensor | None) -> tuple[Tensor, Tensor]:
    moved = dm * s.unsqueeze(1)
    return m * s, moved if ds is None else moved + m.unsqueeze(1) * ds.unsqueeze(-1)


def _degree(edges: Edges, like: Tensor) -> Tensor:
    degree = edges.incoming.lengths.clamp(min=1).to(like.dtype)
    return gather(degree.unsqueeze(1), edges, "receiver")
