"""Directions that change one feature of one node: into the first layer, and out of the last.

On a layer as it is linearised; in between such directions are pushed like any others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.edges.products import product
from eqflow.nn.linearised import Linearised
from eqflow.nn.stacked import own_of


def enter(layer: Linearised, points: slice, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The first layer's tangents along features of P points.

    Args:
        layer: The first one.
        points: Which of each cloud, P of them.
        inputs: What each of K directions does to the `h` that enters, shape (K, F).

    Returns:
        Positions (B, n, P, K, d) and features (B, n, P, K, F), of all nodes.
    """
    P = product(inputs, layer.layer.receiver.weight)  # (K, F)
    Q = product(inputs, layer.layer.sender.weight)
    D, own_D = layer.difference[:, :, points], layer.difference[:, points]

    # At every r as a sender's effect, then at p as a receiver.
    dc = layer.by_phi[:, :, points].unsqueeze(-1) * (layer.mu[:, :, points] @ Q.t())
    dx = -dc.unsqueeze(-1) * D.unsqueeze(3)
    dc = layer.by_phi[:, points].unsqueeze(-1) * (layer.mu[:, points] @ P.t())
    own_of(dx, points, 2).copy_(-(dc.transpose(2, 3) @ own_D))

    dm = product(layer.s[:, :, points].unsqueeze(3) * Q, layer.layer.message.weight)
    dm *= layer.t[:, :, points].unsqueeze(3)
    total = P @ layer.own_block(points)
    if layer.lean is not None and layer.omega is not None:
        dg = layer.omega[:, :, points] @ Q.t()
        dm.addcmul_(layer.lean[:, :, points].unsqueeze(3), dg.unsqueeze(-1))
        dg = layer.omega[:, points] @ P.t()
        total += dg.transpose(2, 3) @ layer.lean[:, points]
    dh = layer.of_total(dm.flatten(2, 3), layer.node.unsqueeze(2)).view_as(dm)
    own = inputs.expand_as(total)
    own_of(dh, points, 2).copy_(layer.update(total, own, layer.node[:, points].unsqueeze(2)))
    return dx, dh


def leave(layer: Linearised, points: slice, dx: Tensor, dh: Tensor) -> Tensor:
    """Tangents after the last layer of the features of P points along their own, (B, P, K, F).

    Those before it are (B, n, P, K, d) and (B, n, P, K, F).
    """
    own_x, own_h = own_of(dx, points, 2), own_of(dh, points, 2)  # (B, P, K, ·)
    apart = dx.transpose(1, 2) - own_x.unsqueeze(2)  # (B, P, s, K, d)
    dd2 = 2 * torch.einsum("bpse,bpske->bpsk", layer.difference[:, points], apart)

    dz = product(dh.transpose(1, 2), layer.layer.sender.weight)
    dz += product(own_h, layer.layer.receiver.weight).unsqueeze(2)
    dz.addcmul_(dd2.unsqueeze(-1), layer.layer.scalars.weight[:, 0])
    dm = product(dz * layer.s[:, points].unsqueeze(3), layer.layer.message.weight)
    total = torch.einsum("bpsf,bpskf->bpkf", layer.t[:, points], dm)
    if layer.lean is not None and layer.omega is not None:
        dg = torch.einsum("bpsf,bpskf->bpks", layer.omega[:, points], dz)
        total += dg @ layer.lean[:, points]
    return layer.update(total, own_h, layer.node[:, points].unsqueeze(2))
