"""The one right-hand side, against the sums it stands for."""

import pytest
import torch
from graph_examples import dense, graphs, states
from tolerances import TOLERANCE
from torch.autograd import gradcheck, gradgradcheck

from eqflow.edges import Edges
from eqflow.errors import ShapeError
from eqflow.nn.diffusion import Coefficients

every_graph = pytest.mark.parametrize(("name", "edges"), list(graphs()), ids=lambda x: str(x))
CLOSE = TOLERANCE[torch.float64]
C, H = 3, 2


def all_parts(edges: Edges, heads: int = 0) -> Coefficients:
    weight = states(edges, 1, "unused").new_zeros(0)
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = drawn(edges.count, heads) if heads else drawn(edges.count)
    return Coefficients(
        edges,
        weight,
        gain=drawn(edges.nodes),
        mixing=drawn(max(heads, 1) * C, C),
        damping=drawn(C, C),
        source=drawn(edges.nodes, C),
    )


@every_graph
def test_velocity_is_the_sum_over_neighbours_node_by_node(name: str, edges: Edges) -> None:
    parts, x = all_parts(edges), states(edges, C, name)
    expected = torch.zeros_like(x)
    for i in range(edges.nodes):
        moved = parts.gain[i] * x[i]
        for e in range(edges.count):
            if int(edges.receiver[e]) == i:
                moved = moved + parts.weight[e] * (x[int(edges.sender[e])] - x[i])
        expected[i] = parts.mixing.t() @ moved - parts.damping.t() @ x[i] + parts.source[i]
    torch.testing.assert_close(parts.velocity(x), expected, rtol=CLOSE, atol=CLOSE)


@every_graph
def test_heads_stand_side_by_side_before_they_are_mixed(name: str, edges: Edges) -> None:
    parts, x = all_parts(edges, H), states(edges, C, name)
    blocks = parts.mixing.reshape(H, C, C)
    expected = parts.source - x @ parts.damping
    for h in range(H):
        a = dense(parts.weight[:, h], edges)
        expected = expected + (a @ x + (parts.gain - a.sum(1)).unsqueeze(1) * x) @ blocks[h]
    torch.testing.assert_close(parts.velocity(x), expected, rtol=CLOSE, atol=CLOSE)


def test_linear_part_is_linear_and_the_source_is_the_rest() -> None:
    edges = dict(graphs())["irregular"]
    parts = all_parts(edges)
    x, y = states(edges, C, "x"), states(edges, C, "y")
    torch.testing.assert_close(
        parts.linear(2 * x - 3 * y), 2 * parts.linear(x) - 3 * parts.linear(y)
    )
    torch.testing.assert_close(parts.velocity(x), parts.linear(x) + parts.source)


def test_a_diagonal_and_a_scalar_damp_as_the_matrices_they_stand_for() -> None:
    edges = dict(graphs())["ring"]
    x, weight = states(edges, C, "x"), torch.rand(edges.count, dtype=torch.float64)
    diagonal = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    for short, matrix in (
        (diagonal, torch.diag(diagonal)),
        (torch.tensor(0.7, dtype=torch.float64), 0.7 * torch.eye(C, dtype=torch.float64)),
    ):
        torch.testing.assert_close(
            Coefficients(edges, weight, damping=short).velocity(x),
            Coefficients(edges, weight, damping=matrix).velocity(x),
        )


def test_every_part_has_first_and_second_derivatives() -> None:
    edges = dict(graphs())["directed"]
    parts = all_parts(edges)
    names = ("weight", "gain", "mixing", "damping", "source")

    def velocity(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return Coefficients(edges, **dict(zip(names, values, strict=True))).velocity(x)

    inputs = [states(edges, C, "x"), *(getattr(parts, name) for name in names)]
    inputs = [value.clone().requires_grad_() for value in inputs]
    assert gradcheck(velocity, inputs)
    assert gradgradcheck(velocity, inputs)


def test_heads_that_nothing_mixes_are_refused() -> None:
    edges = dict(graphs())["ring"]
    with pytest.raises(ShapeError, match="mixing"):
        Coefficients(edges, torch.ones(edges.count, 2))
