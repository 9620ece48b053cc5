"""One equivariant graph convolution at one state, with its derivative as matrices.

For complete graphs on clouds of one size, stacked: B clouds of n points, receivers `r` before
senders `s`. Made without a graph for autograd, and for nothing else than directional derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from eqflow.edges import DISTANCE_EPSILON
from eqflow.edges.products import add_product, product
from eqflow.nn.egcl import EGCL
from eqflow.nn.radial import OfDistance
from eqflow.nn.stacked import chunks, differences, joined, squared

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
        columns = list(layer.scalars.weight.unbind(1))
        if a is not None:
            scalars = torch.cat([scalars, a.value], -1)
            if a.value.shape[-1] > 1:
                columns[1:] = [product(a.slope, layer.scalars.weight[:, 1:])]
        z = _of(layer.receiver, h).unsqueeze(2) + _of(layer.sender, h).unsqueeze(1)
        z.view(-1, z.shape[-1]).addmm_(scalars.flatten(0, 2), layer.scalars.weight.t())
        m, s = _activated(z)
        W = layer.message.weight
        m, t = _activated(product(m, W, layer.message.bias))

        lean = omega = None
        gate = others.unsqueeze(-1)
        if layer.attention is not None:
            w = layer.attention.weight[0]
            opened = torch.sigmoid(_of(layer.attention, m))
            gate = opened * gate
            lean = m * (gate - gate * opened)
            omega = product(t, W.t() * w).mul_(s)
        t *= gate
        m *= gate
        W_x = layer.coordinate.weight
        phi, slope = _activated(product(m, W_x, layer.coordinate.bias))
        nu = product(slope, W_x.t() * layer.coordinate_out.weight[0])  # ∂φ/∂m
        mu = product(t * nu, W.t()).mul_(s)
        if lean is not None and omega is not None:
            mu.addcmul_((nu * lean).sum(-1, keepdim=True), omega)

        phi = _of(layer.coordinate_out, phi).squeeze(-1)
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
        x = torch.baddbmm(x * (1 + c.sum(2, keepdim=True)), c, x, alpha=-1)  # x − Σ c (x_s − x_r)

        node = None
        if layer.feature_update is not None:
            inner, _, outer = layer.feature_update
            value, node = _activated(_of(inner, torch.cat([h, m.sum(2)], -1)))
            h = h + _of(outer, value)
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
        B, n, _, F = self.s.shape
        gate = 0 if self.lean is None else 1
        found = self.s.new_empty(B, n, gate + len(self.columns), n, F)
        if self.lean is not None:
            found[:, :, 0] = self.lean
        for column, part in zip(self.columns, found[:, :, gate:].unbind(2), strict=True):
            self._by_scalar(column, part)
        return found.flatten(2, 3)

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
        gm = torch.empty_like(self.s)
        self._by_scalar(sum(self.columns[1:], self.columns[0]), gm)
        return gm, self.by_phi * sum(self.phi_by_scalars) + self.by_d2

    def _by_scalar(self, column: Tensor, found: Tensor) -> None:
        """Write `∂m` by a number of which `∂z` is the column, (B, n, n, F)."""
        W = self.layer.message.weight
        if column.dim() == 1:
            torch.mul(product(self.s, W * column), self.t, out=found)
        else:
            torch.mul(product(self.s * column, W), self.t, out=found)
        if self.lean is not None and self.omega is not None:
            found.addcmul_(self.lean, _dot(self.omega, column).unsqueeze(-1))

    def push(self, dx: Tensor, dh: Tensor, da: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tangents after the layer of all nodes.

        Args:
            dx, dh: Those before it along S directions, (B, n, S, d) and (B, n, S, F).
            da: Those of `a`, (B, n, n, S).
        """
        P = product(dh, self.layer.receiver.weight)  # (B, r, S, F)
        Q = product(dh, self.layer.sender.weight)  # (B, s, S, F)
        dx, numbers = self.push_positions(dx, self.read(P, Q), da)
        total = P @ self.own_block()
        self.add_from_numbers(total, numbers)
        self._add_from_senders(total, Q)
        return dx, self.update(total, dh, self.node.unsqueeze(2))

    def read(self, P: Tensor, Q: Tensor) -> Tensor:
        """`μ · (P_r + Q_s)` and, with a gate, `ω · (P_r + Q_s)`, (B, n, k, n, S)."""
        of_receivers, of_senders = self.readings
        return joined(of_receivers @ P.transpose(2, 3), of_senders @ Q.transpose(2, 3))

    def push_positions(self, dx: Tensor, read: Tensor, da: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tangents of positions after the layer, and those of the q numbers of an edge.

        Args:
            dx: Those before it, (B, n, S, d).
            read: What `read` found of the features', (B, n, k, n, S), which is overwritten.
            da: Those of `a`, (B, n, n, S).

        Returns:
            Shapes (B, n, S, d) and (B, n, q n, S), the latter in the order of `by_numbers`.
        """
        along = (-2 * self.difference) @ dx.transpose(2, 3)
        dd2 = along + along.transpose(1, 2)  # −2 D · (dx_r − dx_s), as D_sr = −D_rs
        dphi, dg = read[:, :, 0], read[:, :, 1:].flatten(2, 3)
        scalars = [dd2] if da is None else [dd2, da]
        for moved, phi_by in zip(scalars, self.phi_by_scalars, strict=False):
            dphi.addcmul_(phi_by.unsqueeze(-1), moved)
        dc = self.by_phi.unsqueeze(-1) * dphi
        dc.addcmul_(self.by_d2.unsqueeze(-1), dd2)
        pulled = (self.pull @ dx.flatten(2)).view_as(dx)
        pulled.flatten(0, 1).baddbmm_(
            dc.flatten(0, 1).transpose(1, 2), self.difference.flatten(0, 1), alpha=-1
        )
        return pulled, torch.cat([dg, *scalars], 2)

    def add_from_numbers(self, total: Tensor, numbers: Tensor) -> None:
        """Add what the numbers of an edge do to message sums, (B, n, q n, S) to (B, n, S, F)."""
        by_numbers = self.by_numbers[:, :, : numbers.shape[2]]
        total.flatten(0, 1).baddbmm_(
            numbers.flatten(0, 1).transpose(1, 2), by_numbers.flatten(0, 1)
        )

    def update(self, total: Tensor, dh: Tensor, node: Tensor) -> Tensor:
        """Tangents of features after the layer, (…, F), from those of message sums and features.

        Args:
            total, dh: Those of nodes, whose slopes of `φ_h` are `node`.
        """
        inner, _, outer = self.layer.feature_update
        of_h, of_total = inner.weight.tensor_split([self.h.shape[-1]], 1)
        moved = product(dh, of_h)
        add_product(moved, total, of_total)
        found = dh.clone(memory_format=torch.contiguous_format)
        add_product(found, moved.mul_(node), outer.weight)
        return found

    def of_total(self, total: Tensor, node: Tensor) -> Tensor:
        """The same where no feature has changed before the layer."""
        inner, _, outer = self.layer.feature_update
        of_total = inner.weight[:, self.h.shape[-1] :]
        return product(product(total, of_total).mul_(node), outer.weight)

    def own_block(self, points: slice = EVERY) -> Tensor:
        """`(Σ_s ∂m_rs/∂z)ᵀ` of all or some points without the gate's part, (B, n, F, F)."""
        t, s = self.t[:, points], self.s[:, points]
        return (s.transpose(2, 3) @ t).mul_(self.layer.message.weight.t())

    def _add_from_senders(self, found: Tensor, Q: Tensor) -> None:
        """Add `Σ_s diag(t_rs) W diag(s_rs) Q_s`, (B, n, S, F): what costs `(n F)² S`.

        A sender after another, so that what it sends is multiplied and added to the receivers' sums
        before it leaves the cache.
        """
        W = self.layer.message.weight.t().contiguous()
        for clouds, receivers, sent, moved in chunks(len(Q), Q.shape[1], Q[0, 0]):
            total = found[clouds, receivers]
            slopes = self.s[clouds, receivers].unsqueeze(3).unbind(2)
            weights = self.t[clouds, receivers].unsqueeze(3).unbind(2)
            rows, moved_rows = sent.flatten(0, -2), moved.flatten(0, -2)
            for s, t, q in zip(slopes, weights, Q[clouds].unbind(1), strict=True):
                torch.mul(s, q.unsqueeze(1), out=sent)
                torch.mm(rows, W, out=moved_rows)
                total.addcmul_(moved, t)


def _dot(rows: Tensor, column: Tensor) -> Tensor:
    """Inner products over the last axis with one vector (F,), or with one of each row."""
    return rows @ column if column.dim() == 1 else (rows * column).sum(-1)


def _of(part: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer, by a shorter way than calling the module: it has no hooks."""
    return linear(x, part.weight, part.bias)


def _activated(z: Tensor) -> tuple[Tensor, Tensor]:
    """`silu(z)` and its slope."""
    return silu(z), torch.ops.aten.silu_backward(z.new_ones(()).expand_as(z), z)
