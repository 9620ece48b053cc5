"""The published field on a device: on given edges, and in its published form, padded.

Padded, every cloud has as many points as the largest, and every pair of them an edge, a point with
itself too; what is not there is multiplied by zero after it was computed.

Reference: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from published_port import PublishedField, PublishedLayer
from torch import Tensor

from eqflow.geometry import Segments, centred


@dataclass(frozen=True)
class Padding:
    """A ragged batch as a padded one.

    Attributes:
        clouds: The ragged batch.
        row, col: All pairs of points, shape (B n²,).
        edge_mask, node_mask: 1 for what is there, shapes (B n², 1) and (B n, 1).
    """

    clouds: Segments
    row: Tensor
    col: Tensor
    edge_mask: Tensor
    node_mask: Tensor

    @classmethod
    def of(cls, clouds: Segments) -> Padding:
        """The masks and pairs of a batch."""
        there = clouds.to_dense(torch.ones(clouds.rows, device=clouds.ptr.device))
        count, n = there.shape
        node = torch.arange(count * n, device=there.device).reshape(count, n)
        row = node.unsqueeze(2).expand(count, n, n)
        col = node.unsqueeze(1).expand(count, n, n)
        both = there.unsqueeze(2) * there.unsqueeze(1) * (row != col)
        return cls(
            clouds,
            row.reshape(-1),
            col.reshape(-1),
            both.reshape(-1, 1),
            there.reshape(-1, 1),
        )


def velocity_on_edges(
    field: PublishedField, t: Tensor, x: Tensor, row: Tensor, col: Tensor, clouds: Segments
) -> Tensor:
    """Velocity (N, d) of packed clouds on given edges, on the device of `x`."""
    with torch.device(x.device):
        return field(t, x, row, col, clouds)


def velocity_padded(field: PublishedField, t: Tensor, x: Tensor, padding: Padding) -> Tensor:
    """Velocity (N, d) of packed clouds by way of the padded batch."""
    clouds, row, col = padding.clouds, padding.row, padding.col
    start = clouds.to_dense(x).reshape(-1, x.shape[1])
    d0 = (start[row] - start[col]).square().sum(-1, keepdim=True)
    h = field.embed(t.expand(len(start), 1)) * padding.node_mask
    y = start
    for layer in field.layers:
        y, h = _masked(cast(PublishedLayer, layer), y, h, d0, padding)
    moved = (y - start).reshape(clouds.count, -1, x.shape[1])
    return centred(clouds.from_dense(moved), clouds)


def _masked(
    layer: PublishedLayer, x: Tensor, h: Tensor, d0: Tensor, padding: Padding
) -> tuple[Tensor, Tensor]:
    """As the layer itself, with messages and nodes masked."""
    row, col = padding.row, padding.col
    difference = x[row] - x[col]
    d2 = difference.square().sum(-1, keepdim=True)
    m = layer.edge(torch.cat([h[row], h[col], d2, d0], -1))
    m = m * torch.sigmoid(layer.attention(m)) * padding.edge_mask
    weight = torch.tanh(layer.coordinate(m)) * layer.bound
    shift = difference / ((d2 + 1e-8).sqrt() + 1) * weight * padding.edge_mask
    x = (x + torch.zeros_like(x).index_add_(0, row, shift)) * padding.node_mask
    message = torch.zeros_like(h).index_add_(0, row, m)
    return x, (h + layer.node(torch.cat([h, message], -1))) * padding.node_mask
