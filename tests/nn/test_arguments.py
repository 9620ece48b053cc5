"""What is no width, no graph, or of another type than the weights, is refused and named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.nn import GradientGating, GraphConvolution, ResidualGraphConvolution
from eqflow.nn.diffusion import BLEND, GRAFF, GRAND, MessagePassing, Onsager, SymmetricMatrix
from eqflow.nn.diffusion.table import cgnn, chebnet, deepset, dgcnn, digl, gat, monet, transformer

EDGES = Edges.from_index(torch.tensor([[0, 1], [1, 0]]), 2)
TIME = torch.zeros(())

OF_A_WIDTH: dict[str, Callable[[Any], object]] = {
    "GRAFF": GRAFF,
    "GRAND": GRAND,
    "BLEND, positions": lambda width: BLEND(width, 4),
    "BLEND, features": lambda width: BLEND(2, width),
    "Onsager": Onsager,
    "SymmetricMatrix": SymmetricMatrix,
    "MessagePassing": MessagePassing,
    "GraphConvolution": lambda width: GraphConvolution(width, 3),
    "ResidualGraphConvolution": ResidualGraphConvolution,
    "GRAFF, steps": lambda steps: GRAFF(4, steps=steps),
    "GRAND, heads": lambda heads: GRAND(4, heads=heads),
    "GRAND, attention": lambda width: GRAND(4, attention_width=width),
    "GRAND, distance": lambda heads: GRAND(4, heads=heads, diffusivity="distance"),
    "GRAND, Gaussians": lambda heads: GRAND(4, heads=heads, diffusivity="gaussian_mixture"),
    "chebnet": chebnet,
    "gat": gat,
    "monet": monet,
    "transformer": transformer,
    "deepset": deepset,
    "digl": digl,
    "dgcnn": dgcnn,
    "cgnn": cgnn,
}
FIELDS: dict[str, Callable[[], nn.Module]] = {
    "GRAFF": lambda: GRAFF(4),
    "GRAND": lambda: GRAND(4),
    "BLEND": lambda: BLEND(2, 2),
    "Onsager": lambda: Onsager(4),
    "MessagePassing": lambda: MessagePassing(4),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "GraphConvolution": lambda: GraphConvolution(4, 4),
    "residual": lambda: ResidualGraphConvolution(4),
    "gated": lambda: GradientGating(GraphConvolution(4, 4)),
}


@pytest.mark.parametrize("kind", OF_A_WIDTH)
@pytest.mark.parametrize("width", [0, -3, 2.5, "4", True])
def test_a_width_that_is_no_whole_number_from_1_is_named(kind: str, width: Any) -> None:
    with pytest.raises(UsageError, match=f"={width!r}, expected whole numbers, each at least 1"):
        OF_A_WIDTH[kind](width)


def test_a_time_that_is_none_is_named() -> None:
    with pytest.raises(UsageError, match="GRAFF: found time=0"):
        GRAFF(4, time=0)


@pytest.mark.parametrize("kind", [*FIELDS, *LAYERS])
def test_a_state_of_another_type_or_an_edge_index_is_named(kind: str) -> None:
    module = (FIELDS | LAYERS)[kind]()
    x = torch.ones(2, 4)

    def call(x: Any, edges: Any) -> Any:
        return module(TIME.to(x), x, edges, x) if kind in FIELDS else module(x, edges)

    assert call(x, EDGES).shape == (2, 4)
    with pytest.raises(ShapeError, match=r"x of torch\.float64 .* expected torch\.float32"):
        call(x.double(), EDGES)
    with pytest.raises(UsageError, match="edges of type Tensor, expected Edges"):
        call(x, torch.tensor([[0, 1], [1, 0]]))
    module.double()
    assert call(x.double(), EDGES).dtype is torch.float64


def test_autocast_may_give_layers_other_types_than_their_weights() -> None:
    layer = GraphConvolution(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(layer(torch.ones(2, 4, dtype=torch.bfloat16), EDGES).isfinite().all())
