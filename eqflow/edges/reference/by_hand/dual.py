r"""The wide part of a message pass with one tangent, differentiated by hand.

Value and tangent are the two halves of each tensor, so that a layer is one product of matrices. See
`value` for the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eqflow.edges.backend import current_choice
from eqflow.edges.graph import Block, Edges
from eqflow.edges.network import EdgeNetwork, Gate, are_weights_constant
from eqflow.edges.products import product
from eqflow.edges.reference.by_hand.parts import (
    Kept,
    WeightGradients,
    blocks_of,
    first_layer,
    is_recorded,
    plain_backward,
    slope_times,
    split_saved,
)
from eqflow.edges.reference.edge_mlp import Inputs, Tangents, composed_dual
from eqflow.edges.watched import is_watched_backward


def dual_edge_mlp(
    inputs: Inputs, tangents: Tangents, network: EdgeNetwork, edges: Edges
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`φ`, `M` and their derivatives along one direction, as `edge_mlp.composed_dual`."""
    along = [None if part is None else part.squeeze(1) for part in tangents]
    tensors = (*inputs, *along, *network.tensors())
    phi, total, dphi, dtotal = _DualEdgeMLP.apply(edges, network, is_recorded(tensors), *tensors)
    return phi, total, dphi.unsqueeze(1), dtotal.unsqueeze(1)


class _DualEdgeMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Edges, network: EdgeNetwork, keep: bool, *tensors: Tensor) -> Any:
        inputs, tangents = Inputs(*tensors[:4]), Tangents(*tensors[4:8])
        net = network.with_tensors(tensors[8:])
        phi, dphi = inputs.scalars.new_empty(2, edges.count, 1)
        total, dtotal = inputs.receiver.new_zeros(2, *inputs.receiver.shape)
        every: list[Tensor] = []
        for block in blocks_of(edges, 2 if keep else 1):
            phis, both, kept = _forward(block, inputs, tangents, net, keep=keep)
            phi[block.rows], dphi[block.rows] = phis.chunk(2)
            m, dm = both.chunk(2)
            block.add_to_receivers(total, m)
            block.add_to_receivers(dtotal, dm)
            every.extend(kept or ())
        ctx.edges, ctx.network = edges, network
        ctx.save_for_backward(*tensors, *every)
        ctx.inputs, ctx.choice = len(tensors), current_choice()
        ctx.are_weights_constant = are_weights_constant()
        return phi, total, dphi, dtotal

    @staticmethod
    def backward(ctx: Any, g_phi: Tensor, g_total: Tensor, g_dphi: Tensor, g_dtotal: Tensor) -> Any:
        tensors, kept = split_saved(ctx)
        edges = ctx.edges
        inputs, tangents = Inputs(*tensors[:4]), Tangents(*tensors[4:8])
        net = ctx.network.with_tensors(tensors[8:])
        covectors = (g_phi, g_total, g_dphi, g_dtotal)
        if is_watched_backward(*covectors):

            def plain(parts: list[Tensor]) -> tuple[Tensor, ...]:
                along = (None if part is None else part.unsqueeze(1) for part in parts[4:8])
                phi, total, dphi, dtotal = composed_dual(
                    Inputs(*parts[:4]),
                    Tangents(*along),
                    ctx.network.with_tensors(parts[8:]),
                    edges,
                )
                return phi, total, dphi.squeeze(1), dtotal.squeeze(1)

            return None, None, None, *plain_backward(ctx, plain, covectors)
        after = WeightGradients(ctx, net)
        g_receiver, g_sender, g_dreceiver, g_dsender = inputs.receiver.new_zeros(
            4, *inputs.receiver.shape
        )
        g_scalars, g_dscalars = inputs.scalars.new_empty(2, *inputs.scalars.shape)
        g_weight = None if inputs.weight is None else torch.empty_like(inputs.weight)
        g_dweight = None if tangents.weight is None else torch.empty_like(tangents.weight)

        for block, of_block in zip(blocks_of(edges, 2), kept, strict=True):
            state = _Again(block, inputs, tangents, net, of_block)
            rows = block.rows
            g_both = torch.empty_like(state.m)
            for g, half in zip((g_total, g_dtotal), g_both.chunk(2), strict=True):
                torch.index_select(g, 0, block.receiver, out=half)
            if inputs.weight is not None and g_weight is not None:
                g_s, g_ds = g_weight[rows], None if g_dweight is None else g_dweight[rows]
                ds = None if tangents.weight is None else tangents.weight[rows]
                _unweigh(g_both, state.gated(), inputs.weight[rows], ds, g_s, g_ds)
            if net.inference is not None and state.g_i is not None:
                g_both = after.dual_gate("inference", net.inference, state.m, state.g_i, g_both)

            here = torch.cat([g_phi[rows], g_dphi[rows]])
            after.product("coordinate_out", state.third.both, here)
            g_z3 = state.third.back(here * net.coordinate_out)
            after.dual_layer("coordinate", state.m, g_z3)
            g_both += product(g_z3, net.coordinate_weight.t())
            if net.attention is not None and state.g_a is not None:
                g_both = after.dual_gate("attention", net.attention, state.m0, state.g_a, g_both)
            g_z2 = state.second.back(g_both)
            after.dual_layer("message", state.first.both, g_z2)
            g_z1 = state.first.back(product(g_z2, net.message_weight.t()))

            g_z1, g_dz1 = g_z1.chunk(2)
            g_scalars[rows] = after.scalars(inputs.scalars[rows], g_z1)
            g_dscalars[rows] = after.scalars(tangents.scalars[rows], g_dz1)
            block.add_to_receivers(g_receiver, g_z1)
            g_sender.index_add_(0, block.sender, g_z1)
            if tangents.receiver is not None:
                block.add_to_receivers(g_dreceiver, g_dz1)
            if tangents.sender is not None:
                g_dsender.index_add_(0, block.sender, g_dz1)
        return (
            *(None, None, None),
            *(g_receiver, g_sender, g_scalars, g_weight),
            None if tangents.receiver is None else g_dreceiver,
            None if tangents.sender is None else g_dsender,
            *(g_dscalars, g_dweight),
            *after.all(),
        )


