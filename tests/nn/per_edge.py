"""The E(n)-equivariant convolution from its formulas, an edge at a time, each MLP on what it reads.

It shares the parameters of an `EGCL` and nothing else: no primitives, no factoring, no batches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from eqflow.edges import Edges
from eqflow.nn import EGCL, EGNN


def convolve(
    layer: EGCL,
    x: Tensor,
    h: Tensor,
    edges: Edges,
    a: Tensor | None = None,
    velocity: Tensor | None = None,
    cutoff: tuple[float, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Formulas 3 to 8 of EGNN and 9 to 12 of E-NF; `cutoff` is its range and who it is between."""
    first = torch.cat([layer.receiver.weight, layer.sender.weight, layer.scalars.weight], 1)
    pairs = list(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))
    shift = x.new_zeros(x.shape)
    gathered = h.new_zeros(x.shape[0], layer.message.out_features)
    for e, (j, i) in enumerate(pairs):
        d2 = (x[i] - x[j]).square().sum()
        d = torch.sqrt(d2 + 1e-8)
        read = [h[i], h[j], d2.reshape(1)] + ([] if a is None else [a[e]])
        m = silu(layer.message(silu(first @ torch.cat(read) + layer.receiver.bias)))
        if layer.attention is not None:
            m = torch.sigmoid(layer.attention(m)) * m
        phi = layer.coordinate_out(silu(layer.coordinate(m)))
        if layer.coordinate_range is not None:
            phi = layer.coordinate_range * torch.tanh(phi)
        count = sum(receiver == i for _, receiver in pairs)
        weight = phi / (d + 1) if layer.stabilized else phi / count
        if layer.inference is not None:
            m = torch.sigmoid(layer.inference(m)) * m
        if cutoff is not None:
            r, origin = cutoff
            u = torch.sqrt((origin[i] - origin[j]).square().sum() + 1e-8) / r
            s = 1 - 10 * u**3 + 15 * u**4 - 6 * u**5 if u < 1 else torch.zeros_like(u)
            weight, m = s * weight, s * m
        shift = shift.index_add(0, torch.tensor([i]), (weight * (x[i] - x[j])).unsqueeze(0))
        gathered = gathered.index_add(0, torch.tensor([i]), m.unsqueeze(0))
    if layer.velocity_scale is not None:
        velocity = layer.velocity_scale(h) * velocity + shift
        x = x + velocity
    else:
        x = x + shift
    if layer.feature_update is not None:
        h = h + layer.feature_update(torch.cat([h, gathered], 1))
    return (x, h) if velocity is None else (x, h, velocity)


def stack(
    egnn: EGNN,
    x: Tensor,
    h: Tensor,
    edges: Edges,
    a: Tensor | None = None,
    velocity: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Layer after layer; distances at the input are attributes, and those the cutoff is of."""
    origin = x
    if egnn.input_distance:
        d2 = (origin[edges.receiver] - origin[edges.sender]).square().sum(1, keepdim=True)
        columns = [d2]
        if egnn.radial:
            w = 4 / (egnn.radial - 1)
            columns += [
                torch.exp(-(((d2 + 1e-8).sqrt() / w - k) ** 2) / 2) for k in range(egnn.radial)
            ]
        a = torch.cat(columns if a is None else [a, *columns], 1)
    cutoff = None if egnn.cutoff is None else (egnn.cutoff, origin)
    h = egnn.embed(h)
    moved: list[Tensor] = []
    for layer in egnn.layers:
        x, h, *moved = convolve(layer, x, h, edges, a, velocity, cutoff)
    return (x, egnn.readout(h), *moved)


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """The module in float64, its last layers as large as the others: as if it had been trained."""
    for layer in module.modules():
        if isinstance(layer, EGCL):
            torch.nn.init.normal_(layer.coordinate_out.weight, std=0.5)
    return module.double()
