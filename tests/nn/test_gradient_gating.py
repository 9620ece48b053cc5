"""Gradient gating: rates of the formula, limits, and derivatives where neighbours are alike."""

import math

import pytest
import torch
from awkward_graphs import DIRECTED, GRAPHS, IRREGULAR, SYMMETRIC, adjacency, draws
from awkward_graphs import relative as relative_error
from torch import Tensor, nn

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.nn import GradientGating, GraphConvolution, gating_rates

every_graph = pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
every_power = pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])


def dense_rates(g: Tensor, edges: Edges, power: float) -> Tensor:
    a = adjacency(edges).unsqueeze(-1)
    total = (a * (g.unsqueeze(0) - g.unsqueeze(1)).abs() ** power).sum(1)
    return torch.tanh(total / a.sum(1).clamp(min=1))


@every_graph
@every_power
def test_rates_are_those_of_the_dense_formula(edges: Edges, power: float) -> None:
    g = draws(edges.nodes, 3)
    found = gating_rates(g, edges, power)
    assert relative_error(found, dense_rates(g, edges, power)) < 1e-14
    assert bool(((found >= 0) & (found <= 1)).all())
    assert not found[edges.incoming.lengths == 0].any()


@every_graph
def test_a_layer_moves_each_channel_by_its_rate(edges: Edges) -> None:
    convolution, gate = (GraphConvolution(3, 3).double() for _ in range(2))
    x = draws(edges.nodes, 3)
    proposed = convolution(x, edges).relu()
    for layer, g in (
        (GradientGating(convolution, gate), gate(x, edges).relu()),
        (GradientGating(convolution), proposed),
    ):
        tau = dense_rates(g, edges, 2.0)
        assert relative_error(layer(x, edges), (1 - tau) * x + tau * proposed) < 1e-14


def test_without_an_activation_the_logits_are_not_clipped() -> None:
    convolution = GraphConvolution(3, 3).double()
    layer = GradientGating(convolution, activation=None)
    x = draws(12, 3)
    proposed = convolution(x, IRREGULAR)
    tau = dense_rates(proposed, IRREGULAR, 2.0)
    assert bool((proposed < 0).any())
    assert relative_error(layer(x, IRREGULAR), (1 - tau) * x + tau * proposed) < 1e-14


@every_power
def test_nodes_that_are_alike_stay_and_have_finite_derivatives_of_both_orders(power: float) -> None:
    g = torch.ones(12, 2, dtype=torch.float64, requires_grad=True)
    tau = gating_rates(g, IRREGULAR, power)
    assert not tau.any()
    (first,) = torch.autograd.grad((tau * draws(12, 2)).sum(), g, create_graph=True)
    assert not first.any()
    (second,) = torch.autograd.grad((first * draws(12, 2, seed=1)).sum(), g)
    assert bool(second.isfinite().all())


@pytest.mark.parametrize("name", ["irregular", "directed and repeated", "a batch"])
@every_power
def test_derivatives_of_both_orders_are_right(name: str, power: float) -> None:
    edges = GRAPHS[name]
    # Far enough apart that no difference changes its sign within a finite step.
    g = (torch.arange(2.0 * edges.nodes).double().sqrt().reshape(-1, 2)).requires_grad_()

    def rates(g: Tensor) -> Tensor:
        return gating_rates(0.3 * g, edges, power)

    assert torch.autograd.gradcheck(rates, g, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(rates, g)


def test_the_second_derivative_of_squares_is_right_also_at_zero() -> None:
    g = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
    edges = SYMMETRIC["repeated edges"]
    assert torch.autograd.gradgradcheck(lambda g: gating_rates(g, edges, 2.0), g)


def test_graphs_of_a_batch_do_not_see_each_other() -> None:
    edges, layer = GRAPHS["a batch"], GradientGating(GraphConvolution(3, 3).double())
    x = draws(8, 3)
    whole = layer(x, edges)
    x[3:] = torch.nan
    assert torch.equal(layer(x, edges)[:3], whole[:3])


def test_a_permutation_of_nodes_permutes_the_features() -> None:
    layer, edges = GradientGating(GraphConvolution(2, 2).double()), DIRECTED["directed"]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    place = order.argsort()
    moved = Edges.from_index(torch.stack([place[edges.sender], place[edges.receiver]]), 6)
    x = draws(6, 2)
    assert relative_error(layer(x[order], moved), layer(x, edges)[order]) < 1e-14


def test_wrong_arguments_are_refused() -> None:
    for power in (0.5, 0.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="found a power of"):
            GradientGating(nn.Identity(), power=power)
        with pytest.raises(UsageError, match="found a power of"):
            gating_rates(draws(12, 2), IRREGULAR, power)
    with pytest.raises(ShapeError, match="the convolution returned"):
        GradientGating(GraphConvolution(3, 4))(torch.zeros(12, 3), IRREGULAR)
    with pytest.raises(ShapeError, match="the gate returned"):
        GradientGating(GraphConvolution(3, 3), GraphConvolution(3, 4))(
            torch.zeros(12, 3), IRREGULAR
        )
