"""What both hand-written passes are made of: blocks, the first layer, derivatives of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from eqflow.edges.backend import as_chosen
from eqflow.edges.graph import Block, Edges
from eqflow.edges.network import EdgeNetwork, Gate
from eqflow.edges.products import outer_product, product

# Edges taken together: on a CPU as many as its cache holds, on a GPU as few launches as can be.
# Columns of a matrix with a power of two of rows would share a few lines of a CPU's cache.
CPU_BLOCK = 4000
CPU_ATTENTION_BLOCK = 2048
GPU_BLOCK = 2**20

Gradients = list[Tensor | None]
Kept = tuple[Tensor, Tensor]
slope_times = torch.ops.aten.silu_backward


def blocks_of(edges: Edges, parts: int = 1) -> list[Block]:
    """The edges in the portions they are gone through, with `parts` rows kept of each."""
    return edges.blocks((GPU_BLOCK if edges.sender.is_cuda else CPU_BLOCK) // parts)


def attention_blocks_of(edges: Edges, query: Tensor, x: Tensor) -> list[Block]:
    """The edges in portions whose rows of queries and values fill as much of a cache."""
    width = max(query.shape[1] * max(query.shape[2], x.shape[2]) // 64, 1)
    return edges.blocks(GPU_BLOCK if x.is_cuda else max(CPU_ATTENTION_BLOCK // width, 64))


def first_layer(
    block: Block,
    receiver: Tensor | None,
    sender: Tensor | None,
    a: Tensor,
    net: EdgeNetwork,
    out: Tensor | None = None,
) -> Tensor:
    """`p_r + q_c + W_a a`."""
    z = torch.mm(a[block.rows], net.scalar_weight.t(), out=out)
    if receiver is not None:
        z += receiver.index_select(0, block.receiver)
    if sender is not None:
        z += sender.index_select(0, block.sender)
    return z


def layer(m: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`W m + b`."""
    return product(m, weight, bias)


class WeightGradients:
    """Derivatives of the loss by the weights of a network, summed on the way back.

    Where none of them is asked for, as in a divergence, none is made.
    """

    def __init__(self, ctx: Any, network: EdgeNetwork) -> None:
        asked = any(ctx.needs_input_grad[-len(network.tensors()) :])
        self.wanted = asked and not ctx.are_weights_constant
        names = ["scalar_weight", "message", "message_bias", "coordinate", "coordinate_bias"]
        names += ["coordinate_out"]
        gates = [name for name in ("attention", "inference") if getattr(network, name)]
        names += [name for gate in gates for name in (gate, f"{gate}_bias")]
        weights = zip(names, network.tensors(), strict=True)
        self.found = {name: torch.zeros_like(weight) for name, weight in weights}
        self.scalar_weight = network.scalar_weight

    def all(self) -> Gradients:
        """In the order of `EdgeNetwork.tensors`."""
        return list(self.found.values()) if self.wanted else [None] * len(self.found)

    def product(self, name: str, m: Tensor, g_z: Tensor) -> None:
        """Of `z = W m`."""
        if self.wanted:
            self.found[name] += outer_product(g_z, m)

    def layer(self, name: str, m: Tensor, g_z: Tensor) -> None:
        """Of `z = W m + b`."""
        self.product(name, m, g_z)
        self._bias(name, g_z)

    def dual_layer(self, name: str, both: Tensor, g_both: Tensor) -> None:
        """Of `z = W m + b` and `dz = W dm`."""
        self.product(name, both, g_both)
        self._bias(name, g_both[: len(g_both) // 2])

    def scalars(self, a: Tensor, g_z: Tensor) -> Tensor:
        """Of `z = W_a a`; returns `g_a`. Both transposed: fast where `a` has few columns."""
        if self.wanted:
            self.found["scalar_weight"] += (a.t() @ g_z).t()
        return (self.scalar_weight.t() @ g_z.t()).t()

    def _bias(self, name: str, g_z: Tensor) -> None:
        if self.wanted:
            self.found[f"{name}_bias"] += g_z.sum(0)

    def gate(self, name: str, gate: Gate, m: Tensor, g: Tensor, g_y: Tensor) -> Tensor:
        """Of `y = g(m) m`; returns `g_m`."""
        g_logit = (g_y * m).sum(-1, keepdim=True) * (g * (1 - g))
        self.layer(name, m, g_logit)
        return (g_y * g).addcmul_(g_logit, gate.weight)

    def dual_gate(
        self, name: str, gate: Gate, both: Tensor, gates: Tensor, g_both: Tensor
    ) -> Tensor:
        """Of `y = g m` and `dy = g dm + dg m`, `dg = g (1 − g) dl`; returns `g_m` and `g_dm`."""
        m, dm = both.chunk(2)
        g, dl = gates.unbind(1)
        g, dl = g.unsqueeze(1), dl.unsqueeze(1)
        slope = g * (1 - g)
        g_y, g_dy = g_both.chunk(2)
        g_dg = (g_dy * m).sum(-1, keepdim=True)
        g_gate = (g_y * m).sum(-1, keepdim=True) + (g_dy * dm).sum(-1, keepdim=True)
        g_l = g_gate * slope + g_dg * dl * slope * (1 - 2 * g)
        g_dl = g_dg * slope
        g_ls = torch.cat([g_l, g_dl])
        self.dual_layer(name, both, g_ls)
        found = g_ls * gate.weight
        g_m, g_dm = found.chunk(2)
        g_m.addcmul_(g_y, g).addcmul_(g_dy, slope * dl)
        g_dm.addcmul_(g_dy, g)
        return found


def is_recorded(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a backward pass may follow: grad mode is off by the time a Function runs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def split_saved(ctx: Any) -> tuple[tuple[Tensor, ...], list[Kept]]:
    """The inputs of a pass, and what it kept of each block."""
    saved = ctx.saved_tensors
    kept = saved[ctx.inputs :]
    return saved[: ctx.inputs], list(zip(kept[::2], kept[1::2], strict=True))


def plain_backward(
    ctx: Any,
    formulas: Callable[[list[Tensor]], tuple[Tensor, ...]],
    covectors: tuple[Tensor, ...],
) -> Gradients:
    """Derivatives of the loss by all inputs, in operations torch differentiates at will."""
    # Stand-ins: one input may depend on another, as on weights of an earlier step of a solve.
    with torch.enable_grad():
        tensors: list[Any] = [
            part if part is None else part.view_as(part) for part in ctx.saved_tensors[: ctx.inputs]
        ]
    wanted = [k for k, needed in enumerate(ctx.needs_input_grad[-ctx.inputs :]) if needed]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), as_chosen(ctx.choice):
        found = [
            (value, covector)
            for value, covector in zip(formulas(tensors), covectors, strict=True)
            if value.requires_grad
        ]
        gradients = torch.autograd.grad(
            [value for value, _ in found],
            [tensors[k] for k in wanted],
            [covector for _, covector in found],
            create_graph=create_graph,
            allow_unused=True,
        )
    result: Gradients = [None] * len(tensors)
    for k, gradient in zip(wanted, gradients, strict=True):
        result[k] = gradient
    return result
