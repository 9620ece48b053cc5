"""Points put in an order that no one chose: permutation symmetry for a backbone that has none.

The permutations of `n` points are `n!`, so no average over them is ever taken. A pose of a frame
has coordinates that mean something, and points in the order of their types and coordinates are one
permutation that moves along with every other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqflow.geometry import Segments
from eqflow.geometry.frames.ties import classes, packed
from eqflow.geometry.representations import Representation
from eqflow.nn.averaging.features import Backbone, types_of
from eqflow.nn.averaging.inputs import require_callable
from eqflow.nn.averaging.outputs import checked_output


class OrderedPoints(nn.Module):
    """A backbone given the points of each cloud sorted by their features, then their coordinates.

    What comes back, a row a point, is put in the order of the caller; points that agree in
    everything share the mean of their rows. Coordinates that differ by rounding count as equal, so
    that a symmetric cloud is sorted alike in all of its poses. The order jumps where points change
    places in it: this serves networks, and not flows.

    Args:
        backbone: As in `FrameAverage`; it may depend on the order of the points.

    Example:
        >>> from eqflow.nn import FrameAverage
        >>> numbered = lambda x, ptr, h: x * torch.arange(1.0, len(x) + 1).unsqueeze(1)
        >>> model = FrameAverage(OrderedPoints(numbered), group="E(3)", frame="orbit")
        >>> x, order = torch.randn(4, 3), torch.tensor([2, 0, 3, 1])
        >>> ptr = torch.tensor([0, 4])
        >>> bool(torch.allclose(model(x[order], ptr), model(x, ptr)[order], atol=1e-5))
        True
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        require_callable(backbone, "OrderedPoints")
        self.backbone = backbone

    def forward(self, x: Tensor, ptr: Tensor | Segments, h: Tensor | None = None) -> Tensor:
        """The backbone's rows; arguments as in `FrameAverage`."""
        clouds = Segments.of(ptr)
        key = _places(x, clouds, h)
        order = torch.argsort(key, stable=True)
        values = self.backbone(x[order], clouds.ptr, None if h is None else h[order])
        kind = Representation("scalar")
        values = checked_output(values, clouds.rows, clouds.count, kind, "OrderedPoints")
        if values.shape[:1] != order.shape:
            return values
        own = torch.empty_like(order).index_put((order,), torch.arange(len(order)).to(order))
        return _shared(values[own], key)


@torch.no_grad()
def _places(x: Tensor, clouds: Segments, h: Tensor | None) -> Tensor:
    """Integers that sort points by cloud, features and coordinates; equal where all agree, (N,)."""
    if not clouds.rows:
        return clouds.ids
    x = x.detach().double()
    tolerance = torch.finfo(torch.float64).eps ** 0.4
    size = clouds.max(x.abs().amax(-1)).clamp(min=torch.finfo(x.dtype).tiny)
    scaled = x / clouds.expand(size).unsqueeze(-1)
    types = types_of(h, clouds)
    kinds = clouds.ids.new_zeros(clouds.rows) if types is None else types
    levels = [classes(column, clouds.ids, tolerance) for column in scaled.unbind(1)]
    return packed([clouds.ids, kinds, *levels])


def _shared(values: Tensor, key: Tensor) -> Tensor:
    """Rows (N, k), each replaced by the mean of those of its key."""
    _, kind, count = torch.unique(key, return_inverse=True, return_counts=True)
    if len(count) == len(key):
        return values
    order = torch.argsort(kind, stable=True)
    return Segments.of_lengths(count).mean(values[order])[kind]