def _forward(
    block: Block, inputs: Inputs, tangents: Tangents, net: EdgeNetwork, *, keep: bool
) -> tuple[Tensor, Tensor, Kept | None]:
    """`φ` and `s g_i m` of one block with their tangents, in place where nothing is kept."""
    both = _activated(_z1(block, inputs, tangents, net), in_place=True)
    z2 = _dual_layer(both, net.message_weight, net.message_bias)
    both = _activated(z2, in_place=not keep)
    if net.attention is not None:
        _apply(both, _dual_gate(net.attention, both))
    z3 = _dual_layer(both, net.coordinate_weight, net.coordinate_bias)
    phis = _activated(z3, in_place=not keep) @ net.coordinate_out.t()
    if net.inference is not None:
        _apply(both, _dual_gate(net.inference, both))
    if inputs.weight is not None:
        m, dm = both.chunk(2)
        s = inputs.weight[block.rows]
        dm *= s
        if tangents.weight is not None:
            dm.addcmul_(m, tangents.weight[block.rows])
        m *= s
    return phis, both, (z2, z3) if keep else None


class _Again:
    """A block evaluated again on the way back, from what the way there kept."""

    def __init__(
        self, block: Block, inputs: Inputs, tangents: Tangents, net: EdgeNetwork, kept: Kept
    ) -> None:
        self.first = _Activation(_z1(block, inputs, tangents, net))
        self.second, self.third = map(_Activation, kept)
        self.m = self.m0 = self.second.both
        self.g_a, self.g_i = None, None
        if net.attention is not None:
            self.g_a = _dual_gate(net.attention, self.m0)
            self.m = _gated(self.m0, self.g_a)
        if net.inference is not None:
            self.g_i = _dual_gate(net.inference, self.m)

    def gated(self) -> Tensor:
        """`g_i m` and its tangent."""
        return self.m if self.g_i is None else _gated(self.m, self.g_i)


