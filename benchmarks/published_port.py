"""A direct port of the published flow's field and objective, written from its formulas.

Per-edge concatenation `[h_i, h_j, d², d₀²]`, one index_add a reduction, torchdiffeq's adjoint with
its default norm, one probe: what eqflow is compared to. The published code also makes its edge
lists anew at each evaluation; here they are given, so that only the method is compared. Its weights
can be copied from an `EGNNField`, so that both compute the same function.

Reference: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from eqflow.edges import Edges
from eqflow.geometry import Segments, centred
from eqflow.nn import EGCL, EGNNField


class PublishedLayer(nn.Module):
    """One stabilized convolution with attention and bounded coordinate weights."""

    def __init__(self, width: int, bound: float) -> None:
        super().__init__()
        self.edge = nn.Sequential(
            nn.Linear(2 * width + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.attention = nn.Linear(width, 1)
        self.coordinate = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False)
        )
        self.node = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.bound = bound

    def forward(
        self, x: Tensor, h: Tensor, row: Tensor, col: Tensor, d0: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Positions and features after the layer."""
        difference = x[row] - x[col]
        d2 = difference.square().sum(-1, keepdim=True)
        m = self.edge(torch.cat([h[row], h[col], d2, d0], -1))
        m = m * torch.sigmoid(self.attention(m))
        weight = torch.tanh(self.coordinate(m)) * self.bound
        shift = difference / ((d2 + 1e-8).sqrt() + 1) * weight
        x = x + torch.zeros_like(x).index_add_(0, row, shift)
        message = torch.zeros_like(h).index_add_(0, row, m)
        return x, h + self.node(torch.cat([h, message], -1))

    def copy_from(self, layer: EGCL) -> None:
        """Take the weights of an eqflow layer; an unused feature update stays random."""
        with torch.no_grad():
            self.edge[0].weight.copy_(
                torch.cat([layer.receiver.weight, layer.sender.weight, layer.scalars.weight], 1)
            )
            self.edge[0].bias.copy_(layer.receiver.bias)
        self.edge[2].load_state_dict(layer.message.state_dict())
        self.attention.load_state_dict(layer.attention.state_dict())
        self.coordinate[0].load_state_dict(layer.coordinate.state_dict())
        self.coordinate[2].load_state_dict(layer.coordinate_out.state_dict())
        if layer.feature_update is not None:
            self.node.load_state_dict(layer.feature_update.state_dict())


class PublishedField(nn.Module):
    """The velocity of packed clouds, on edges given from outside."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.layers = nn.ModuleList(PublishedLayer(width, 15 / layers) for _ in range(layers))

    def forward(self, t: Tensor, x: Tensor, row: Tensor, col: Tensor, clouds: Segments) -> Tensor:
        """Velocity, (N, d)."""
        d0 = (x[row] - x[col]).square().sum(-1, keepdim=True)
        h = self.embed(x.new_ones(len(x), 1) * t)
        y = x
        for layer in self.layers:
            y, h = layer(y, h, row, col, d0)
        return centred(y - x, clouds)

    def copy_from(self, field: EGNNField) -> None:
        """Take the weights of an eqflow field of the same shape."""
        self.embed.load_state_dict(field.egnn.embed.state_dict())
        for mine, theirs in zip(self.layers, field.egnn.layers, strict=True):
            mine.copy_from(theirs)


class PublishedDynamics(nn.Module):
    """State and log-density together, one fixed probe."""

    def __init__(self, field: PublishedField, probe: Tensor, edges: Edges) -> None:
        super().__init__()
        self.field, self.probe = field, probe
        self.graph = edges.receiver, edges.sender, edges.clouds
        self.evaluations = 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivative of both."""
        self.evaluations += 1
        with torch.enable_grad():
            x = state[0].requires_grad_(True)
            v = self.field(t, x, *self.graph)
            (row,) = torch.autograd.grad(v, x, self.probe, create_graph=True)
        return v, self.graph[2].sum((row * self.probe).sum(-1, keepdim=True))


def published_loss(
    field: PublishedField, x: Tensor, probe: Tensor, edges: Edges, tolerance: float
) -> tuple[Tensor, PublishedDynamics]:
    """Mean negative log-likelihood of centred clouds, as published: dopri5, adjoint."""
    dynamics = PublishedDynamics(field, probe, edges)
    times = torch.tensor([0.0, 1.0], dtype=x.dtype)
    z, trace = odeint_adjoint(
        dynamics,
        (x, x.new_zeros(edges.clouds.count, 1)),
        times,
        rtol=tolerance,
        atol=tolerance,
        method="dopri5",
    )
    freedom = (edges.clouds.lengths - 1) * x.shape[1]
    base = -0.5 * edges.clouds.sum(z[-1].square().sum(-1)) - 0.5 * freedom * math.log(2 * math.pi)
    return -(base + trace[-1].squeeze(-1)).mean(), dynamics
