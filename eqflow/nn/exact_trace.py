r"""The exact divergence of an equivariant graph network on complete graphs, without autograd.

`tr ∂v/∂x` needs the derivative along each coordinate of each point. Carried forward by hand through
the linearised layers these directions are cheaper than a generic method can make them:

- In the first layer positions enter through `d²` alone: `∂m_ij/∂d_ij²` of each pair, computed
  once, serves all directions.
- In the last layer the direction of point `p` is only asked for its effect on `p`, a product of two
  vectors for each of its `n − 1` incoming edges.
- In the layers next to those most directions of a point differ by a factor alone, or are asked for
  their sum alone (`point_directions`).
- In between the derivative of all messages of a cloud is one matrix.

Where features evolve as well, each of them is one direction more of its node: it enters the first
layer at that node alone, and of what comes out only that node's block of the Jacobian is asked for.

So a network of one layer has a divergence in closed form, one of two layers costs a few
evaluations, and each further layer one product of an `n F` square matrix with `n (d + K)` columns.
Clouds of one size are stacked, and taken in groups that stay in a processor's cache. Nothing here
can be differentiated; training on a trace goes through `pushforward` or autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eqflow.edges.products import product
from eqflow.edges.watched import is_watched
from eqflow.geometry import Segments
from eqflow.nn import feature_directions, point_directions
from eqflow.nn.egcl import EGCL
from eqflow.nn.egnn import EGNN
from eqflow.nn.linearised import Linearised
from eqflow.nn.stacked import differences, own_of, slices, squared

# Numbers in the largest temporary: what a core's cache holds, and what a GPU can spare.
CPU_BUDGET = 2**19
GPU_BUDGET = 2**27
# Features from which on the fewer products at the ends of a network outweigh their bookkeeping.
WIDE = 48


class Traced(NamedTuple):
    """What a network makes of positions and features, and the derivative of each by itself.

    Attributes:
        shift: `x^L − x`, shape (N, d).
        out: Features that come out, shape (N, K').
        trace: `Σ_i tr ∂shift_i/∂x_i` of each cloud, shape (B,).
        blocks: `∂out_i/∂h_i`, shape (N, K', K).
    """

    shift: Tensor
    out: Tensor
    trace: Tensor
    blocks: Tensor


@torch.no_grad()
def shift_and_trace(egnn: EGNN, x: Tensor, h: Tensor, clouds: Segments) -> tuple[Tensor, Tensor]:
    """`x^L − x` of a network on complete graphs, and its exact divergence.

    Args:
        egnn: One that `is_linearisable`.
        x: Positions, shape (N, d).
        h: Node features, shape (N, features), which stay.
        clouds: Nodes of each cloud.

    Returns:
        Shapes (N, d) and (B,).
    """
    with torch.autocast(x.device.type, enabled=False):
        found = _by_size(egnn, x, egnn.embed(h), clouds, inputs=0)
        return found.shift, found.trace


@torch.no_grad()
def shift_features_and_trace(
    egnn: EGNN, x: Tensor, h: Tensor, clouds: Segments, inputs: int
) -> Traced:
    """`x^L − x` and `h^L` of a network on complete graphs, with their exact derivatives.

    Args:
        egnn: One that `is_linearisable` and puts out features.
        x: Positions, shape (N, d).
        h: Node features, shape (N, features).
        clouds: Nodes of each cloud.
        inputs: Number K of features, the first columns of `h`, whose derivative is asked for; the
            others stay.
    """
    with torch.autocast(x.device.type, enabled=False):
        found = _by_size(egnn, x, egnn.embed(h), clouds, inputs)
        blocks = product(found.blocks, egnn.readout.weight).transpose(1, 2)
        return found._replace(out=egnn.readout(found.out), blocks=blocks)


def _by_size(egnn: EGNN, x: Tensor, h: Tensor, clouds: Segments, inputs: int) -> Traced:
    """The network without its output layer: features come out as `h`, blocks as (N, K, F)."""
    d, F = x.shape[1], h.shape[1]
    found = Traced(
        torch.zeros_like(x), h.clone(), x.new_zeros(clouds.count), h.new_zeros(len(h), inputs, F)
    )
    budget = GPU_BUDGET if x.is_cuda else CPU_BUDGET
    with _untracked(x):
        for size in _sizes(clouds):
            if not size or (size < 2 and not inputs):
                continue
            numbers = size * (d + inputs) * F
            for group, rows in _alike(clouds, size, max(budget // (size * numbers), 1)):
                here, features = (part[rows].unflatten(0, (-1, size)) for part in (x, h))
                part = _Group(egnn, here, features, inputs, budget)
                found.shift[rows] = part.shift.flatten(0, 1)
                found.out[rows] = part.h.flatten(0, 1)
                found.trace[group] = part.trace
                found.blocks[rows] = part.blocks.flatten(0, 1)
    return found


def _sizes(clouds: Segments) -> list[int]:
    """Of the clouds, each once."""
    if clouds.uniform is not None:
        return [clouds.uniform]
    found: list[int] = clouds.lengths.unique().tolist()
    return found


def _alike(
    clouds: Segments, size: int, most: int
) -> Iterator[tuple[slice, slice] | tuple[Tensor, Tensor]]:
    """Clouds of one size, some together, and their nodes one cloud after another."""
    if clouds.uniform is not None:
        for group in slices(clouds.count, most):
            yield group, slice(group.start * size, group.stop * size)
        return
    for chosen in (clouds.lengths == size).nonzero().squeeze(1).split(most):
        nodes = clouds.ptr[chosen].unsqueeze(1) + torch.arange(size, device=chosen.device)
        yield chosen, nodes.flatten()


def _untracked(x: Tensor) -> AbstractContextManager[object]:
    """Inference mode, whose tensors cost a fifth less to make than without gradients alone.

    What is written into tensors made outside of it may be used anywhere.
    """
    return nullcontext() if is_watched(x) else torch.inference_mode()


def is_linearisable(egnn: EGNN) -> bool:
    """Whether a network is of the kind that is known here how to differentiate."""
    return (
        egnn.is_as_made
        and egnn.cutoff is None
        and egnn.edge_features == 0
        and isinstance(egnn.layers, nn.ModuleList)
        and all(
            type(layer) is EGCL
            and layer.velocity_scale is None
            and layer.inference is None
            and (layer.feature_update is None) == (k == len(egnn.layers) - 1 and not _reads(egnn))
            and (
                layer.feature_update is None
                or [type(part) for part in layer.feature_update] == [nn.Linear, nn.SiLU, nn.Linear]
            )
            for k, layer in enumerate(egnn.layers)
        )
    )


def _reads(egnn: EGNN) -> bool:
    """Whether features are put out, for which the last layer has to update them."""
    return type(egnn.readout) is nn.Linear


class _Group:
    """Clouds of one size `n`, (B, n, d), whose directions are carried some points at a time.

    Attributes:
        shift, h: What comes out, (B, n, d) and (B, n, F).
        trace: That of the shift, (B,).
        blocks: Derivatives of `h` by the K features of the same node, (B, n, K, F).
    """

    def __init__(self, egnn: EGNN, x: Tensor, h: Tensor, inputs: int, budget: int) -> None:
        B, n, d = x.shape
        start = x
        a = egnn.distance_attributes(squared(differences(x))) if egnn.input_distance else None
        others = 1 - torch.eye(n, dtype=x.dtype, device=x.device)
        self.layers = []
        for layer in egnn.layers:
            linearised = Linearised.of(layer, x, h, a, others)
            x, h = linearised.x, linearised.h
            self.layers.append(linearised)
        self.shift, self.h = x - start, h
        self.difference = self.layers[0].difference if egnn.input_distance else None
        if len(self.layers) == 1:
            self.trace = _radial_trace(self.layers[0])
        else:
            self.trace = x.new_zeros(B)
            self._add_trace(budget // (h.numel() * d))
        self.blocks = h.new_zeros(B, n, inputs, h.shape[2])
        if inputs:
            by_features = egnn.embed.weight[:, :inputs].t().contiguous()  # (K, F)
            for points in slices(n, budget // (h.numel() * inputs)):
                self.blocks[:, points] = self._blocks(points, by_features)

    def _add_trace(self, most: int) -> None:
        """Add `Σ_p Σ_a ∂v_pa / ∂x_pa` to the trace, some points at a time.

        A cloud that is moved as a whole stays what it is: its points all move alike and no feature
        changes. That gives the tangents of the last point from the sum of those of the others,
        where those of every point have to be carried through a layer in full.
        """
        first, *middle, last = self.layers
        (n, d), F = self.shift.shape[1:], self.h.shape[2]
        by_parts = F >= WIDE
        in_full = middle[1:-1] if by_parts else middle
        others = n - 1 if in_full else n
        eye = torch.eye(d, dtype=self.shift.dtype, device=self.shift.device)
        rest = eye.unsqueeze(1), self.h.new_zeros(())
        for points in slices(others, most):
            every = slice(points.start, n) if points.stop == others else points
            da = self._distances(every)
            carried = None if da is None else da[..., : points.stop - points.start]
            entered = point_directions.enter(first, points)
            dx, dh = entered.dx, entered.dh
            if by_parts and len(middle) > 1:
                dx, dh = point_directions.push_entered(middle[0], points, entered, carried)
            for layer in in_full:
                flat = None if carried is None else carried.flatten(3)
                pushed = layer.push(dx.flatten(2, 3), dh.flatten(2, 3), flat)
                dx, dh = (part.unflatten(2, dx.shape[2:4]) for part in pushed)
            if others < n:
                rest = rest[0] - dx.sum(3, keepdim=True), rest[1] - dh.sum(3, keepdim=True)
            if every.stop > points.stop:
                points = every
                dx, dh = (torch.cat(parts, 3) for parts in zip((dx, dh), rest, strict=True))
            toward = last.difference[:, points]
            if by_parts and middle:
                args = middle[-1], points, toward, dx, dh, da
                gathered = point_directions.push_and_gather(*args)
            else:
                gathered = point_directions.gather(points, toward, dx, dh)
            self.trace += point_directions.trace_at(last, points, gathered, da)

    def _blocks(self, points: slice, by_features: Tensor) -> Tensor:
        """Derivatives of the `h` that comes out of P points by their own features, (B, P, K, F)."""
        first, *rest = self.layers
        dx, dh = feature_directions.enter(first, points, by_features)
        if not rest:
            return own_of(dh, points, 2)
        shape = dx.shape[2:4]
        dx, dh = dx.flatten(2, 3), dh.flatten(2, 3)
        for layer in rest[:-1]:
            dx, dh = layer.push(dx, dh, None)
        parts = (part.unflatten(2, shape) for part in (dx, dh))
        return feature_directions.leave(rest[-1], points, *parts)

    def _distances(self, points: slice) -> Tensor | None:
        """Tangents of all squared input distances along P points' coordinates: (B, n, n, d, P)."""
        if self.difference is None:
            return None
        n = self.difference.shape[1]
        one = torch.eye(n, dtype=self.shift.dtype, device=self.shift.device)[points]
        moves = (one.unsqueeze(1) - one.unsqueeze(2)).movedim(0, 2)  # of senders, of receivers
        return (2 * self.difference).unsqueeze(4) * moves.unsqueeze(2)


def _radial_trace(layer: Linearised) -> Tensor:
    """Divergence of `−Σ_s c(d²) D`, in closed form: `Σ_rs (d c + 2 d² c')`."""
    _, gc = layer.by_distance
    d2 = squared(layer.difference)
    return (layer.difference.shape[-1] * layer.c + 2 * d2 * gc).sum((1, 2))
