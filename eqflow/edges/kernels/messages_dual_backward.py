"""Reverse mode through the message pass with tangents, by recomputing the composed pass.

No kernel: it would hold twelve products of the backward pass at once, more than the registers of a
program. `eqflow.edges.reference` is run again on some receivers at a time, all their edges with
them, so that what it keeps for its own backward pass stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from eqflow.edges import reference
from eqflow.edges.graph import Edges
from eqflow.edges.kernels.message_setting import INPUTS, Setting
from eqflow.edges.network import MessageInputs, MessageTangents
from eqflow.geometry.segments import Segments

# Elements of each tensor of edges, directions and features that is made: 64 MiB in float32.
ELEMENTS_AT_ONCE = 2**24

# Slots of tensors that have a row an edge: scalars, envelope and their tangents.
_BY_EDGE = (3, 4, INPUTS + 3, INPUTS + 4)


def dual_gradients(
    setting: Setting,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of the tensors of a pass with tangents, from those of its four results.

    Args:
        setting: What the pass depends on besides.
        tensors: Those given, as `setting` says.
        gradients: As in `MessageDual`.
        wanted: Which of the tensors need one; None is returned for the others.
    """
    directions, width = tensors[INPUTS].shape[1], tensors[1].shape[1]
    for_an_edge = (1 + directions) * width
    totals: list[Tensor | None] = [None] * len(tensors)
    for edges, span in _some_receivers(setting.edges, max(ELEMENTS_AT_ONCE // for_an_edge, 1)):
        leaves = [v.detach().requires_grad_(want) for v, want in zip(tensors, wanted, strict=True)]
        with torch.enable_grad():
            slots = [
                slot[span] if slot is not None and at in _BY_EDGE else slot
                for at, slot in enumerate(setting.slots(leaves))
            ]
            results = reference.egcl_messages_dual(
                MessageInputs(*slots[:INPUTS]),  # type: ignore[arg-type]
                MessageTangents(*slots[INPUTS : 2 * INPUTS]),  # type: ignore[arg-type]
                setting.network(slots[2 * INPUTS :]),
                edges,
            )
        depends = [k for k, want in enumerate(wanted) if want]
        found = torch.autograd.grad(
            results, [leaves[k] for k in depends], gradients, allow_unused=True
        )
        for k, gradient in zip(depends, found, strict=True):
            before = totals[k]
            totals[k] = gradient if before is None or gradient is None else before + gradient
    return tuple(totals)


def _some_receivers(edges: Edges, at_once: int) -> Iterator[tuple[Edges, slice]]:
    """The graph cut by receivers into graphs of about `at_once` edges, with their place in it."""
    if edges.count <= at_once:
        yield edges, slice(None)
        return
    ptr = edges.incoming.ptr
    marks = torch.arange(0, edges.count, at_once, device=ptr.device)
    cuts = torch.cat(
        [torch.searchsorted(ptr, marks, right=True) - 1, ptr.new_tensor([edges.nodes])]
    )
    bounds = ptr[cuts.unique()].tolist()
    for start, stop in pairwise(bounds):
        part = Segments(ptr.clamp(start, stop) - start)
        yield Edges.trusted(part, edges.clouds, edges.sender[start:stop]), slice(start, stop)
