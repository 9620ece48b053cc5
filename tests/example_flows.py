"""Fields and flows that tests of several modules try things on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.flows import Compositions, ContinuousFlow, Flow, Solver
from eqflow.geometry import Segments, centred
from eqflow.nn import AbstractField, EGNNField

TIGHT = Solver(rtol=1e-9, atol=1e-9)
ELEMENTS = (1, 2, 6, 7, 8, 9, 16, 18)  # all that eqflow.testing.clouds() holds


class FunctionField(AbstractField):
    """The field `fn(t, x, clouds)`, on complete graphs."""

    def __init__(self, fn: Callable[[Tensor, Tensor, Segments], Tensor]) -> None:
        super().__init__()
        self.fn = fn
        self.unit = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        return self.unit * self.fn(t, x, edges.clouds)


class LinearField(AbstractField):
    """`v = a x` on centred positions: everything about its flow is known."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        return self.rate * centred(x, edges.clouds)


def enlarged_field(
    context_features: int = 0, width: int = 8, layers: int = 2, gain: float = 300.0
) -> EGNNField:
    """An untrained EGNN that moves points by about their distances, in float64."""
    field = EGNNField(context_features, width, layers, time_frequencies=1).double()
    with torch.no_grad():
        for layer in field.egnn.layers:
            layer.coordinate_out.weight.mul_(gain)
    return field


def flow_of(
    field: AbstractField,
    dimension: int,
    scale: float = 1.0,
    sizes: Sequence[int] = (3,),
    solver: Solver = TIGHT,
) -> Flow:
    """A flow without elements, whose structures have any of `sizes` with equal frequency."""
    counts = torch.tensor(list(sizes)).unsqueeze(1)
    make_up = Compositions((), counts, torch.ones(len(sizes), dtype=torch.int64))
    return Flow(ContinuousFlow(field), dimension, scale, make_up, solver)


def element_flow(solver: Solver = TIGHT, scale: float = 1.3) -> Flow:
    """A flow in 3 dimensions conditioned on every element of `eqflow.testing.clouds()`."""
    counts = torch.zeros(2, len(ELEMENTS), dtype=torch.int64)
    counts[0, :3] = torch.tensor([2, 0, 1])
    counts[1, [0, 4]] = torch.tensor([2, 1])
    make_up = Compositions(ELEMENTS, counts, torch.tensor([1, 3]))
    field = enlarged_field(context_features=len(ELEMENTS), gain=100.0)
    return Flow(ContinuousFlow(field), 3, scale, make_up, solver)


def ragged(dimension: int = 3, sizes: Sequence[int] = (4, 1, 3, 2), seed: int = 0) -> tuple:
    """Centred normal positions of clouds of the given sizes, and their segments."""
    segments = Segments.of_lengths(torch.tensor(list(sizes)))
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(segments.rows, dimension, dtype=torch.float64, generator=source)
    return centred(x, segments), segments


def subspace_basis(points: int, dimension: int) -> Tensor:
    """Orthonormal basis of centred clouds, shape ((n − 1) d, n, d)."""
    ones = torch.ones(points, 1, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.cat([ones, torch.eye(points, dtype=torch.float64)[:, 1:]], 1))
    within = q[:, 1:]
    axes = torch.eye(dimension, dtype=torch.float64)
    return torch.einsum("nk,ad->kand", within, axes).reshape(-1, points, dimension)
