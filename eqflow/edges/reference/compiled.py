r"""The wide part of a message pass, compiled: as `by_hand`, its loops made by a C++ compiler.

A block of edges goes through the stages of `edge_mlp`, with what enters the second and the third,
`z_2` and `z_3`, kept for the way back. That is the product of their vector-Jacobian products, from
which the compiler drops what only the values needed, so that no derivative is written here.
Whatever lies between two products of matrices is one loop of the processor's vector units, where
`by_hand` walks through memory once an operation.

The first call in a process takes some ten seconds each way, less where the compiler's cache on disk
has it. Where a backward pass is itself to be differentiated or batched, that of the plain formulas
runs instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from eqflow.edges.backend import current_choice
from eqflow.edges.graph import Block, Edges
from eqflow.edges.network import EdgeNetwork, are_weights_constant
from eqflow.edges.reference.by_hand.parts import is_recorded, plain_backward
from eqflow.edges.reference.edge_mlp import (
    Inputs,
    Tangents,
    composed,
    composed_dual,
    first_stage,
    first_stage_dual,
    last_stage,
    last_stage_dual,
    message_stage,
    message_stage_dual,
)
from eqflow.edges.watched import is_watched_backward
from eqflow.errors import UsageError

# Edges taken together: as many as make up for what a call costs while a cache still holds a part.
BLOCK = 4000
# Beyond so many cases (types, gates, parts that are missing) the rest would not be compiled.
CASES = 64

Tensors = tuple[Tensor, ...]
Stage = Callable[..., Any]


class Side(NamedTuple):
    """What the value is computed from, as `Inputs`, or its tangent, as `Tangents`, or gradients."""

    receiver: Tensor | None
    sender: Tensor | None
    scalars: Tensor
    weight: Tensor | None


Sides = tuple[Side, ...]

# Of a value, and of a value with a tangent.
STAGES: tuple[tuple[Stage, Stage, Stage], ...] = (
    (first_stage, message_stage, last_stage),
    (first_stage_dual, message_stage_dual, last_stage_dual),
)


def edge_mlp(inputs: Inputs, network: EdgeNetwork, edges: Edges) -> tuple[Tensor, Tensor]:
    """`φ` (E, 1) and `M` (N, F), as `edge_mlp.composed`."""
    tensors = (*inputs, *network.tensors())
    phi, total = _Compiled.apply(edges, network, is_recorded(tensors), 1, *tensors)
    return phi, total


def dual_edge_mlp(
    inputs: Inputs, tangents: Tangents, network: EdgeNetwork, edges: Edges
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`φ`, `M` and their derivatives along one direction, as `edge_mlp.composed_dual`."""
    tensors = (*inputs, *tangents, *network.tensors())
    phi, total, dphi, dtotal = _Compiled.apply(edges, network, is_recorded(tensors), 2, *tensors)
    return phi, total, dphi, dtotal


