"""Whole message passes as one operation, so that a backend can fuse them.

The torch backend composes them from primitives: what stands here is their meaning.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from eqflow.edges.graph import Edges
from eqflow.edges.primitives import (
    edge_dot,
    edge_linear,
    gather,
    segment_softmax,
    segment_sum,
    weighted_difference,
)

# Softens a distance at coincident points, where its gradient would be NaN (unit of x squared).
DISTANCE_EPSILON = 1e-8


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


def egcl_messages(
    x: Tensor,
    receiver: Tensor,
    sender: Tensor,
    scalars: Tensor | None,
    network: EdgeNetwork,
    edges: Edges,
    envelope: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Both sums of an equivariant graph convolution over the incoming edges of each node.

    With `m_ij = φ_e(h_i, h_j, d_ij², a_ij)` and the envelope `s_ij`, 1 where there is none, returns
    :math:`\sum_j s_{ij} (x_i - x_j) / (d_{ij} + 1) \cdot \varphi_x(m_{ij})` and
    :math:`\sum_j s_{ij} m_{ij}`.

    Args:
        x: Positions, shape (N, d).
        receiver: `W₁ h + b`, the receiver's part of the first layer of `φ_e`, shape (N, F).
        sender: `W₂ h`, the sender's part, shape (N, F).
        scalars: Edge attributes `a`, shape (E, K), or None for K = 0.
        network: The edge functions.
        edges: The graph.
        envelope: `s`, the weight of each edge in both sums, such as `smooth_cutoff`, shape (E,).

    Returns:
        Coordinate shift (N, d) and message sum (N, F).

    Reference: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016,
    eq. 9-12.
    """
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

    if network.stabilized:
        c = c / ((d2 + DISTANCE_EPSILON).sqrt() + 1)
    else:
        degree = edges.incoming.lengths.clamp(min=1).to(c.dtype)
        c = c / gather(degree.unsqueeze(1), edges, "receiver")
    if network.inference is not None:
        m = network.inference(m) * m
    if envelope is not None:
        m, c = m * envelope.unsqueeze(1), c * envelope.unsqueeze(1)
    return segment_sum(-c * difference, edges), segment_sum(m, edges)


def attention_diffusion(
    query: Tensor, key: Tensor, x: Tensor, edges: Edges
) -> tuple[Tensor, Tensor]:
    r"""Scaled dot-product attention as a diffusion: `Σ_e a_e (x_c − x_r)` with softmax weights.

    :math:`a_e = \mathrm{softmax}_{e \to r} \langle q_r, k_c \rangle / \sqrt{C}`.

    Args:
        query: Shape (N, C), or (N, H, C) for `H` heads; read at the receiver.
        key: Same shape; read at the sender.
        x: Node values, shape (N, D), or (N, H, D).
        edges: The graph.

    Returns:
        The diffusion term, shape of `x` or (N, H, D), and the weights `a`, (E,) or (E, H).
    """
    logits = edge_dot(query, key, edges) / math.sqrt(query.shape[-1])
    weights = segment_softmax(logits, edges)
    return weighted_difference(weights, x, edges), weights


def smooth_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """`(1 − u)³ (1 + 3u + 6u²)` with `u = d / cutoff`, and 0 beyond: twice differentiable there.

    A field whose messages end this way is continuous, and so is its divergence, while neighbours
    come and go. The envelope must be that of the distances the graph was made from.

    >>> smooth_cutoff(torch.tensor([0.0, 1.0, 2.0, 3.0]), cutoff=2.0)
    tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """
    u = (distance / cutoff).clamp(max=1)
    return (1 - u) ** 3 * (1 + 3 * u + 6 * u.square())
