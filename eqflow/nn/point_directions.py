r"""Directions that move one point, at the two ends of a network: a third of what others cost there.

Of the `d` directions of a point `p` the tangents are `d`-fold only at `p` itself:

- After the first layer those of the features of every other point `k` are
  :math:`2 (x_p - x_k)_a\, v_{kp}`, as a distance is all that changes. So what `k` sends in the
  second layer is one vector times `d` numbers.
- The last layer asks of point `s` only :math:`\sum_a (x_s - x_p)_a\, \dot h_s^{(p a)}`, for its
  part of the trace. So of what the last layer but one sums at `s` only that is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from eqflow.edges.products import product
from eqflow.nn.linearised import Linearised
from eqflow.nn.stacked import chunks, joined, own_of


class Entered(NamedTuple):
    """Tangents after the first layer along the coordinates of P points.

    Attributes:
        dx: Of positions, (B, n, d, P, d).
        dh: Of features, (B, n, d, P, F).
        ahead: `2 (x_p − x_k)`, (B, n, d, P), which is 0 at `p`.
        reach: `v`, (B, n, P, F): but for `p` itself `dh` is `ahead` times this.
    """

    dx: Tensor
    dh: Tensor
    ahead: Tensor
    reach: Tensor


class Gathered(NamedTuple):
    """What the last layer asks of tangents along the coordinates of P points.

    Attributes:
        dx: Of positions, (B, n, d, P, d).
        towards: `Σ_a (x_s − x_p)_a dh_s`, (B, n, P, F).
        own: Those of the features of the point itself, (B, P, d, F).
    """

    dx: Tensor
    towards: Tensor
    own: Tensor


def enter(layer: Linearised, points: slice) -> Entered:
    """The first layer's tangents along the coordinates of some points."""
    gm, gc = layer.by_distance
    d = layer.difference.shape[-1]
    ahead = 2 * layer.difference[:, :, points].transpose(2, 3).contiguous()  # ∂d²_kp / ∂x_p
    own = -2 * layer.difference[:, points]  # ∂d²_ps / ∂x_p, (B, P, n, d)
    eye = torch.eye(d, dtype=gc.dtype, device=gc.device)

    # −∂(c D)_kb / ∂x_pa, at every k as a sender's effect, then at p as a receiver.
    dx = (-gc[:, :, None, points] * ahead).unsqueeze(-1) * layer.difference[:, :, None, points]
    dx -= layer.c[:, :, None, points, None] * eye.unsqueeze(1)
    at = (gc[:, points].unsqueeze(-1) * own).transpose(2, 3) @ (0.5 * own)
    at += (1 + layer.c[:, points].sum(2))[..., None, None] * eye
    own_of(dx, points).copy_(at)

    reach = layer.of_total(gm[:, :, points], layer.node.unsqueeze(2))
    dh = ahead.unsqueeze(-1) * reach.unsqueeze(2)
    total = own.transpose(2, 3) @ gm[:, points]
    own_of(dh, points).copy_(layer.of_total(total, layer.node[:, points].unsqueeze(2)))
    return Entered(dx, dh, ahead, reach)


