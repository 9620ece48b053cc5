r"""The exact divergence of an equivariant graph network on complete graphs, without autograd.

`tr ∂v/∂x` needs the derivative along each coordinate of each point. Carried forward by hand through
the linearised layers these directions are cheaper than a generic method can make them:

- In the first layer positions enter through `d²` alone: `∂m_ij/∂d_ij²` of each pair, computed
  once, serves all directions.
- In the last layer the direction of point `p` is only asked for its effect on `p`, a product of two
  vectors for each of its `n − 1` incoming edges.
- In between the derivative of all messages of a cloud is one matrix, built once.

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
from torch.nn.functional import pad

from eqflow.edges.products import product
from eqflow.edges.watched import is_watched
from eqflow.geometry import Segments
from eqflow.nn.egcl import EGCL
from eqflow.nn.egnn import EGNN
from eqflow.nn.linearised import Linearised, differences, own_of, squared

# Numbers in the largest temporary: what a core's cache holds, and what a GPU can spare.
CPU_BUDGET = 2**19
GPU_BUDGET = 2**27


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
                points = min(max(budget // (numbers * len(here)), 1), size)
                part = _Group(egnn, here, features, inputs, points)
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
        for group in _slices(clouds.count, most):
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
    """Clouds of one size `n`, (B, n, d), whose directions are carried some `points` at a time.

    Attributes:
        shift, h: What comes out, (B, n, d) and (B, n, F).
        trace: That of the shift, (B,).
        blocks: Derivatives of `h` by the K features of the same node, (B, n, K, F).
    """

    def __init__(self, egnn: EGNN, x: Tensor, h: Tensor, inputs: int, points: int) -> None:
        B, n, _ = x.shape
        start = x
        a = egnn.distance_attributes(squared(differences(x))) if egnn.input_distance else None
        others = 1 - torch.eye(n, dtype=x.dtype, device=x.device)
        self.layers = []
        for layer in egnn.layers:
            linearised = Linearised.of(layer, x, h, a, others)
            x, h = linearised.x, linearised.h
            self.layers.append(linearised)
        self.shift, self.h = x - start, h
        self.blocks = h.new_zeros(B, n, inputs, h.shape[2])
        self.inputs = egnn.embed.weight[:, :inputs].t().contiguous()  # (K, F)
        first, *rest = self.layers
        self.difference = first.difference if egnn.input_distance else None
        self.trace = x.new_zeros(B) if rest else _radial_trace(first)
        if not rest and not inputs:
            return
        if not rest:
            for chunk in _slices(n, points):
                self.blocks[:, chunk] = own_of(first.push_features(chunk, self.inputs)[1], chunk)
        elif inputs:
            for chunk in _slices(n, points):
                self._trace_blocks(chunk, *self._carry(chunk))
        else:
            self._trace_all(n, points)

    def _trace_all(self, n: int, size: int) -> None:
        """Add `Σ_p Σ_a ∂v_pa / ∂x_pa` to the trace, some points at a time.

        A cloud that is moved as a whole stays what it is: its points all move alike and no feature
        changes. That gives the tangents of the last point from the sum of those of the others.
        """
        d, last = self.shift.shape[2], self.layers[-1]
        rest = torch.eye(d, dtype=self.shift.dtype, device=self.shift.device), self.h.new_zeros(())
        for points in _slices(n - 1, size):
            dx, dh, da = self._carry(points)
            rest = rest[0] - dx.sum(2, keepdim=True), rest[1] - dh.sum(2, keepdim=True)
            if points.stop == n - 1:
                points = slice(points.start, n)
                dx, dh = torch.cat([dx, rest[0]], 2), torch.cat([dh, rest[1]], 2)
                da = self._distances(points)
            self.trace += last.trace_at(points, dx, dh, da)

    def _trace_blocks(self, points: slice, dx: Tensor, dh: Tensor, da: Tensor | None) -> None:
        """Add to the trace the coordinates of some points, and find their blocks."""
        d, last = self.shift.shape[2], self.layers[-1]
        own = None if da is None else da[..., :d]
        self.trace += last.trace_at(points, dx[..., :d, :], dh[..., :d, :], own)
        self.blocks[:, points] = last.features_at(points, dx[..., d:, :], dh[..., d:, :])

    def _carry(self, points: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the last layer is given along the coordinates, then the features of P points.

        Returns:
            Tangents of positions (B, n, P, d + K, d), features (B, n, P, d + K, F) and squared
            input distances (B, n, n, P, d + K).
        """
        first, *middle, _ = self.layers
        shape = points.stop - points.start, self.shift.shape[2] + len(self.inputs)
        da = self._distances(points)
        dx, dh = first.push_points(points)
        if len(self.inputs):
            by_features = first.push_features(points, self.inputs)
            dx, dh = (torch.cat(parts, 3) for parts in zip((dx, dh), by_features, strict=True))
        dx, dh = dx.flatten(2, 3), dh.flatten(2, 3)
        for layer in middle:
            dx, dh = layer.push(dx, dh, None if da is None else da.flatten(3))
        return dx.unflatten(2, shape), dh.unflatten(2, shape), da

    def _distances(self, points: slice) -> Tensor | None:
        """Tangents of all squared input distances along P points: (B, n, n, P, d + K).

        Of a point's directions only the first d change a distance.
        """
        if self.difference is None:
            return None
        n = self.difference.shape[1]
        one = torch.eye(n, dtype=self.shift.dtype, device=self.shift.device)[points]
        moves = (one.unsqueeze(1) - one.unsqueeze(2)).movedim(0, 2)  # of senders, of receivers
        da = (2 * self.difference).unsqueeze(3) * moves.unsqueeze(3)
        return pad(da, (0, len(self.inputs)))


def _radial_trace(layer: Linearised) -> Tensor:
    """Divergence of `−Σ_s c(d²) D`, in closed form: `Σ_rs (d c + 2 d² c')`."""
    _, gc = layer.by_distance
    d2 = squared(layer.difference)
    return (layer.difference.shape[-1] * layer.c + 2 * d2 * gc).sum((1, 2))


def _slices(count: int, size: int) -> Iterator[slice]:
    """Of `count` rows, at most `size` together."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
