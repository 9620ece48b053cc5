r"""The wide part of a message pass, derivatives written by hand, a block of edges at a time.

Autograd keeps every intermediate of the formulas, each as large as edges times features, and walks
through memory for each. Here a block of receivers with their edges goes through all formulas while
it is in the processor's cache. Of that size only the inputs of two activations are kept, which
saves the backward pass the products; the rest it evaluates again, a block at a time, and follows
the chain rule line by line. `z, m` are values, `dz, dm` their tangents along one direction, and
`g_m` is the derivative of the loss by `m`.

Where the backward pass is itself to be differentiated or batched, that of the plain formulas of
`edge_mlp` runs instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from eqflow.edges.backend import current_choice
from eqflow.edges.graph import Block, Edges
from eqflow.edges.network import EdgeNetwork, are_weights_constant
from eqflow.edges.products import product
from eqflow.edges.reference.by_hand.parts import (
    Kept,
    WeightGradients,
    blocks_of,
    first_layer,
    is_recorded,
    layer,
    plain_backward,
    slope_times,
    split_saved,
)
from eqflow.edges.reference.edge_mlp import Inputs, composed
from eqflow.edges.watched import is_watched_backward


def edge_mlp(inputs: Inputs, network: EdgeNetwork, edges: Edges) -> tuple[Tensor, Tensor]:
    """`φ` (E, 1) and `M` (N, F), as `edge_mlp.composed`."""
    tensors = (*inputs, *network.tensors())
    phi, total = _EdgeMLP.apply(edges, network, is_recorded(tensors), *tensors)
    return phi, total


class _EdgeMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Edges, network: EdgeNetwork, keep: bool, *tensors: Tensor) -> Any:
        inputs, net = Inputs(*tensors[:4]), network.with_tensors(tensors[4:])
        phi = inputs.scalars.new_empty(edges.count, 1)
        total = torch.zeros_like(inputs.receiver)
        every: list[Tensor] = []
        for block in blocks_of(edges):
            kept = _forward(block, inputs, net, phi, total, keep=keep)
            every.extend(kept or ())
        ctx.edges, ctx.network = edges, network
        ctx.save_for_backward(*tensors, *every)
        ctx.inputs, ctx.choice = len(tensors), current_choice()
        ctx.are_weights_constant = are_weights_constant()
        return phi, total

    @staticmethod
    def backward(ctx: Any, g_phi: Tensor, g_total: Tensor) -> Any:
        tensors, kept = split_saved(ctx)
        edges = ctx.edges
        if is_watched_backward(g_phi, g_total):

            def plain(parts: list[Tensor]) -> tuple[Tensor, ...]:
                return composed(Inputs(*parts[:4]), ctx.network.with_tensors(parts[4:]), edges)

            return None, None, None, *plain_backward(ctx, plain, (g_phi, g_total))
        inputs, net = Inputs(*tensors[:4]), ctx.network.with_tensors(tensors[4:])
        after = WeightGradients(ctx, net)
        g_receiver, g_sender = torch.zeros_like(inputs.receiver), torch.zeros_like(inputs.sender)
        g_scalars = torch.empty_like(inputs.scalars)
        g_weight = None if inputs.weight is None else torch.empty_like(inputs.weight)

        for block, of_block in zip(blocks_of(edges), kept, strict=True):
            state = _Again(block, inputs, net, of_block)
            g_m = g_total.index_select(0, block.receiver)
            if inputs.weight is not None and g_weight is not None:
                g_weight[block.rows] = (g_m * state.gated()).sum(-1, keepdim=True)
                g_m *= inputs.weight[block.rows]
            if net.inference is not None and state.g_i is not None:
                g_m = after.gate("inference", net.inference, state.m, state.g_i, g_m)
            here = g_phi[block.rows]
            after.product("coordinate_out", state.hidden, here)
            g_z3 = slope_times(here * net.coordinate_out, state.z3)
            after.layer("coordinate", state.m, g_z3)
            g_m += product(g_z3, net.coordinate_weight.t())
            if net.attention is not None and state.g_a is not None:
                g_m = after.gate("attention", net.attention, state.m0, state.g_a, g_m)
            g_z2 = slope_times(g_m, state.z2)
            after.layer("message", state.h, g_z2)
            g_z1 = slope_times(product(g_z2, net.message_weight.t()), state.z1)

            g_scalars[block.rows] = after.scalars(inputs.scalars[block.rows], g_z1)
            block.add_to_receivers(g_receiver, g_z1)
            g_sender.index_add_(0, block.sender, g_z1)
        return None, None, None, g_receiver, g_sender, g_scalars, g_weight, *after.all()


def _forward(
    block: Block, inputs: Inputs, net: EdgeNetwork, phi: Tensor, total: Tensor, *, keep: bool
) -> Kept | None:
    """The formulas on one block of edges, in place where nothing is kept: few tensors stay warm."""
    h = silu(_z1(block, inputs, net), inplace=True)
    z2 = layer(h, net.message_weight, net.message_bias)
    m = silu(z2, inplace=not keep)
    if net.attention is not None:
        m *= net.attention(m)
    z3 = layer(m, net.coordinate_weight, net.coordinate_bias)
    torch.mm(silu(z3, inplace=not keep), net.coordinate_out.t(), out=phi[block.rows])
    if net.inference is not None:
        m *= net.inference(m)
    if inputs.weight is not None:
        m *= inputs.weight[block.rows]
    block.add_to_receivers(total, m)
    return (z2, z3) if keep else None


class _Again:
    """A block evaluated again on the way back, from what the way there kept."""

    def __init__(self, block: Block, inputs: Inputs, net: EdgeNetwork, kept: Kept) -> None:
        self.z1 = _z1(block, inputs, net)
        self.z2, self.z3 = kept
        self.h, self.m0, self.hidden = silu(self.z1), silu(self.z2), silu(self.z3)
        self.g_a = None if net.attention is None else net.attention(self.m0)
        self.m = self.m0 if self.g_a is None else self.m0 * self.g_a
        self.g_i = None if net.inference is None else net.inference(self.m)

    def gated(self) -> Tensor:
        """`g_i m`."""
        return self.m if self.g_i is None else self.m * self.g_i


def _z1(block: Block, inputs: Inputs, net: EdgeNetwork) -> Tensor:
    return first_layer(block, inputs.receiver, inputs.sender, inputs.scalars, net)
