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
from typing import Any

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

Parts = tuple[Tensor | None, ...]
Tensors = tuple[Tensor, ...]
Stage = Callable[..., Any]

# Of a value, and of a value with a tangent.
STAGES: tuple[tuple[Stage, Stage, Stage], ...] = (
    (first_stage, message_stage, last_stage),
    (first_stage_dual, message_stage_dual, last_stage_dual),
)


def edge_mlp(inputs: Inputs, network: EdgeNetwork, edges: Edges) -> tuple[Tensor, Tensor]:
    """`φ` (E, 1) and `M` (N, F), as `edge_mlp.composed`."""
    tensors = (*inputs, *network.tensors())
    phi, total = _Compiled.apply(edges, network, is_recorded(tensors), 0, *tensors)
    return phi, total


def dual_edge_mlp(
    inputs: Inputs, tangents: Tangents, network: EdgeNetwork, edges: Edges
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`φ`, `M` and their derivatives along one direction, as `edge_mlp.composed_dual`."""
    tensors = (*inputs, *tangents, *network.tensors())
    phi, total, dphi, dtotal = _Compiled.apply(
        edges, network, is_recorded(tensors), len(tangents), *tensors
    )
    return phi, total, dphi, dtotal


class _Compiled(torch.autograd.Function):
    """Value alone, or with one tangent where `along` counts the parts of `Tangents`."""

    @staticmethod
    def forward(
        ctx: Any, edges: Edges, network: EdgeNetwork, keep: bool, along: int, *tensors: Tensor
    ) -> Any:
        parts, net = _detached(tensors[: 4 + along]), _plain(network, tensors[4 + along :])
        receiver, scalars = tensors[0], tensors[2]
        phis = [scalars.new_empty(edges.count, 1)]
        totals = [torch.zeros_like(receiver)]
        if along:
            phis.append(scalars.new_empty(edges.count, 1, 1))
            totals.append(receiver.new_zeros(len(receiver), 1, receiver.shape[1]))
        every: list[Tensor] = []
        for block in edges.blocks(BLOCK):
            found, sent, kept = _run(
                _there, block.receiver, block.sender, _of(block, parts), net, keep
            )
            for phi, here in zip(phis, found, strict=True):
                phi[block.rows] = here
            for total, m in zip(totals, sent, strict=True):
                block.add_to_receivers(total, m)
            every.extend(kept)
        ctx.edges, ctx.network, ctx.along = edges, network, along
        ctx.save_for_backward(*tensors, *every)
        ctx.inputs, ctx.choice = len(tensors), current_choice()
        ctx.are_weights_constant = are_weights_constant()
        return tuple(part for pair in zip(phis, totals, strict=True) for part in pair)

    @staticmethod
    def backward(ctx: Any, *covectors: Tensor) -> Any:
        saved, along = ctx.saved_tensors, ctx.along
        tensors, kept = saved[: ctx.inputs], saved[ctx.inputs :]
        if is_watched_backward(*covectors):
            found = plain_backward(ctx, lambda parts: _plainly(ctx, parts), covectors)
            return None, None, None, None, *found
        parts, net = _detached(tensors[: 4 + along]), _plain(ctx.network, tensors[4 + along :])
        needed = ctx.needs_input_grad[4:]
        with_weights = any(needed[4 + along :]) and not ctx.are_weights_constant
        gradients = [None if part is None else torch.zeros_like(part) for part in parts]
        of_weights = [torch.zeros_like(weight) for weight in net.tensors()]
        kept, covectors = _detached(kept), _detached(g.contiguous() for g in covectors)
        g_phis, g_totals = covectors[::2], covectors[1::2]
        each = 4 if along else 2
        for k, block in enumerate(ctx.edges.blocks(BLOCK)):
            g_parts, g_weights = _run(
                _back,
                block.receiver,
                block.sender,
                _of(block, parts),
                net,
                kept[k * each : (k + 1) * each],
                tuple(g[block.rows] for g in g_phis),
                g_totals,
                with_weights,
            )
            for place, (total, g) in enumerate(zip(gradients, g_parts, strict=True)):
                if total is None or g is None:
                    continue
                if place % 4 == 0:
                    block.add_to_receivers(total, g)
                elif place % 4 == 1:
                    total.index_add_(0, block.sender, g)
                else:
                    total[block.rows] = g
            for total, g in zip(of_weights, g_weights, strict=False):
                total += g
        weights = of_weights if with_weights else [None] * len(of_weights)
        return None, None, None, None, *gradients, *weights


def _plainly(ctx: Any, parts: list[Tensor]) -> tuple[Tensor, ...]:
    """The whole pass in torch's own operations."""
    net = ctx.network.with_tensors(parts[4 + ctx.along :])
    if not ctx.along:
        return composed(Inputs(*parts[:4]), net, ctx.edges)
    phi, total, dphi, dtotal = composed_dual(
        Inputs(*parts[:4]), Tangents(*parts[4:8]), net, ctx.edges
    )
    return phi, total, dphi, dtotal


def _detached(parts: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """The same numbers, whether or not gradients are asked for: else each case is compiled."""
    return tuple(None if part is None else part.detach() for part in parts)


def _plain(network: EdgeNetwork, tensors: Sequence[Tensor]) -> EdgeNetwork:
    """The network without the numbers that are of no use here, each of which would be compiled."""
    kept = network.with_tensors(_detached(tensors))
    return kept._replace(coordinate_range=None, stabilized=True)


def _of(block: Block, parts: Sequence[Tensor | None]) -> Parts:
    """What a block needs: all nodes of the first two parts of four, its own edges of the others."""
    return tuple(
        part if part is None or place % 4 < 2 else part[block.rows]
        for place, part in enumerate(parts)
    )


def _first(receiver_of: Tensor, sender_of: Tensor, parts: Parts, weight: Tensor) -> Tensors:
    """`z_1` (E, F) and, of a dual, its tangent (E, 1, F)."""
    found = []
    for receiver, sender, scalars, _ in (parts[:4], parts[4:])[: len(parts) // 4]:
        assert scalars is not None  # they hold the distance
        z = linear(scalars, weight)
        for ends, nodes in ((receiver, receiver_of), (sender, sender_of)):
            if ends is not None:
                z = z + ends[nodes]
        found.append(z)
    return tuple(found)


def _there(
    receiver_of: Tensor, sender_of: Tensor, parts: Parts, net: EdgeNetwork, keep: bool
) -> tuple[Tensors, Tensors, Tensors]:
    """`φ`, `s g_i m` and, if any is kept, `z_2, z_3` of a block, tangents beside each."""
    first, message, last = STAGES[len(parts) // 4 - 1]
    z1 = _first(receiver_of, sender_of, parts, net.scalar_weight)
    z2 = _all(first(*z1, net))
    found = message(*z2, *parts[3::4], net)
    z3, m = found[: len(z2)], found[len(z2) :]
    return _all(last(*z3, net)), m, (*z2, *z3) if keep else ()


def _back(
    receiver_of: Tensor,
    sender_of: Tensor,
    parts: Parts,
    net: EdgeNetwork,
    kept: Tensors,
    g_phi: Tensors,
    g_total: Tensors,
    with_weights: bool,
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Derivatives of the loss by the parts of a block, and by the weights if asked for."""
    values = len(parts) // 4
    first, message, last = STAGES[values - 1]
    z2, z3 = kept[:values], kept[values:]
    factors = parts[3::4]

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
    z1 = _first(receiver_of, sender_of, parts, net.scalar_weight)
    g_z1, by_first = pulled(first, z1, g_z2)

    g_parts: list[Tensor | None] = []
    for place, part in enumerate(parts):
        g = g_z1[place // 4]
        if part is None:
            g_parts.append(None)
        elif place % 4 == 3:
            g_parts.append(next(g_factors))
        else:
            g_parts.append(g @ net.scalar_weight if place % 4 == 2 else g)
    g_weights = [a + b + c for a, b, c in zip(by_last, by_message, by_first, strict=True)]
    if with_weights:
        of_scalars = [
            g.flatten(0, -2).t() @ a.flatten(0, -2)
            for g, a in zip(g_z1, parts[2::4], strict=True)
            if a is not None
        ]
        g_weights[0] = sum(of_scalars[1:], of_scalars[0])
    return g_parts, g_weights


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
