"""GDE: equal to PyG's convolution and to residual GCN, and solved like every other velocity."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from graph_examples import dense, graphs, states
from scipy.integrate import solve_ivp
from tolerances import TOLERANCE

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.flows import Solver
from eqflow.flows.graph_diffusion import diffuse
from eqflow.nn.diffusion import GDE
from eqflow.nn.graph_convolution import ResidualGraphConvolution

CLOSE = TOLERANCE[torch.float64]
C = 4
START = torch.zeros((), dtype=torch.float64)


def close(found: torch.Tensor, expected: torch.Tensor, by: float = CLOSE) -> None:
    torch.testing.assert_close(found, expected, rtol=by, atol=by)


def field_on(edges: Edges, layers: int = 1) -> tuple[GDE, torch.Tensor]:
    torch.manual_seed(0)
    field = GDE(C, layers).double()
    for convolution in field.convolutions:
        torch.nn.init.normal_(convolution.bias)
    return field, states(edges, C, "gde")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", [name for name, _ in graphs()])
def test_a_velocity_is_pygs_convolutions_with_an_activation_each(name: str, layers: int) -> None:
    edges = dict(graphs())[name]
    field, x = field_on(edges, layers)
    expected = x
    for convolution in field.convolutions:
        reference = pyg.GCNConv(C, C).double()
        with torch.no_grad():
            reference.lin.weight.copy_(convolution.weight.t())
            reference.bias.copy_(convolution.bias)
        expected = reference(expected, torch.stack([edges.sender, edges.receiver])).tanh()
    close(field(START, x, edges), expected)


def test_a_step_of_euler_is_residual_gcn() -> None:
    for _, edges in graphs():
        field, x = field_on(edges)
        layer = ResidualGraphConvolution(C, activation=torch.tanh).double()
        layer.convolution.load_state_dict(field.convolutions[0].state_dict())
        there = diffuse(field, x, edges, 1.0, Solver("euler", steps=1)).final()
        close(there, layer(x, edges))


def test_a_source_is_learned_from_nothing_and_is_a_part_of_the_start() -> None:
    edges = dict(graphs())["irregular"]
    field, x = field_on(edges)
    driven = GDE(C, source=True).double()
    driven.load_state_dict(field.state_dict(), strict=False)
    start = states(edges, C, "start")
    close(driven(START, x, edges, start), field(START, x, edges))
    torch.nn.init.constant_(driven.beta, 0.3)
    close(driven(START, x, edges, start), field(START, x, edges) + 0.3 * start)
    solver = Solver("euler", steps=2)
    middle = x + 0.5 * driven(START, x, edges, x)
    expected = middle + 0.5 * driven(START, middle, edges, x)
    close(diffuse(driven, x, edges, 1.0, solver).final(), expected)
    with pytest.raises(ShapeError, match="GDE: found context None"):
        driven(START, x, edges)


def test_it_is_solved_as_scipy_solves_the_dense_equation() -> None:
    edges = dict(graphs())["irregular"]
    field, x = field_on(edges)
    a = dense(torch.ones(edges.count, dtype=torch.float64), edges) + torch.eye(edges.nodes)
    root = a.sum(1).rsqrt()
    smooth = (root.unsqueeze(1) * a * root).numpy()
    weight = field.convolutions[0].weight.detach().numpy()
    bias = field.convolutions[0].bias.detach().numpy()

    def rate(_: float, y: object) -> object:
        return torch.tensor(smooth @ y.reshape(x.shape) @ weight + bias).tanh().numpy().ravel()  # type: ignore[attr-defined]

    known = solve_ivp(rate, (0, 2), x.numpy().ravel(), rtol=1e-11, atol=1e-11).y[:, -1]
    solver = Solver("dopri5", rtol=1e-9, atol=1e-9)
    there = diffuse(field, x, edges, 2.0, solver).final().detach()
    close(there, torch.from_numpy(known).reshape(x.shape), 1e-7)


def test_nodes_may_come_in_any_order_and_graphs_do_not_see_each_other() -> None:
    edges = dict(graphs())["two graphs"]
    field, x = field_on(edges)
    order = torch.tensor([2, 0, 1, 6, 4, 5, 3])
    index = torch.stack([edges.sender, edges.receiver])
    turned = Edges.from_index(order.argsort()[index], edges.nodes, edges.clouds.ptr)
    close(field(START, x[order], turned), field(START, x, edges)[order])
    other = x.clone()
    other[3:] += 1
    assert torch.equal(field(START, other, edges)[:3], field(START, x, edges)[:3])


def test_its_gradients_are_right_to_second_order() -> None:
    edges = dict(graphs())["irregular"]
    field, x = field_on(edges, 2)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda y: field(START, y, edges), x)
    assert torch.autograd.gradgradcheck(lambda y: field(START, y, edges), x)


def test_what_makes_no_sense_is_refused() -> None:
    edges = dict(graphs())["ring"]
    with pytest.raises(UsageError, match="layers=0"):
        GDE(C, 0)
    with pytest.raises(UsageError, match="found an activation of type str"):
        GDE(C, activation="tanh")  # type: ignore[arg-type]
    field, x = field_on(edges)
    with pytest.raises(ShapeError, match=r"expected \(N, 4\)"):
        field(START, x[:, :3], edges)
    with pytest.raises(ShapeError, match="float32"):
        field(START, x.float(), edges)
    with pytest.raises(UsageError, match="found edges of type Tensor"):
        field(START, x, torch.stack([edges.sender, edges.receiver]))
    with pytest.raises(UsageError, match="exponential"):
        diffuse(field, x, edges, 1.0, Solver("exponential"))
