"""Components against networkx, and what follows the nodes of the largest one."""

from dataclasses import replace

import networkx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_graphs import mask, renumbered, two_components

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import DataError, EmptyData, ShapeError
from eqflow.graphs import Graph, Split, component_ids, largest_component, subgraph
from eqflow.graphs.features import from_scipy, to_scipy

PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@given(PAIRS)
def test_components_are_those_of_networkx_by_size_then_lowest_node(pairs):
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    other = networkx.Graph()
    other.add_nodes_from(range(10))
    other.add_edges_from(pairs)
    expected = sorted(networkx.connected_components(other), key=lambda c: (-len(c), min(c)))
    found = component_ids(Edges.from_index(index, 10)).tolist()
    assert found == [next(k for k, c in enumerate(expected) if i in c) for i in range(10)]


def test_the_largest_component_keeps_the_order_and_all_that_nodes_have():
    graph = two_components()
    part, places = largest_component(graph)
    assert places.tolist() == [0, 2, 3, 5, 7, 8]
    assert torch.equal(part.x, graph.x[places])
    assert torch.equal(part.y, graph.y[places])
    assert torch.equal(part.encoding, graph.encoding[places])
    assert part.name == "tiny"
    sender, receiver = places[part.edges.sender], places[part.edges.receiver]
    kept = set(zip(sender.tolist(), receiver.tolist(), strict=True))
    sender, receiver = graph.edges.sender, graph.edges.receiver
    assert kept == set(zip(sender.tolist(), receiver.tolist(), strict=True)) - {(1, 6), (6, 1)}
    for after, before in zip(part.splits, graph.splits, strict=True):
        assert after.name == before.name
        for name, kept in after.parts.items():
            assert torch.equal(kept, before.parts[name][places])


def test_another_order_of_the_nodes_gives_the_same_component():
    graph = two_components()
    first, places = largest_component(graph)
    for seed in range(5):
        order = rng.permutation(9, rng.generator(seed, "order"))
        second, others = largest_component(renumbered(graph, order))
        assert sorted(order[others].tolist()) == places.tolist()
        assert second.edges.count == first.edges.count
        assert second.y.bincount().tolist() == first.y.bincount().tolist()


def test_sparse_features_stay_sparse():
    graph = two_components()
    x = torch.zeros(9, 30)
    x[torch.arange(9), torch.arange(9) * 3] = torch.arange(1.0, 10)
    part, places = largest_component(replace(graph, x=from_scipy(to_scipy(x))))
    assert part.x.layout is torch.sparse_csr
    assert torch.equal(part.x.to_dense(), x[places])


def test_a_graph_that_hangs_together_is_its_own_component():
    index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    graph = Graph(torch.ones(4, 1), Edges.from_index(index, 4), torch.zeros(4, dtype=torch.int64))
    part, places = largest_component(graph)
    assert places.tolist() == [0, 1, 2, 3]
    assert part.edges.sender.tolist() == graph.edges.sender.tolist()


def test_a_split_that_loses_a_part_is_named():
    graph = two_components()
    split = Split(mask(9, [0, 2]), mask(9, [1, 6]), mask(9, [7]), "third")
    with pytest.raises(EmptyData, match=r"split third: .*left of it among 6 of 9 nodes"):
        largest_component(replace(graph, splits=(split,)))


def test_no_nodes_are_no_component():
    empty = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), 0)
    graph = Graph(torch.ones(0, 1), empty, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(EmptyData, match="found no nodes"):
        largest_component(graph)


@pytest.mark.parametrize(
    ("places", "error", "words"),
    [
        (torch.ones(9, dtype=torch.bool), ShapeError, "torch.bool"),
        (torch.tensor([0, 9]), ShapeError, "from 0 to 9, expected 0 to 8"),
        (torch.tensor([-1]), ShapeError, "from -1"),
        (torch.tensor([2, 3, 2]), DataError, "twice"),
    ],
)
def test_places_that_are_none_are_refused(places, error, words):
    with pytest.raises(error, match=words):
        subgraph(two_components(), places)
