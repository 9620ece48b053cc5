"""Message passes to compare the kernels on: graphs, networks, inputs and directions."""

import math

import torch
from loops import GRAPHS, Graph, complete
from torch import Tensor

from eqflow.edges import EdgeNetwork, Edges, Gate, MessageInputs, MessageTangents
from eqflow.edges.kernels.device import INTERPRETED

GRAPHS_TO_PASS = {
    **{name: GRAPHS[name] for name in ("no nodes", "no clouds", "no edges", "isolated")},
    **{name: GRAPHS[name] for name in ("repeated and loops", "unsorted clouds")},
    "ragged": complete(6, 1, 9, 0, 4),
    "one receiver of many": Graph([(k % 7, 2) for k in range(150)] + [(2, 6), (1, 0)], (7,)),
}

OPTIONS: dict[str, dict] = {
    "all": {},
    "no attention": {"attention": None},
    "no inference": {"inference": None},
    "unbounded": {"coordinate_range": None},
    "mean": {"stabilized": False},
    "plain": {
        "stabilized": False,
        "attention": None,
        "inference": None,
        "coordinate_range": None,
    },
}

# A device has kernels for float32 only.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float64 if INTERPRETED else torch.float32
CLOSE = {"rtol": 1e-11, "atol": 1e-11} if INTERPRETED else {"rtol": 1e-3, "atol": 1e-3}


def network(F: int, scalars: int, dtype: torch.dtype = DTYPE, **options) -> EdgeNetwork:
    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, dtype=torch.float64) / math.sqrt(F)).to(DEVICE, dtype)

    return EdgeNetwork(
        scalar_weight=draw(F, 1 + scalars),
        message_weight=draw(F, F),
        message_bias=draw(F),
        coordinate_weight=draw(F, F),
        coordinate_bias=draw(F),
        coordinate_out=draw(1, F),
        attention=Gate(draw(1, F), draw(1)),
        inference=Gate(draw(1, F), draw(1)),
        coordinate_range=1.5,
        stabilized=True,
    )._replace(**options)


def inputs(
    edges: Edges,
    F: int,
    scalars: int = 1,
    dimension: int = 3,
    with_envelope: bool = True,
    dtype: torch.dtype = DTYPE,
) -> MessageInputs:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype)

    return MessageInputs(
        draw(edges.nodes, dimension),
        draw(edges.nodes, F),
        draw(edges.nodes, F),
        draw(edges.count, scalars) if scalars else None,
        draw(edges.count).sigmoid() if with_envelope else None,
    )


def directions(primal: MessageInputs, count: int, *without: str) -> MessageTangents:
    moved = {
        name: None
        if value is None or name in without
        else torch.randn(value.shape[0], count, *value.shape[1:]).to(value)
        for name, value in primal._asdict().items()
    }
    return MessageTangents(**moved)


def given(*parts) -> list[Tensor]:
    """The tensors there are."""
    return [value for value in parts if value is not None]
