r"""The exact divergence of an equivariant graph network on complete graphs, without autograd.

`tr ∂v/∂x` needs the derivative along each coordinate of each point. Carried forward by hand through
the linearised layers these directions are cheaper than a generic method can make them:

- In the first layer positions enter through `d²` alone: `∂m_ij/∂d_ij²` of each pair, computed
  once, serves all directions.
- In the last layer the direction of point `p` is only asked for its effect on `p`, a product of two
  vectors for each of its `n − 1` incoming edges.
- In between the derivative of all messages of a cloud is one matrix, built once.

So a network of one layer has a divergence in closed form, one of two layers costs a few
evaluations, and each further layer one product of an `n F` square matrix with `n d` columns. Clouds
of one size are stacked, and taken in groups that stay in a processor's cache. Nothing here can be
differentiated; training on a trace goes through `pushforward` or autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqflow.geometry import Segments
from eqflow.nn.egcl import EGCL
from eqflow.nn.egnn import EGNN
from eqflow.nn.linearised import Linearised, differences, squared

# Numbers in the largest temporary: what a core's cache holds, and what a GPU can spare.
CPU_BUDGET = 2**19
GPU_BUDGET = 2**27


@torch.no_grad()
def shift_and_trace(egnn: EGNN, x: Tensor, h: Tensor, clouds: Segments) -> tuple[Tensor, Tensor]:
    """`x^L − x` of a position network on complete graphs, and its exact divergence.

    Args:
        egnn: One that `is_linearisable`.
        x: Positions, shape (N, d).
        h: Node features, shape (N, features).
        clouds: Nodes of each cloud.

    Returns:
        Shapes (N, d) and (B,).
    """
    with torch.autocast(x.device.type, enabled=False):
        return _by_size(egnn, x, egnn.embed(h), clouds)


def _by_size(egnn: EGNN, x: Tensor, h: Tensor, clouds: Segments) -> tuple[Tensor, Tensor]:
    shift = torch.zeros_like(x)
    trace = x.new_zeros(clouds.count)
    budget = GPU_BUDGET if x.is_cuda else CPU_BUDGET
    for size in clouds.lengths.unique().tolist():
        if size < 2:
            continue
        numbers = size * size * x.shape[1] * h.shape[1]
        alike = (clouds.lengths == size).nonzero().squeeze(1)
        for group in alike.split(max(budget // numbers, 1)):
            rows = clouds.ptr[group].unsqueeze(1) + torch.arange(size, device=x.device)
            points = min(max(budget // (size * x.shape[1] * h.shape[1] * len(group)), 1), size)
            found = _Group(egnn, x[rows], h[rows], points, budget)
            shift[rows] = found.shift
            trace[group] = found.trace
    return shift, trace


def is_linearisable(egnn: EGNN) -> bool:
    """Whether a network is of the kind that `shift_and_trace` knows the derivative of."""
    return (
        egnn.is_as_made
        and egnn.cutoff is None
        and egnn.edge_features == 0
        and isinstance(egnn.layers, nn.ModuleList)
        and all(
            type(layer) is EGCL
            and layer.velocity_scale is None
            and layer.inference is None
            and (layer.feature_update is None) == (k == len(egnn.layers) - 1)
            and (
                layer.feature_update is None
                or [type(part) for part in layer.feature_update] == [nn.Linear, nn.SiLU, nn.Linear]
            )
            for k, layer in enumerate(egnn.layers)
        )
    )


class _Group:
    """Clouds of one size `n`, (B, n, d), whose directions are carried `points · d` at a time."""

    def __init__(self, egnn: EGNN, x: Tensor, h: Tensor, points: int, budget: int) -> None:
        start = x
        a = squared(differences(x)) if egnn.input_distance else None
        self.layers = []
        for layer in egnn.layers:
            linearised = Linearised.of(layer, x, h, a)
            x, h = linearised.x, linearised.h
            self.layers.append(linearised)
        self.shift = x - start
        first, *_ = self.layers
        if len(self.layers) == 1:
            self.trace = _radial_trace(first)
            return
        self.difference = first.difference if egnn.input_distance else None
        self.budget = budget
        self.trace = x.new_zeros(len(x))
        for chunk in torch.arange(x.shape[1], device=x.device).split(points):
            self.trace += self._trace_of(chunk)

    def _trace_of(self, points: Tensor) -> Tensor:
        """`Σ_p Σ_a ∂v_pa / ∂x_pa` over some points of each cloud, shape (B,)."""
        first, *middle, last = self.layers
        da = None if self.difference is None else _distance_tangents(self.difference, points)
        dx, dh = first.push_points(points)
        for layer in middle:
            dx, dh = layer.push(dx, dh, da, self.budget)
        return last.trace_at(points, dx, dh, da)


def _radial_trace(layer: Linearised) -> Tensor:
    """Divergence of `−Σ_s c(d²) D`, in closed form: `Σ_rs (d c + 2 d² c')`."""
    _, gc = layer.by_distance
    d2 = squared(layer.difference)
    return (layer.difference.shape[-1] * layer.c + 2 * d2 * gc).sum((1, 2))


def _distance_tangents(difference: Tensor, points: Tensor) -> Tensor:
    """Tangents of all `d²` along the coordinates of some points, (B, n, n, S)."""
    B, n, _, d = difference.shape
    P = len(points)
    da = difference.new_zeros(B, n, n, P, d)
    along = torch.arange(P, device=points.device)
    da[:, :, points, along] = 2 * difference[:, :, points]
    da[:, points, :, along] = -2 * difference[:, points].transpose(0, 1)
    return da.reshape(B, n, n, P * d)
