r"""The wide part of a message pass: all of it that is as wide as the features.

.. math::
    z = p_r + q_c + W_a a, \quad m = \mathrm{silu}(W_2\, \mathrm{silu}(z) + b_2), \quad
    m \leftarrow g_a(m)\, m, \quad \varphi = w \cdot \mathrm{silu}(W_x m + b_x), \quad
    M_i = \sum_{e \to i} s_e\, g_i(m)\, m

The rest of a convolution is as wide as the positions. Here are the formulas in operations torch
differentiates at will, for a value and for a value with tangents. `by_hand` has the same with
derivatives of its own; it runs wherever a first derivative is all that can be asked for.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import linear, silu

from eqflow.edges.dual import dual_silu
from eqflow.edges.graph import Edges
from eqflow.edges.network import EdgeNetwork, Gate
from eqflow.edges.primitives import edge_linear, gather, segment_sum


class Inputs(NamedTuple):
    """What the edge network is applied to.

    Attributes:
        receiver: `p`, shape (N, F).
        sender: `q`, shape (N, F).
        scalars: `a`, shape (E, 1 + K).
        weight: `s`, shape (E, 1), or None for 1.
    """

    receiver: Tensor
    sender: Tensor
    scalars: Tensor
    weight: Tensor | None


class Tangents(NamedTuple):
    """S directions on the second axis of each part of `Inputs`; None where they are zero."""

    receiver: Tensor | None
    sender: Tensor | None
    scalars: Tensor
    weight: Tensor | None


def composed(inputs: Inputs, network: EdgeNetwork, edges: Edges) -> tuple[Tensor, Tensor]:
    """`φ` (E, 1) and `M` (N, F)."""
    z = edge_linear(inputs.receiver, inputs.sender, inputs.scalars, network.scalar_weight, edges)
    z, m = message_stage(first_stage(z, network), inputs.weight, network)
    return last_stage(z, network), segment_sum(m, edges)


def first_stage(z: Tensor, network: EdgeNetwork) -> Tensor:
    """`W_2 silu(z) + b_2`, (E, F)."""
    return linear(silu(z), network.message_weight, network.message_bias)


def message_stage(z: Tensor, weight: Tensor | None, network: EdgeNetwork) -> tuple[Tensor, Tensor]:
    """Of `m = g_a silu(z)`: `W_x m + b_x` and `s g_i m`, (E, F) each."""
    m = silu(z)
    if network.attention is not None:
        m = m * network.attention(m)
    z = linear(m, network.coordinate_weight, network.coordinate_bias)
    if network.inference is not None:
        m = m * network.inference(m)
    return z, m if weight is None else m * weight


def last_stage(z: Tensor, network: EdgeNetwork) -> Tensor:
    """`w · silu(z)`, (E, 1)."""
    return linear(silu(z), network.coordinate_out)


def composed_dual(
    inputs: Inputs, tangents: Tangents, network: EdgeNetwork, edges: Edges
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`φ` and `M`, then their derivatives (E, S, 1) and (N, S, F)."""
    z = edge_linear(inputs.receiver, inputs.sender, inputs.scalars, network.scalar_weight, edges)
    dz = linear(tangents.scalars, network.scalar_weight)
    if tangents.receiver is not None:
        dz = dz + gather(tangents.receiver, edges, "receiver")
    if tangents.sender is not None:
        dz = dz + gather(tangents.sender, edges)

    z, dz = first_stage_dual(z, dz, network)
    z, dz, m, dm = message_stage_dual(z, dz, inputs.weight, tangents.weight, network)
    phi, dphi = last_stage_dual(z, dz, network)
    return phi, segment_sum(m, edges), dphi, segment_sum(dm, edges)


def first_stage_dual(z: Tensor, dz: Tensor, network: EdgeNetwork) -> tuple[Tensor, Tensor]:
    """`first_stage` with tangents (E, S, F)."""
    return _layer(*dual_silu(z, dz), network.message_weight, network.message_bias)


def message_stage_dual(
    z: Tensor, dz: Tensor, weight: Tensor | None, dweight: Tensor | None, network: EdgeNetwork
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`message_stage` with tangents (E, S, F): both values, each followed by its tangents."""
    m, dm = dual_silu(z, dz)
    if network.attention is not None:
        m, dm = _gated(m, dm, network.attention)
    z, dz = _layer(m, dm, network.coordinate_weight, network.coordinate_bias)
    if network.inference is not None:
        m, dm = _gated(m, dm, network.inference)
    if weight is not None:
        moved = dm * weight.unsqueeze(1)
        if dweight is not None:
            moved = moved + m.unsqueeze(1) * dweight
        m, dm = m * weight, moved
    return z, dz, m, dm


def last_stage_dual(z: Tensor, dz: Tensor, network: EdgeNetwork) -> tuple[Tensor, Tensor]:
    """`last_stage` with tangents (E, S, F)."""
    h, dh = dual_silu(z, dz)
    return linear(h, network.coordinate_out), linear(dh, network.coordinate_out)


def _layer(m: Tensor, dm: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return linear(m, weight, bias), linear(dm, weight)


def _gated(m: Tensor, dm: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    g = gate(m)
    dg = (g * (1 - g)).unsqueeze(1) * linear(dm, gate.weight)
    return m * g, dm * g.unsqueeze(1) + m.unsqueeze(1) * dg
