"""One equivariant graph convolution at one state, with its derivative as matrices.

For complete graphs on clouds of one size, stacked: B clouds of n points, receivers `r` before
senders `s`. Made without a graph for autograd, and for nothing else than directional derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import silu

from eqflow.edges import DISTANCE_EPSILON
from eqflow.edges.products import product
from eqflow.nn.egcl import EGCL
from eqflow.nn.radial import OfDistance

# Numbers in what one sender sends: several of these have to fit a core's cache, and to fill a GPU.
CPU_CACHE = 2**16
GPU_CACHE = 2**25
EVERY = slice(None)


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
        columns: `∂z / ∂d²` and, where there are attributes of the input distance, `∂z` by its
            square: (F,), or (B, n, n, F) where they are curved.
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
    columns: list[Tensor]
    c: Tensor
    by_phi: Tensor
    by_d2: Tensor
    node: Tensor | None

    @classmethod
    def of(
        cls, layer: EGCL, x: Tensor, h: Tensor, a: OfDistance | None, others: Tensor
    ) -> Linearised:
        """Evaluate the layer, keeping what its derivative needs.

        Args:
            layer: The layer.
            x, h: State before it, (B, n, d) and (B, n, F).
            a: Edge attributes, functions of squared input distances, (B, n, n, K).
            others: 1 between two points and 0 from a point to itself, (n, n).
        """
        difference = differences(x)
        d2 = squared(difference)
        scalars = d2.unsqueeze(-1)
        columns = list(layer.scalars.weight.t())
        if a is not None:
            scalars = torch.cat([scalars, a.value], -1)
            if a.value.shape[-1] > 1:
                columns[1:] = [product(a.slope, layer.scalars.weight[:, 1:])]
        z = layer.receiver(h).unsqueeze(2) + layer.sender(h).unsqueeze(1)
        z.view(-1, z.shape[-1]).addmm_(scalars.flatten(0, 2), layer.scalars.weight.t())
        m, s = _activated(z)
        W = layer.message.weight
        m, t = _activated(product(m, W, layer.message.bias))

        lean = omega = None
        gate = others.unsqueeze(-1)
        if layer.attention is not None:
            opened = torch.sigmoid(layer.attention(m))
            gate = opened * gate
            lean = m * (gate - gate * opened)
            omega = product(t * layer.attention.weight[0], W.t()).mul_(s)
        t *= gate
        m *= gate
        W_x = layer.coordinate.weight
        phi, slope = _activated(product(m, W_x, layer.coordinate.bias))
        nu = product(slope * layer.coordinate_out.weight[0], W_x.t())  # ∂φ/∂m
        mu = product(t * nu, W.t()).mul_(s)
        if lean is not None and omega is not None:
            mu += (nu * lean).sum(-1, keepdim=True) * omega

        phi = layer.coordinate_out(phi).squeeze(-1)
        R = layer.coordinate_range
        if R is None:
            by_phi = torch.ones_like(phi)
        else:
            bent = torch.tanh(phi)
            phi = R * bent
            by_phi = R - phi * bent
        if layer.stabilized:
            d = (d2 + DISTANCE_EPSILON).sqrt()
            divided = others / (d + 1)
            c = phi * divided
            by_d2 = c * divided / (-2 * d)
        else:
            divided = others / max(x.shape[1] - 1, 1)
            c = phi * divided
            by_d2 = torch.zeros_like(phi)
        x = x + x * c.sum(2, keepdim=True) - c @ x  # −Σ c (x_s − x_r)

        node = None
        if layer.feature_update is not None:
            inner, _, outer = layer.feature_update
            value, node = _activated(inner(torch.cat([h, m.sum(2)], -1)))
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
            columns=columns,
            c=c,
            by_phi=by_phi * divided,
            by_d2=by_d2,
            node=node,
        )

    @cached_property
    def phi_by_scalars(self) -> list[Tensor]:
        """`∂φ_x` by `d²` and by the squared input distance, (B, n, n) each."""
        return [_dot(self.mu, column) for column in self.columns]

    @cached_property
    def by_numbers(self) -> Tensor:
        """`∂m_rs` by each of q numbers of an edge, (B, n, q n, F): of its gate, `d²` and `a`."""
        by = [self._by_scalar(column) for column in self.columns]
        return torch.cat(by if self.lean is None else [self.lean, *by], 2)

    @cached_property
    def readings(self) -> tuple[Tensor, Tensor]:
        """`μ` and the gate's `ω`, (B, n, k n, F): for each receiver, and for each sender."""
        both = torch.stack([self.mu] if self.omega is None else [self.mu, self.omega], 2)
        return both.flatten(2, 3), both.transpose(1, 3).flatten(2, 3)

    @cached_property
    def pull(self) -> Tensor:
        """`∂x_r/∂x_s` with the coordinate weights fixed, (B, n, n): `1 + Σ_s c_rs` and `−c_rs`."""
        return (1 + self.c.sum(2)).diag_embed() - self.c

    @cached_property
    def by_distance(self) -> tuple[Tensor, Tensor]:
        """`∂m/∂d²` (B, n, n, F) and `∂c/∂d²` (B, n, n) where `h` is fixed and `x` the input."""
        gm = self._by_scalar(sum(self.columns[1:], self.columns[0]))
        return gm, self.by_phi * sum(self.phi_by_scalars) + self.by_d2

    def _by_scalar(self, column: Tensor) -> Tensor:
        dm = product(self.s * column, self.layer.message.weight).mul_(self.t)
        if self.lean is not None and self.omega is not None:
            dm.addcmul_(self.lean, _dot(self.omega, column).unsqueeze(-1))
        return dm

    def push_points(self, points: slice) -> tuple[Tensor, Tensor]:
        """The first layer's tangents along the coordinates of P points.

        Returns:
            Positions (B, n, P, d, d) and features (B, n, P, d, F): of all nodes, by direction.
        """
        gm, gc = self.by_distance
        d = self.difference.shape[-1]
        ahead = self.difference[:, :, points]  # ½ ∂d²_kp / ∂x_p, (B, n, P, d)
        own = -self.difference[:, points]  # ½ ∂d²_ps / ∂x_p, (B, P, n, d)
        eye = torch.eye(d, dtype=gc.dtype, device=gc.device)

        # −∂(c D)_kb / ∂x_pa, at every k as a sender's effect, then at p as a receiver.
        dx = (-2 * gc[:, :, points, None] * ahead).unsqueeze(-1) * ahead.unsqueeze(-2)
        dx -= self.c[:, :, points, None, None] * eye
        at = (2 * gc[:, points].unsqueeze(-1) * own).transpose(2, 3) @ own
        at += self.c[:, points].sum(2)[..., None, None] * eye
        own_of(dx, points).copy_(at + eye)

        reach = self._node(gm[:, :, points])  # the axes of a point differ by a factor
        dh = (2 * ahead).unsqueeze(-1) * reach.unsqueeze(3)
        total = (2 * own).transpose(2, 3) @ gm[:, points]
        own_of(dh, points).copy_(self._node(total, points))
        return dx, dh

    def push_features(self, points: slice, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's tangents along features of P points.

        Args:
            points: Which of each cloud, shape (P,).
            inputs: What each of K directions does to the `h` that enters, shape (K, F).

        Returns:
            Positions (B, n, P, K, d) and features (B, n, P, K, F).
        """
        P = product(inputs, self.layer.receiver.weight)  # (K, F)
        Q = product(inputs, self.layer.sender.weight)
        D, own_D = self.difference[:, :, points], self.difference[:, points]

        # At every r as a sender's effect, then at p as a receiver.
        dc = self.by_phi[:, :, points].unsqueeze(-1) * (self.mu[:, :, points] @ Q.t())
        dx = -dc.unsqueeze(-1) * D.unsqueeze(3)
        dc = self.by_phi[:, points].unsqueeze(-1) * (self.mu[:, points] @ P.t())
        own_of(dx, points).copy_(-(dc.transpose(2, 3) @ own_D))

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
        own_of(dh, points).copy_(own + self._node(total, points, own))
        return dx, dh

    def push(self, dx: Tensor, dh: Tensor, da: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tangents after the layer of all nodes.

        Args:
            dx, dh: Those before it along S directions, (B, n, S, d) and (B, n, S, F).
            da: Those of `a`, (B, n, n, S).
        """
        B, n, S, F = dh.shape
        P = product(dh, self.layer.receiver.weight)  # (B, r, S, F)
        Q = product(dh, self.layer.sender.weight)  # (B, s, S, F)
        along = (-2 * self.difference) @ dx.transpose(2, 3)
        dd2 = along + along.transpose(1, 2)  # −2 D · (dx_r − dx_s), as D_sr = −D_rs

        of_receivers, of_senders = self.readings
        read = (of_receivers @ P.transpose(2, 3)).view(B, n, -1, n, S)
        read += (of_senders @ Q.transpose(2, 3)).view(B, n, -1, n, S).transpose(1, 3)
        dphi, dg = read[:, :, 0], read[:, :, 1:].flatten(2, 3)
        scalars = [dd2] if da is None else [dd2, da]
        for moved, phi_by in zip(scalars, self.phi_by_scalars, strict=True):
            dphi.addcmul_(phi_by.unsqueeze(-1), moved)
        dc = self.by_phi.unsqueeze(-1) * dphi
        dc.addcmul_(self.by_d2.unsqueeze(-1), dd2)

        total = P @ self._own_block().transpose(2, 3)
        numbers = torch.cat([dg, *scalars], 2).flatten(0, 1).transpose(1, 2)
        total.view(B * n, S, F).baddbmm_(numbers, self.by_numbers.flatten(0, 1))
        self._add_from_senders(total, Q)

        pulled = (self.pull @ dx.flatten(2)).view(B * n, S, -1)
        pulled.baddbmm_(dc.flatten(0, 1).transpose(1, 2), self.difference.flatten(0, 1), alpha=-1)
        return pulled.view_as(dx), self._node(total, dh=dh).add_(dh)

    def _own_block(self, points: slice = EVERY) -> Tensor:
        """`Σ_s ∂m_rs/∂z` of all or some points without the gate's part, (B, n, F, F)."""
        t, s = self.t[:, points], self.s[:, points]
        return (t.transpose(2, 3) @ s).mul_(self.layer.message.weight)

    def _add_from_senders(self, found: Tensor, Q: Tensor) -> None:
        """Add `Σ_s diag(t_rs) W diag(s_rs) Q_s`, (B, n, S, F): what costs `(n F)² S`.

        A sender after another, so that what it sends is multiplied and added to the receivers' sums
        before it leaves the cache.
        """
        B, n, S, F = Q.shape
        W = self.layer.message.weight.t().contiguous()
        budget = GPU_CACHE if Q.is_cuda else CPU_CACHE
        clouds = min(max(budget // (n * S * F), 1), B)
        receivers = min(max(budget // (S * F), 1), n)
        room = Q.new_empty(2, clouds * receivers * S * F)  # allocating costs more than a pass
        for b in range(0, B, clouds):
            for r in range(0, n, receivers):
                total = found[b : b + clouds, r : r + receivers]
                slopes = self.s[b : b + clouds, r : r + receivers].unsqueeze(3).unbind(2)
                weights = self.t[b : b + clouds, r : r + receivers].unsqueeze(3).unbind(2)
                sent, moved = (part[: total.numel()].view(total.shape) for part in room)
                rows, moved_rows = sent.view(-1, F), moved.view(-1, F)
                for s, t, q in zip(slopes, weights, Q[b : b + clouds].unbind(1), strict=True):
                    torch.mul(s, q.unsqueeze(1), out=sent)
                    torch.mm(rows, W, out=moved_rows)
                    total.addcmul_(moved, t)

    def trace_at(self, points: slice, dx: Tensor, dh: Tensor, da: Tensor | None) -> Tensor:
        """`Σ_p Σ_a (∂x_pa/∂x_pa − 1)` after the layer, for the coordinates of `points`, (B,).

        The tangents before it are (B, n, P, d, d), (B, n, P, d, F) and, of `a`, (B, n, n, P, d).
        """
        own_x, own_h = own_of(dx, points), own_of(dh, points)  # (B, P, d, ·)
        dx, dh = dx.transpose(1, 2), dh.transpose(1, 2)  # (B, P, s, d, ·)

        D, mu = self.difference[:, points], self.mu[:, points]
        apart = dx - own_x.unsqueeze(2)
        dd2 = 2 * (apart * D.unsqueeze(3)).sum(-1)
        scalars = [dd2]
        if da is not None:
            scalars.append(own_of(da.movedim(3, 2), points))
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

    def features_at(self, points: slice, dx: Tensor, dh: Tensor) -> Tensor:
        """Tangents after the layer of the features of `points` along their own, (B, P, K, F).

        Those before it are (B, n, P, K, d) and (B, n, P, K, F).
        """
        own_x, own_h = own_of(dx, points), own_of(dh, points)  # (B, P, K, ·)
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

    def _node(self, total: Tensor, points: slice = EVERY, dh: Tensor | None = None) -> Tensor:
        """Tangent of the feature update from those of the message sum, and of `h`."""
        inner, _, outer = self.layer.feature_update
        of_h, of_total = inner.weight.tensor_split([self.h.shape[-1]], 1)
        moved = product(total, of_total)
        if dh is not None:
            moved += product(dh, of_h)
        return product(moved.mul_(self.node[:, points].unsqueeze(2)), outer.weight)


def own_of(tangents: Tensor, points: slice) -> Tensor:
    """Those of P points along their own directions, (B, n, P, …) to a view (B, P, …)."""
    return torch.diagonal(tangents[:, points], dim1=1, dim2=2).movedim(-1, 1)


def differences(x: Tensor) -> Tensor:
    """`x_s − x_r`, (B, n, d) to (B, r, s, d)."""
    return x.unsqueeze(1) - x.unsqueeze(2)


def _dot(rows: Tensor, column: Tensor) -> Tensor:
    """Inner products over the last axis with one vector (F,), or with one of each row."""
    return rows @ column if column.dim() == 1 else (rows * column).sum(-1)


def squared(difference: Tensor) -> Tensor:
    """Squared length over the last axis."""
    return difference.square().sum(-1)


def _activated(z: Tensor) -> tuple[Tensor, Tensor]:
    """`silu(z)` and its slope."""
    return silu(z), torch.ops.aten.silu_backward(z.new_ones(()).expand_as(z), z)