def push_entered(
    layer: Linearised, points: slice, entered: Entered, da: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tangents after the second layer, (B, n, d, P, d) and (B, n, d, P, F).

    Args:
        layer: The second one.
        points: Those along whose coordinates the tangents are.
        entered: Those after the first layer.
        da: Those of `a`, (B, n, n, d, P).
    """
    dx, dh, ahead, reach = entered
    B, n, d, P, _ = dh.shape
    receiver, sender = layer.layer.receiver.weight, layer.layer.sender.weight
    own = own_of(dh, points)
    of_r, of_s = product(reach, receiver), product(reach, sender)  # (B, n, P, F)
    own_of_r, own_of_s = product(own, receiver), product(own, sender)  # (B, P, d, F)

    by_receivers, by_senders = layer.readings  # (B, n, k n, F)
    shape = B, n, -1, n, 1, P
    read = (by_receivers @ of_r.transpose(2, 3)).view(shape) * ahead[:, :, None, None]
    read += (by_senders @ of_s.transpose(2, 3)).view(shape).transpose(1, 3) * ahead[:, None, None]
    shape = B, P, -1, n, d
    at_receiver = (by_receivers[:, points] @ own_of_r.transpose(2, 3)).view(shape)
    at_sender = (by_senders[:, points] @ own_of_s.transpose(2, 3)).view(shape)
    torch.diagonal(read[:, points], dim1=1, dim2=5).add_(at_receiver.permute(0, 2, 3, 4, 1))
    torch.diagonal(read[:, :, :, points], dim1=3, dim2=5).add_(at_sender.permute(0, 3, 2, 4, 1))
    dx, numbers = layer.push_positions(dx.flatten(2, 3), read.flatten(4), _flat(da))

    block = layer.own_block()
    total = ahead.unsqueeze(-1) * (of_r @ block).unsqueeze(2)
    own_of(total, points).add_(own_of_r @ block[:, points])
    layer.add_from_numbers(total.flatten(2, 3), numbers)
    _add_spread(layer, total, ahead, of_s)
    sent = layer.s[:, :, None, points] * own_of_s.transpose(1, 2).unsqueeze(1)
    total.addcmul_(product(sent, layer.layer.message.weight), layer.t[:, :, None, points])
    return dx.unflatten(2, (d, P)), layer.update(total, dh, layer.node[:, :, None, None])


def _add_spread(layer: Linearised, total: Tensor, ahead: Tensor, of_s: Tensor) -> None:
    """Add `Σ_s ahead_sap diag(t_rs) W diag(s_rs) of_s_sp` to (B, n, d, P, F)."""
    W = layer.layer.message.weight.t()
    of_s, factors = of_s.transpose(1, 2).contiguous(), ahead.permute(0, 3, 2, 1).contiguous()
    for clouds, receivers, sent, moved in chunks(len(total), total.shape[1], of_s[0]):
        here = clouds, receivers
        torch.mul(layer.s[here].unsqueeze(2), of_s[clouds].unsqueeze(1), out=sent)
        torch.mm(sent.flatten(0, -2), W, out=moved.flatten(0, -2))
        moved.mul_(layer.t[here].unsqueeze(2))
        total[here] += (factors[clouds].unsqueeze(1) @ moved).transpose(2, 3)


def gather(points: slice, toward: Tensor, dx: Tensor, dh: Tensor) -> Gathered:
    """Of tangents before the last layer what it asks.

    Args:
        points: Those along whose coordinates the tangents are.
        toward: `x_s − x_p` before the last layer, (B, P, n, d).
        dx, dh: Shapes (B, n, d, P, d) and (B, n, d, P, F).
    """
    return Gathered(dx, _towards(toward.permute(0, 2, 3, 1), dh), own_of(dh, points))


def push_and_gather(
    layer: Linearised, points: slice, toward: Tensor, dx: Tensor, dh: Tensor, da: Tensor | None
) -> Gathered:
    """`gather` of the tangents after the last layer but one, from those before it.

    Args:
        layer: The last one but one.
        points: Those along whose coordinates the tangents are.
        toward: `x_s − x_p` after that layer, (B, P, n, d).
        dx, dh: Shapes (B, n, d, P, d) and (B, n, d, P, F).
        da: Shape (B, n, n, d, P).
    """
    d, P = dh.shape[2:4]
    receiver = layer.layer.receiver.weight
    of_s = product(dh, layer.layer.sender.weight)
    by_receivers, by_senders = layer.readings
    read = joined(
        product(by_receivers, receiver.t()) @ dh.flatten(2, 3).transpose(2, 3),
        by_senders @ of_s.flatten(2, 3).transpose(2, 3),
    )
    dx, numbers = layer.push_positions(dx.flatten(2, 3), read, _flat(da))
    numbers = numbers.unflatten(3, (d, P))

    block = layer.own_block()
    away = toward.permute(0, 2, 3, 1)  # (B, n, d, P)
    towards = _towards(away, dh)
    total = product(towards, receiver) @ block
    layer.add_from_numbers(total, (numbers * away.unsqueeze(2)).sum(3))
    total += _sum_towards(layer, toward, of_s).transpose(1, 2)
    towards = layer.update(total, towards, layer.node.unsqueeze(2))

    own = own_of(dh, points)
    total = product(own, receiver) @ block[:, points]
    total += own_of(numbers, points, 4).transpose(2, 3) @ layer.by_numbers[:, points]
    sent = layer.s[:, points].unsqueeze(2) * of_s.permute(0, 3, 2, 1, 4)  # (B, P, d, s, F)
    sent = product(sent, layer.layer.message.weight).mul_(layer.t[:, points].unsqueeze(2))
    own = layer.update(total + sent.sum(3), own, layer.node[:, points].unsqueeze(2))
    return Gathered(dx.unflatten(2, (d, P)), towards, own)


def _sum_towards(layer: Linearised, toward: Tensor, of_s: Tensor) -> Tensor:
    """`Σ_s diag(t_rs) W diag(s_rs) Σ_a toward_pra of_s_sap`, (B, P, n, F)."""
    W = layer.layer.message.weight.t()
    of_s = of_s.transpose(2, 3).contiguous()  # (B, n, P, d, F)
    found = torch.zeros_like(of_s[:, :, :, 0].transpose(1, 2))
    for clouds, senders, sent, moved in chunks(len(found), of_s.shape[1], found[0]):
        s, t = (
            part[clouds, :, senders].transpose(1, 2).unsqueeze(2) for part in (layer.s, layer.t)
        )
        torch.matmul(toward[clouds].unsqueeze(1), of_s[clouds, senders], out=sent)
        torch.mm(sent.mul_(s).flatten(0, -2), W, out=moved.flatten(0, -2))
        found[clouds] += moved.mul_(t).sum(1)
    return found


def _towards(away: Tensor, tangents: Tensor) -> Tensor:
    """`Σ_a away_sap tangents_sap`, (B, n, d, P) and (B, n, d, P, F) to (B, n, P, F)."""
    return (away.unsqueeze(-1) * tangents).sum(2)


def _flat(da: Tensor | None) -> Tensor | None:
    return None if da is None else da.flatten(3)


def trace_at(layer: Linearised, points: slice, gathered: Gathered, da: Tensor | None) -> Tensor:
    """`Σ_p Σ_a (∂x_pa/∂x_pa − 1)` after the last layer, for the coordinates of P points, (B,).

    Args:
        layer: The last one.
        points: Which, P of them.
        gathered: Of the tangents before it.
        da: Tangents of `a`, (B, n, n, d, P).
    """
    dx, towards, own = gathered
    own_x = own_of(dx, points)  # (B, P, d, d)
    D, mu = layer.difference[:, points], layer.mu[:, points]
    apart = dx.permute(0, 3, 1, 2, 4) - own_x.unsqueeze(2)  # (B, P, s, d, d)
    dd2 = 2 * (apart @ D.unsqueeze(-1)).squeeze(-1)
    scalars = [dd2] if da is None else [dd2, own_of(da, points, 4)]

    # Σ_a of the derivative of φ_x along a times D_a.
    dphi = (((mu @ layer.layer.receiver.weight) @ own.transpose(2, 3)) * D).sum(-1)
    dphi += ((mu @ layer.layer.sender.weight) * towards.transpose(1, 2)).sum(-1)
    for moved, phi_by in zip(scalars, layer.phi_by_scalars, strict=True):
        dphi += phi_by[:, points] * (moved * D).sum(-1)
    dcD = layer.by_phi[:, points] * dphi + layer.by_d2[:, points] * (dd2 * D).sum(-1)

    # Of −Σ_s (c D) only the component along the direction itself.
    along_itself = torch.diagonal(apart, dim1=-2, dim2=-1).sum(-1)
    moved = torch.diagonal(own_x, dim1=-2, dim2=-1).sum(-1) - own_x.shape[-1]
    return (moved - (dcD + layer.c[:, points] * along_itself).sum(2)).sum(1)
