"""One equivariant graph convolution at one state, with its derivative as matrices.

For complete graphs on clouds of one size, stacked: B clouds of n points, receivers `r` before
senders `s`. Made without a graph for autograd, and for nothing else than directional derivatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import silu

from eqflow.edges import DISTANCE_EPSILON
from eqflow.edges.products import product, products
from eqflow.nn.egcl import EGCL


@dataclass
class Linearised:
    r"""One layer at one state: B clouds of n points, receivers `r`, senders `s`, S directions.

    With `z` the first pre-activation of an edge and slopes `σ'` of its activations, a message's
    derivative is :math:`\partial m / \partial z = \mathrm{diag}(t) W \mathrm{diag}(s) + l ω^T` and
    that of `φ_x(m)` the row `μ`: only the first costs a product of matrices.

    Attributes:
        layer: The layer.
        x, h: State after it, (B, n, d) and (B, n, F).
        difference: `x_s − x_r`, (B, n, n, d).
        s, t: Slopes of the first activation, and of the second times the gate; (B, n, n, F).
        lean, omega: `l` and `ω` of the gate, (B, n, n, F), or None.
        mu: `∂φ_x / ∂z`, (B, n, n, F).
        c: Coordinate weight divided by `d + 1` or `n − 1`, (B, n, n).
        by_phi, by_d2: Its derivatives by the output of `φ_x` and, that output fixed, by `d²`.
        node: Slope of the activation in `φ_h`, (B, n, F), or None where features stay.
    """

    layer: EGCL
    x: Tensor
    h: Tensor
    difference: Tensor
    s: Tensor
    t: Tensor
    lean: Tensor | None
    omega: Tensor | None
    mu: Tensor
    c: Tensor
    by_phi: Tensor
    by_d2: Tensor
    node: Tensor | None

    @classmethod
    def of(cls, layer: EGCL, x: Tensor, h: Tensor, a: Tensor | None) -> Linearised:
        """Evaluate the layer, keeping what its derivative needs."""
        others = 1 - torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        difference = differences(x)
        d2 = squared(difference)
        scalars = d2.unsqueeze(-1) if a is None else torch.stack([d2, a], -1)
        z = product(scalars, layer.scalars.weight)
        z += layer.receiver(h).unsqueeze(2)
        z += layer.sender(h).unsqueeze(1)
        m, s = _activated(z)
        W = layer.message.weight
        m, t = _activated(product(m, W, layer.message.bias))
        t *= others.unsqueeze(-1)

        lean = omega = None
        if layer.attention is not None:
            gate = torch.sigmoid(layer.attention(m))
            lean = m * (gate * (1 - gate))
            omega = product(t * layer.attention.weight[0], W.t()).mul_(s)
            t *= gate
            m = m * gate
        W_x = layer.coordinate.weight
        phi, slope = _activated(product(m, W_x, layer.coordinate.bias))
        nu = product(slope * layer.coordinate_out.weight[0], W_x.t())  # ∂φ/∂m
        mu = product(t * nu, W.t()).mul_(s)
        if lean is not None and omega is not None:
            mu += (nu * lean).sum(-1, keepdim=True) * omega

        phi = layer.coordinate_out(phi).squeeze(-1)
        by_phi = torch.ones_like(phi)
        if layer.coordinate_range is not None:
            phi = layer.coordinate_range * torch.tanh(phi)
            by_phi = layer.coordinate_range - phi.square() / layer.coordinate_range
        if layer.stabilized:
            d = (d2 + DISTANCE_EPSILON).sqrt()
            divided = others / (d + 1)
            by_d2 = -phi * divided / (2 * d * (d + 1))
        else:
            divided = others / max(x.shape[1] - 1, 1)
            by_d2 = torch.zeros_like(phi)
        c = phi * divided
        x = x + x * c.sum(2, keepdim=True) - c @ x  # −Σ c (x_s − x_r)

        node = None
        if layer.feature_update is not None:
            total = torch.einsum("rs,brsf->brf", others, m)
            inner, _, outer = layer.feature_update
            value, node = _activated(inner(torch.cat([h, total], -1)))
            h = h + outer(value)
        return cls(
            layer=layer,
            x=x,
            h=h,
            difference=difference,
            s=s,
            t=t,
            lean=lean,
            omega=omega,
            mu=mu,
            c=c,
            by_phi=by_phi * divided,
            by_d2=by_d2,
            node=node,
        )

    @cached_property
    def by_scalars(self) -> list[Tensor]:
        """`∂m / ∂(d², a)`, (B, n, n, F) each."""
        return [self._by_scalar(column) for column in self.layer.scalars.weight.t()]

    @cached_property
    def phi_by_scalars(self) -> list[Tensor]:
        """`∂φ_x / ∂(d², a)`, (B, n, n) each."""
        return list((self.mu @ self.layer.scalars.weight).unbind(-1))

    @cached_property
    def by_distance(self) -> tuple[Tensor, Tensor]:
        """`∂m/∂d²` (B, n, n, F) and `∂c/∂d²` (B, n, n) where `h` is fixed and `x` the input."""
        gm = self._by_scalar(self.layer.scalars.weight.sum(1))
        return gm, self.by_phi * sum(self.phi_by_scalars) + self.by_d2

    def _by_scalar(self, column: Tensor) -> Tensor:
        dm = product(self.s * column, self.layer.message.weight).mul_(self.t)
        if self.lean is not None and self.omega is not None:
            dm += self.lean * (self.omega @ column).unsqueeze(-1)
        return dm

    def push_points(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's tangents along the coordinates of P points.

        Returns:
            Positions (B, n, P, d, d) and features (B, n, P, d, F): of all nodes, by direction.
        """
        gm, gc = self.by_distance
        d = self.difference.shape[-1]
        along = torch.arange(len(points), device=points.device)
        ahead = self.difference[:, :, points]  # ½ ∂d²_kp / ∂x_p, (B, n, P, d)
        own = -self.difference[:, points]  # ½ ∂d²_ps / ∂x_p, (B, P, n, d)
        eye = torch.eye(d, dtype=gc.dtype, device=gc.device)

        # −∂(c D)_kb / ∂x_pa, at every k as a sender's effect, then at p as a receiver.
        dx = -2 * torch.einsum("bkp,bkpa,bkpe->bkpae", gc[:, :, points], ahead, ahead)
        dx -= self.c[:, :, points, None, None] * eye
        at = 2 * torch.einsum("bps,bpsa,bpse->bpae", gc[:, points], own, own)
        at += self.c[:, points].sum(2)[..., None, None] * eye
        dx[:, points, along] = at + eye

        reach = self._node(gm[:, :, points])  # the axes of a point differ by a factor
        dh = 2 * ahead.unsqueeze(-1) * reach.unsqueeze(3)
        total = 2 * torch.einsum("bpsa,bpsf->bpaf", own, gm[:, points])
        dh[:, points, along] = self._node(total, points)
        return dx, dh

    def push_features(self, points: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's tangents along features of P points.

        Args:
            points: Which of each cloud, shape (P,).
            inputs: What each of K directions does to the `h` that enters, shape (K, F).

        Returns:
            Positions (B, n, P, K, d) and features (B, n, P, K, F).
        """
        P = product(inputs, self.layer.receiver.weight)  # (K, F)
        Q = product(inputs, self.layer.sender.weight)
        along = torch.arange(len(points), device=points.device)
        D, own_D = self.difference[:, :, points], self.difference[:, points]

        # At every r as a sender's effect, then at p as a receiver.
        dc = self.by_phi[:, :, points].unsqueeze(-1) * (self.mu[:, :, points] @ Q.t())
        dx = -dc.unsqueeze(-1) * D.unsqueeze(3)
        dc = self.by_phi[:, points].unsqueeze(-1) * (self.mu[:, points] @ P.t())
        dx[:, points, along] = -torch.einsum("bpsk,bpse->bpke", dc, own_D)

        dm = product(self.s[:, :, points].unsqueeze(3) * Q, self.layer.message.weight)
        dm *= self.t[:, :, points].unsqueeze(3)
        total = P @ self._own_block(points).transpose(2, 3)
        if self.lean is not None and self.omega is not None:
            dg = self.omega[:, :, points] @ Q.t()
            dm.addcmul_(self.lean[:, :, points].unsqueeze(3), dg.unsqueeze(-1))
            dg = self.omega[:, points] @ P.t()
            total += dg.transpose(2, 3) @ self.lean[:, points]
        dh = self._node(dm.flatten(2, 3)).view_as(dm)
        own = inputs.expand_as(total)
        dh[:, points, along] = own + self._node(total, points, own)
        return dx, dh

    def push(self, dx: Tensor, dh: Tensor, da: Tensor | None, budget: int) -> tuple[Tensor, Tensor]:
        """Tangents after the layer of all nodes; `da` (B, n, n, S) are those of `a`."""
        P = product(dh, self.layer.receiver.weight)  # (B, r, S, F)
        Q = product(dh, self.layer.sender.weight)  # (B, s, S, F)
        along = self.difference @ dx.transpose(2, 3)  # D · dx_r
        dd2 = -2 * (along + along.transpose(1, 2))  # as D_sr = −D_rs
        scalars = [dd2] if da is None else [dd2, da]

        dphi = self.mu @ P.transpose(2, 3)
        dphi += (self.mu.transpose(1, 2) @ Q.transpose(2, 3)).transpose(1, 2)
        total = P @ self._own_block().transpose(2, 3) + self._from_senders(Q, budget)
        if self.lean is not None and self.omega is not None:
            dg = self.omega @ P.transpose(2, 3)
            dg += (self.omega.transpose(1, 2) @ Q.transpose(2, 3)).transpose(1, 2)
            total += dg.transpose(2, 3) @ self.lean
        for moved, by, phi_by in zip(scalars, self.by_scalars, self.phi_by_scalars, strict=True):
            dphi += phi_by.unsqueeze(-1) * moved
            total += moved.transpose(2, 3) @ by
        dc = dphi.mul_(self.by_phi.unsqueeze(-1)).addcmul_(self.by_d2.unsqueeze(-1), dd2)

        pulled = dx + dx * self.c.sum(2)[..., None, None]
        pulled -= torch.einsum("brs,bsud->brud", self.c, dx)
        pulled -= dc.transpose(2, 3) @ self.difference
        return pulled, dh + self._node(total, None, dh)

    def _own_block(self, points: Tensor | None = None) -> Tensor:
        """`Σ_s ∂m_rs/∂z` of all or some points without the gate's part, (B, n, F, F)."""
        t, s = (part if points is None else part[:, points] for part in (self.t, self.s))
        return (t.transpose(2, 3) @ s).mul_(self.layer.message.weight)

    def _from_senders(self, Q: Tensor, budget: int) -> Tensor:
        """`Σ_s diag(t_rs) W diag(s_rs) Q_s`, (B, n, S, F): what costs `(n F)² S`."""
        B, n, S, F = Q.shape
        rows = Q.transpose(1, 2).reshape(B, S, n * F)
        found = Q.new_empty(B, S, n, F)
        weight = self.layer.message.weight.unsqueeze(1)  # (F, 1, F)
        clouds = min(max(budget // (n * F) ** 2, 1), B)
        step = min(max(budget // (n * F * F), 1), n)
        room = Q.new_empty(clouds * step * n * F * F)  # allocating costs more than a pass
        for b in range(0, B, clouds):
            for r in range(0, n, step):
                t, s = (part[b : b + clouds, r : r + step] for part in (self.t, self.s))
                shape = (*t.shape[:2], F, n, F)
                block = torch.mul(s.unsqueeze(2), weight, out=room[: math.prod(shape)].view(shape))
                block *= t.transpose(2, 3).unsqueeze(-1)
                sent = products(rows[b : b + clouds], block.view(len(t), -1, n * F))
                found[b : b + clouds, :, r : r + step] = sent.view(len(t), S, -1, F)
        return found.transpose(1, 2)

    def trace_at(self, points: Tensor, dx: Tensor, dh: Tensor, da: Tensor | None) -> Tensor:
        """`Σ_p Σ_a (∂x_pa/∂x_pa − 1)` after the layer, for the coordinates of `points`, (B,).

        The tangents before it are (B, n, P, d, d), (B, n, P, d, F) and, of `a`, (B, n, n, P, d).
        """
        along = torch.arange(len(points), device=dx.device)
        own_x, own_h = dx[:, points, along], dh[:, points, along]  # (B, P, d, ·)
        dx, dh = dx.transpose(1, 2), dh.transpose(1, 2)  # (B, P, s, d, ·)

        D, mu = self.difference[:, points], self.mu[:, points]
        apart = dx - own_x.unsqueeze(2)
        dd2 = 2 * torch.einsum("bpse,bpsae->bpsa", D, apart)
        scalars = [dd2]
        if da is not None:
            scalars.append(da[:, points, :, along].transpose(0, 1))
        dphi = (mu @ self.layer.receiver.weight) @ own_h.transpose(2, 3)
        dphi += torch.einsum("bpsf,bpsaf->bpsa", mu @ self.layer.sender.weight, dh)
        for moved, phi_by in zip(scalars, self.phi_by_scalars, strict=True):
            dphi += phi_by[:, points].unsqueeze(-1) * moved
        dc = self.by_phi[:, points].unsqueeze(-1) * dphi
        dc += self.by_d2[:, points].unsqueeze(-1) * dd2

        # Of −Σ_s (c D) only the component along the direction itself.
        along_itself = torch.diagonal(apart, dim1=-2, dim2=-1)
        moved = torch.diagonal(own_x, dim1=-2, dim2=-1) - 1
        moved = moved - (dc * D).sum(2) - (self.c[:, points].unsqueeze(-1) * along_itself).sum(2)
        return moved.sum((1, 2))

    def features_at(self, points: Tensor, dx: Tensor, dh: Tensor) -> Tensor:
        """Tangents after the layer of the features of `points` along their own, (B, P, K, F).

        Those before it are (B, n, P, K, d) and (B, n, P, K, F).
        """
        along = torch.arange(len(points), device=dx.device)
        own_x, own_h = dx[:, points, along], dh[:, points, along]  # (B, P, K, ·)
        apart = dx.transpose(1, 2) - own_x.unsqueeze(2)  # (B, P, s, K, d)
        dd2 = 2 * torch.einsum("bpse,bpske->bpsk", self.difference[:, points], apart)

        dz = product(dh.transpose(1, 2), self.layer.sender.weight)
        dz += product(own_h, self.layer.receiver.weight).unsqueeze(2)
        dz.addcmul_(dd2.unsqueeze(-1), self.layer.scalars.weight[:, 0])
        dm = product(dz * self.s[:, points].unsqueeze(3), self.layer.message.weight)
        total = torch.einsum("bpsf,bpskf->bpkf", self.t[:, points], dm)
        if self.lean is not None and self.omega is not None:
            dg = torch.einsum("bpsf,bpskf->bpks", self.omega[:, points], dz)
            total += dg @ self.lean[:, points]
        return own_h + self._node(total, points, own_h)

    def _node(
        self, total: Tensor, points: Tensor | None = None, dh: Tensor | None = None
    ) -> Tensor:
        """Tangent of the feature update from those of the message sum, and of `h`."""
        inner, _, outer = self.layer.feature_update
        if dh is None:
            moved = product(total, inner.weight[:, -total.shape[-1] :])
        else:
            moved = product(torch.cat([dh, total], -1), inner.weight)
        node = self.node if points is None else self.node[:, points]
        return product(moved.mul_(node.unsqueeze(2)), outer.weight)


def differences(x: Tensor) -> Tensor:
    """`x_s − x_r`, (B, n, d) to (B, r, s, d)."""
    return x.unsqueeze(1) - x.unsqueeze(2)


def squared(difference: Tensor) -> Tensor:
    """Squared length over the last axis."""
    return difference.square().sum(-1)


def _activated(z: Tensor) -> tuple[Tensor, Tensor]:
    """`silu(z)` and its slope."""
    return silu(z), torch.ops.aten.silu_backward(torch.ones_like(z), z)
