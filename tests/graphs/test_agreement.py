"""Edge homophily: against PyG, against counting by hand, and in any order of the nodes."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_graphs import renumbered, two_components
from tolerances import TOLERANCE
from torch_geometric.utils import homophily as pyg_homophily

from eqflow import rng
from eqflow.edges import Edges
from eqflow.graphs import Graph, homophily


def test_it_is_the_share_of_edges_within_a_class():
    graph = two_components()
    # Of the seven edges 0–3, 3–7, 2–5, 5–0, 3–8, 8–2 join two classes, 1–6 one class.
    assert homophily(graph) == pytest.approx(1 / 7, rel=TOLERANCE[torch.float64])


def test_it_is_that_of_pyg_on_a_random_graph():
    source = rng.generator(3, "homophily")
    index = torch.randint(0, 40, (2, 300), generator=source)
    index = index[:, index[0] != index[1]]
    y = torch.randint(0, 3, (40,), generator=source)
    graph = Graph(torch.ones(40, 1), Edges.from_index(index, 40), y)
    # PyG computes it in float32.
    expected = pyg_homophily(index, y, method="edge")
    assert homophily(graph) == pytest.approx(expected, rel=TOLERANCE[torch.float32])


def test_self_loops_and_unknown_labels_do_not_count():
    graph = two_components()
    edges = graph.edges
    loops = torch.arange(9).expand(2, 9)
    unknown = torch.tensor([[4, 0], [0, 4]])
    index = torch.cat([torch.stack([edges.sender, edges.receiver]), loops, unknown], 1)
    assert homophily(graph.with_edges(Edges.from_index(index, 9))) == homophily(graph)


def test_it_does_not_depend_on_the_order_of_the_nodes():
    graph = two_components()
    for seed in range(5):
        order = rng.permutation(9, rng.generator(seed, "order"))
        assert homophily(renumbered(graph, order)) == homophily(graph)


def test_where_there_is_nothing_to_count_it_is_nan():
    graph = two_components()
    nothing = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), 9)
    assert math.isnan(homophily(graph.with_edges(nothing)))
    assert math.isnan(homophily(replace(graph, y=torch.full((9,), -1), splits=())))