class _Compiled(torch.autograd.Function):
    """Of one side, the value alone, or of two, the value and one tangent."""

    @staticmethod
    def forward(
        ctx: Any, edges: Edges, network: EdgeNetwork, keep: bool, count: int, *tensors: Tensor
    ) -> Any:
        sides, weights = _split(tensors, count)
        net = _plain(network, weights)
        scalars = [side.scalars for side in sides]
        phis = [a.new_empty(*a.shape[:-1], 1) for a in scalars]
        nodes = tensors[0]
        totals = [nodes.new_zeros(len(nodes), *a.shape[1:-1], nodes.shape[1]) for a in scalars]
        every: list[Tensor] = []
        for block in edges.blocks(BLOCK):
            found, sent, kept = _run(
                _there, block.receiver, block.sender, _of(block, sides), net, keep
            )
            for phi, here in zip(phis, found, strict=True):
                phi[block.rows] = here
            for total, m in zip(totals, sent, strict=True):
                block.add_to_receivers(total, m)
            every.extend(kept)
        ctx.edges, ctx.network, ctx.count = edges, network, count
        ctx.save_for_backward(*tensors, *every)
        ctx.inputs, ctx.choice = len(tensors), current_choice()
        ctx.are_weights_constant = are_weights_constant()
        return tuple(part for pair in zip(phis, totals, strict=True) for part in pair)

    @staticmethod
    def backward(ctx: Any, *covectors: Tensor) -> Any:
        tensors, kept = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        if is_watched_backward(*covectors):
            found = plain_backward(ctx, lambda parts: _plainly(ctx, parts), covectors)
            return None, None, None, None, *found
        sides, weights = _split(tensors, ctx.count)
        net = _plain(ctx.network, weights)
        needed = ctx.needs_input_grad[-len(weights) :]
        with_weights = any(needed) and not ctx.are_weights_constant
        gradients = [_zeros(side) for side in sides]
        of_weights = [torch.zeros_like(weight) for weight in net.tensors()]
        kept, covectors = _detached(kept), _detached(g.contiguous() for g in covectors)
        g_phis, g_totals = covectors[::2], covectors[1::2]
        each = 2 * ctx.count
        for k, block in enumerate(ctx.edges.blocks(BLOCK)):
            found, g_weights = _run(
                _back,
                block.receiver,
                block.sender,
                _of(block, sides),
                net,
                kept[k * each : (k + 1) * each],
                tuple(g[block.rows] for g in g_phis),
                g_totals,
                with_weights,
            )
            for total, g in zip(gradients, found, strict=True):
                _add(block, total, g)
            for of_weight, g_weight in zip(of_weights, g_weights, strict=False):
                of_weight += g_weight
        g_net = of_weights if with_weights else [None] * len(of_weights)
        return None, None, None, None, *(part for side in gradients for part in side), *g_net


def _plainly(ctx: Any, parts: list[Tensor]) -> tuple[Tensor, ...]:
    """The whole pass in torch's own operations."""
    sides, weights = _split(parts, ctx.count)
    net = ctx.network.with_tensors(weights)
    inputs = Inputs(*parts[:4])
    if ctx.count == 1:
        return composed(inputs, net, ctx.edges)
    return composed_dual(inputs, Tangents(*sides[1]), net, ctx.edges)


def _split(tensors: Sequence[Tensor], count: int) -> tuple[Sides, Sequence[Tensor]]:
    """Inputs, tangents where there are two sides, and the weights, which come last."""
    sides = tuple(Side(*tensors[4 * k : 4 * k + 4]) for k in range(count))
    return sides, tensors[4 * count :]