def _z1(block: Block, inputs: Inputs, tangents: Tangents, net: EdgeNetwork) -> Tensor:
    both = inputs.receiver.new_empty(2 * len(block.sender), inputs.receiver.shape[1])
    z, dz = both.chunk(2)
    first_layer(block, inputs.receiver, inputs.sender, inputs.scalars, net, out=z)
    first_layer(block, tangents.receiver, tangents.sender, tangents.scalars, net, out=dz)
    return both


def _dual_layer(both: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`W m + b` above `W dm`."""
    z = product(both, weight)
    z[: len(z) // 2] += bias
    return z


def _activated(z_both: Tensor, *, in_place: bool = False) -> Tensor:
    """`silu(z)` above `silu'(z) dz`."""
    both = z_both if in_place else torch.empty_like(z_both)
    (z, dz), (upper, lower) = z_both.chunk(2), both.chunk(2)
    slope_times.grad_input(dz, z, grad_input=lower)
    torch.ops.aten.silu.out(z, out=upper)
    return both


class _Activation:
    """`silu(z)` above `silu'(z) dz`, with what the way back takes from it: `f' = σ + f (1 − σ)`."""

    def __init__(self, z_both: Tensor) -> None:
        z, self.dz = z_both.chunk(2)
        self.both = torch.empty_like(z_both)
        self.h, dh = self.both.chunk(2)
        self.sigma = torch.sigmoid(z)
        torch.mul(z, self.sigma, out=self.h)
        self.rest = 1 - self.sigma
        self.slope = torch.addcmul(self.sigma, self.h, self.rest)
        torch.mul(self.slope, self.dz, out=dh)

    def back(self, g_both: Tensor) -> Tensor:
        """Make `g_h` above `g_dh` into `g_z` above `g_dz`; `f'' = (1 − σ) (σ (1 − f) + f')`."""
        curvature = torch.addcmul(self.sigma, self.sigma, self.h, value=-1)
        curvature += self.slope
        curvature *= self.rest
        curvature *= self.dz
        g_h, g_dh = g_both.chunk(2)
        g_h *= self.slope
        g_h.addcmul_(curvature, g_dh)
        g_dh *= self.slope
        return g_both


def _dual_gate(gate: Gate, both: Tensor) -> Tensor:
    """Gate and tangent of its logit, (E, 2)."""
    logits, moved = (both @ gate.weight.t()).chunk(2)
    return torch.cat([torch.sigmoid(logits + gate.bias), moved], 1)


def _gated(both: Tensor, gates: Tensor) -> Tensor:
    """`g m` above `g dm + dg m`, with `dg = g (1 − g) dl`."""
    g, dl = gates.chunk(2, 1)
    return _with_gate_tangent(both * torch.cat([g, g]), g, dl)


def _apply(both: Tensor, gates: Tensor) -> None:
    """Make `both` what `_gated` gives."""
    g, dl = gates.chunk(2, 1)
    both *= torch.cat([g, g])
    _with_gate_tangent(both, g, dl)


def _with_gate_tangent(both: Tensor, g: Tensor, dl: Tensor) -> Tensor:
    """Add `dg m` to `g dm`, given `g m` above it."""
    m, dm = both.chunk(2)
    dm.addcmul_(m, (1 - g) * dl)
    return both


def _unweigh(
    g_both: Tensor,
    sent: Tensor,
    s: Tensor,
    ds: Tensor | None,
    g_s: Tensor,
    g_ds: Tensor | None,
) -> None:
    """Back through `y = s m`, `dy = s dm + ds m`, in place; fills `g_s` and `g_ds`."""
    m, dm = sent.chunk(2)
    g_y, g_dy = g_both.chunk(2)
    torch.add((g_y * m).sum(-1, keepdim=True), (g_dy * dm).sum(-1, keepdim=True), out=g_s)
    g_y *= s
    if ds is not None:
        g_y.addcmul_(g_dy, ds)
    if g_ds is not None:
        torch.sum(g_dy * m, -1, keepdim=True, out=g_ds)
    g_dy *= s
