"""GCN and its residual form, against dense formulas and PyG."""

import gc
import weakref

import pytest
import torch
from awkward_graphs import DIRECTED, GRAPHS, IRREGULAR, adjacency, draws
from awkward_graphs import relative as relative_error
from tolerances import TOLERANCE
from torch import Tensor
from torch_geometric.nn import GCNConv

from eqflow.edges import Edges, segment_sum
from eqflow.errors import ShapeError
from eqflow.geometry import Segments
from eqflow.nn import (
    GraphConvolution,
    ResidualGraphConvolution,
    random_walk_weights,
    symmetric_weights,
    with_self_loops,
)
from eqflow.nn.per_graph import degrees, once_per_graph

every_graph = pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
SUMS = TOLERANCE[torch.float64]


def dense_weights(edges: Edges, power_sender: float, power_receiver: float) -> Tensor:
    a = adjacency(edges)
    d = a.sum(1)

    def scaled(power: float) -> Tensor:
        return torch.where((d > 0) | (power == 0), d.clamp(min=1) ** power, 0.0)

    return scaled(power_receiver).unsqueeze(1) * a * scaled(power_sender)


def as_matrix(w: Tensor, edges: Edges) -> Tensor:
    n = edges.nodes
    return torch.zeros(n, n, dtype=w.dtype).index_put((edges.receiver, edges.sender), w, True)


@every_graph
def test_weights_are_those_of_the_normalised_adjacency(edges: Edges) -> None:
    symmetric, walk = symmetric_weights(edges), random_walk_weights(edges)
    assert relative_error(as_matrix(symmetric, edges), dense_weights(edges, -0.5, -0.5)) < 1e-15
    assert relative_error(as_matrix(walk, edges), dense_weights(edges, 0, -1)) < 1e-15
    has_edges = (edges.incoming.lengths > 0).double()
    assert relative_error(segment_sum(walk, edges), has_edges) < 1e-14


def test_weights_have_the_type_asked_for_and_float64_else() -> None:
    assert symmetric_weights(IRREGULAR).dtype == torch.float64
    assert symmetric_weights(IRREGULAR, torch.float32).dtype == torch.float32
    assert random_walk_weights(IRREGULAR, dtype=torch.float32).dtype == torch.float32


@every_graph
def test_each_node_has_a_self_loop_once_they_are_added(edges: Edges) -> None:
    a, looped = adjacency(edges), with_self_loops(edges)
    expected = a + (a.diag() == 0).double().diag()
    assert torch.equal(adjacency(looped), expected)
    assert torch.equal(looped.clouds.ptr, edges.clouds.ptr)
    assert torch.equal(adjacency(with_self_loops(looped)), expected)


@every_graph
@pytest.mark.parametrize("widths", [(3, 5), (5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_dense_formula(edges: Edges, widths: tuple[int, int], bias: bool) -> None:
    layer = GraphConvolution(*widths, bias=bias).double()
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = draws(edges.nodes, widths[0])
    a = dense_weights(with_self_loops(edges), -0.5, -0.5)
    expected = a @ x @ layer.weight + (layer.bias if bias else 0)
    assert relative_error(layer(x, edges), expected) < SUMS


# PyG keeps one of several self loops of a node, and its last weight.
ALIKE = [name for name in GRAPHS if name != "self loops"]


@pytest.mark.parametrize("name", ALIKE)
def test_a_layer_is_that_of_pyg(name: str) -> None:
    edges = GRAPHS[name]
    layer, peer = GraphConvolution(4, 6).double(), GCNConv(4, 6).double()
    with torch.no_grad():
        peer.lin.weight.copy_(layer.weight.T)
        layer.bias.normal_()
        peer.bias.copy_(layer.bias)
    x = draws(edges.nodes, 4)
    found = layer(x, edges)
    assert relative_error(found, peer(x, torch.stack([edges.sender, edges.receiver]))) < 1e-14
    found.square().sum().backward()
    peer(x, torch.stack([edges.sender, edges.receiver])).square().sum().backward()
    assert relative_error(layer.weight.grad, peer.lin.weight.grad.T) < 1e-13


def test_a_residual_layer_adds_what_the_convolution_says() -> None:
    x = draws(12, 4)
    plain = ResidualGraphConvolution(4).double()
    bent = ResidualGraphConvolution(4, activation=torch.relu).double()
    bent.load_state_dict(plain.state_dict())
    update = plain.convolution(x, IRREGULAR)
    assert torch.equal(plain(x, IRREGULAR), x + update)
    assert torch.equal(bent(x, IRREGULAR), x + update.relu())


@every_graph
def test_layers_follow_a_permutation_of_the_nodes(edges: Edges) -> None:
    if edges.clouds.count > 1:
        pytest.skip("a permutation of all nodes mixes graphs")
    layer = ResidualGraphConvolution(3, activation=torch.relu).double()
    order = torch.randperm(edges.nodes)
    place = order.argsort()
    moved = Edges.from_index(torch.stack([place[edges.sender], place[edges.receiver]]), edges.nodes)
    x = draws(edges.nodes, 3)
    assert relative_error(layer(x[order], moved), layer(x, edges)[order]) < 1e-14


def test_graphs_of_a_batch_do_not_see_each_other() -> None:
    edges, layer = GRAPHS["a batch"], GraphConvolution(3, 4).double()
    x = draws(8, 3)
    whole = layer(x, edges)
    x[3:] = torch.nan
    assert torch.equal(layer(x, edges)[:3], whole[:3])


def test_derivatives_of_both_orders_are_right() -> None:
    layer = GraphConvolution(2, 3).double()
    x = draws(6, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: layer(x, DIRECTED["directed"]), x, check_forward_ad=True
    )
    assert torch.autograd.gradgradcheck(lambda x: layer(x, DIRECTED["directed"]), x)


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \(N, 3\)"):
        GraphConvolution(3, 4)(torch.zeros(12, 4), IRREGULAR)
    with pytest.raises(ShapeError, match="one row for each of the 12 nodes"):
        GraphConvolution(3, 4)(torch.zeros(11, 3), IRREGULAR)


# What is kept for a graph.


def test_what_a_graph_says_is_computed_once_and_forgotten_with_it() -> None:
    calls = []

    @once_per_graph
    def count(edges: Edges, factor: int = 1) -> int:
        calls.append(edges.count)
        return factor * edges.count

    edges = Edges.complete(Segments.of_lengths(torch.tensor([3])))
    assert [count(edges), count(edges), count(edges, 2), count(edges, factor=2)] == [6, 6, 12, 12]
    assert calls == [6, 6, 6]
    symmetric_weights(edges), with_self_loops(edges), degrees(edges, torch.float32)
    alive = weakref.ref(edges)
    del edges
    gc.collect()
    assert alive() is None


def test_what_was_kept_in_inference_mode_serves_a_backward_pass() -> None:
    edges = GRAPHS["grid"].repeat(1)
    layer = GraphConvolution(3, 4).double()
    with torch.inference_mode():
        layer(draws(20, 3), edges)
    layer(draws(20, 3), edges).sum().backward()
    assert bool(layer.weight.grad.isfinite().all())