def _detached(parts: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """The same numbers, whether or not gradients are asked for: else each case is compiled."""
    return tuple(None if part is None else part.detach() for part in parts)


def _plain(network: EdgeNetwork, tensors: Sequence[Tensor]) -> EdgeNetwork:
    """The network without the numbers that are of no use here, each of which would be compiled."""
    kept = network.with_tensors(_detached(tensors))
    return kept._replace(coordinate_range=None, stabilized=True)


def _of(block: Block, sides: Sides) -> Sides:
    """What a block needs, whether or not gradients are asked for: all nodes, its own edges."""
    found = []
    for side in sides:
        receiver, sender, scalars, weight = _detached(side)
        weight = None if weight is None else weight[block.rows]
        found.append(Side(receiver, sender, scalars[block.rows], weight))
    return tuple(found)


def _zeros(side: Side) -> Side:
    receiver, sender, weight = (
        None if part is None else torch.zeros_like(part)
        for part in (side.receiver, side.sender, side.weight)
    )
    return Side(receiver, sender, torch.zeros_like(side.scalars), weight)


def _add(block: Block, total: Side, g: Side) -> None:
    """Add a block's derivatives to those of nodes, and write those of its edges."""
    if total.receiver is not None and g.receiver is not None:
        block.add_to_receivers(total.receiver, g.receiver)
    if total.sender is not None and g.sender is not None:
        total.sender.index_add_(0, block.sender, g.sender)
    total.scalars[block.rows] = g.scalars
    if total.weight is not None and g.weight is not None:
        total.weight[block.rows] = g.weight


def _first(receiver_of: Tensor, sender_of: Tensor, sides: Sides, weight: Tensor) -> Tensors:
    """`z_1` (E, F) and, of a dual, its tangent (E, 1, F)."""
    found = []
    for side in sides:
        z = linear(side.scalars, weight)
        for ends, nodes in ((side.receiver, receiver_of), (side.sender, sender_of)):
            if ends is not None:
                z = z + ends[nodes]
        found.append(z)
    return tuple(found)


def _there(
    receiver_of: Tensor, sender_of: Tensor, sides: Sides, net: EdgeNetwork, keep: bool
) -> tuple[Tensors, Tensors, Tensors]:
    """`φ`, `s g_i m` and, if any is kept, `z_2, z_3` of a block, tangents beside each."""
    first, message, last = STAGES[len(sides) - 1]
    z1 = _first(receiver_of, sender_of, sides, net.scalar_weight)
    z2 = _all(first(*z1, net))
    found = message(*z2, *(side.weight for side in sides), net)
    z3, m = found[: len(z2)], found[len(z2) :]
    return _all(last(*z3, net)), m, (*z2, *z3) if keep else ()


def _back(
    receiver_of: Tensor,
    sender_of: Tensor,
    sides: Sides,
    net: EdgeNetwork,
    kept: Tensors,
    g_phi: Tensors,
    g_total: Tensors,
    with_weights: bool,
) -> tuple[list[Side], list[Tensor]]:
    """Derivatives of the loss by what a block was given, and by the weights if asked for."""
    values = len(sides)
    first, message, last = STAGES[values - 1]
    z2, z3 = kept[:values], kept[values:]
    factors = [side.weight for side in sides]

    def weighted(*arguments: Any) -> Any:
        """`message` as a function of the factors that there are."""
        given = iter(arguments[values:-1])
        filled = [None if part is None else next(given) for part in factors]
        return message(*arguments[:values], *filled, arguments[-1])

    def pulled(stage: Stage, inputs: Sequence[Tensor], g: Tensors) -> tuple[Tensors, Tensors]:
        weights = net.tensors() if with_weights else ()

        def formula(*arguments: Tensor) -> Tensors:
            own = arguments[len(inputs) :]
            network = net.with_tensors(own) if own else net
            return _all(stage(*arguments[: len(inputs)], network))

        found = torch.func.vjp(formula, *inputs, *weights)[1](g)
        return found[: len(inputs)], found[len(inputs) :]

    g_z3, by_last = pulled(last, z3, g_phi)
    g_sent = tuple(g[receiver_of] for g in g_total)
    inner = (*z2, *(part for part in factors if part is not None))
    g_inner, by_message = pulled(weighted, inner, (*g_z3, *g_sent))
    g_z2, g_factors = g_inner[:values], iter(g_inner[values:])
    z1 = _first(receiver_of, sender_of, sides, net.scalar_weight)
    g_z1, by_first = pulled(first, z1, g_z2)

    found: list[Side] = []
    for side, g in zip(sides, g_z1, strict=True):
        receiver, sender = (None if part is None else g for part in (side.receiver, side.sender))
        of_weight = None if side.weight is None else next(g_factors)
        found.append(Side(receiver, sender, g @ net.scalar_weight, of_weight))
    g_weights = [a + b + c for a, b, c in zip(by_last, by_message, by_first, strict=True)]
    if with_weights:
        of_scalars = [
            g.flatten(0, -2).t() @ side.scalars.flatten(0, -2)
            for g, side in zip(g_z1, sides, strict=True)
        ]
        g_weights[0] = sum(of_scalars[1:], of_scalars[0])
    return found, g_weights


def _all(found: Any) -> Tensors:
    """What a stage gives as a tuple, also where it is one tensor."""
    return (found,) if isinstance(found, Tensor) else found


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the compiled function.

    Raises:
        UsageError: If it cannot be compiled on this machine.
    """
    try:
        with torch._dynamo.config.patch(recompile_limit=CASES):
            return _compiled(function)(*arguments)
    except (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.InductorError) as error:
        reason = str(error).strip().splitlines()
        raise UsageError(
            "compiled message passes: torch.compile failed"
            f"{f' ({reason[0]})' if reason else ''}. They need a C++ compiler such as g++: install "
            "one, or leave out compiled=True (on the command line train.compile=true)."
        ) from error


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
