"""What a graph and a split refuse, and what they tell about themselves."""

from dataclasses import replace

import pytest
import torch

from eqflow.edges import Edges
from eqflow.errors import DataError, EmptyData, ShapeError
from eqflow.graphs import Graph, Split
from eqflow.graphs.features import csr

N = 6


def masks(*parts: list[int]) -> list[torch.Tensor]:
    return [torch.isin(torch.arange(N), torch.tensor(part)) for part in parts]


@pytest.fixture
def graph() -> Graph:
    edges = Edges.from_index(torch.tensor([[0, 1, 2, 3, 4, 4], [1, 0, 3, 2, 0, 4]]), N)
    y = torch.tensor([0, 1, 2, 0, 1, -1])
    split = Split(*masks([0, 1], [2], [3, 4]), "first")
    return Graph(torch.arange(N * 3.0).reshape(N, 3), edges, y, splits=(split,), name="six")


def test_a_graph_tells_its_sizes(graph):
    assert (graph.nodes, graph.features, graph.classes) == (N, 3, 3)
    assert repr(graph) == "Graph(six: 6 nodes, 6 directed edges, 3 features, 3 classes, 1 splits)"
    assert graph.with_encoding(torch.ones(N, 2)).encoding.shape == (N, 2)
    fewer = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), N)
    assert graph.with_edges(fewer).edges.count == 0
    assert graph.with_edges(fewer).x is graph.x


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (([0, 1], [1, 2], [3]), DataError, "split odd: node 1 and 0 others are in two parts"),
        (([0, 1], [], [3]), EmptyData, "'validation': 0"),
        (([0], [1], []), EmptyData, "'test': 0} nodes, expected at least one"),
    ],
)
def test_a_split_whose_parts_overlap_or_are_empty_is_refused(parts, error, words):
    with pytest.raises(error, match=words):
        Split(*masks(*parts), "odd")


def test_a_mask_of_another_shape_or_type_is_refused():
    train, validation, test = masks([0], [1], [2])
    with pytest.raises(ShapeError, match=r"found a validation mask \(5,\) of torch.bool"):
        Split(train, validation[:5], test)
    with pytest.raises(ShapeError, match=r"test mask \(6,\) of torch.int64"):
        Split(train, validation, test.long())
    with pytest.raises(ShapeError, match="one entry a node"):
        Split(*(mask[None] for mask in (train, validation, test)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(N - 1, 3)}, r"found x of shape \(5, 3\), expected one row for each of"),
        ({"x": torch.ones(N)}, r"found x \(6,\)"),
        ({"x": torch.ones(N, 3, dtype=torch.int64)}, "of torch.int64 and y"),
        ({"x": torch.ones(N, 3).to_sparse()}, "layout torch.sparse_coo"),
        ({"y": torch.zeros(N)}, "y of torch.float32"),
        ({"y": torch.zeros(N + 1, dtype=torch.int64)}, r"found y of shape \(7,\)"),
        ({"encoding": torch.ones(N)}, r"found an encoding \(6,\)"),
        ({"encoding": torch.ones(N, 2, dtype=torch.int64)}, "expected .N, P. of floating point"),
        ({"encoding": torch.ones(2, N)}, r"found encoding of shape \(2, 6\)"),
        ({"splits": (Split(*(torch.eye(3, dtype=torch.bool))),)}, "found split split of shape"),
    ],
)
def test_a_part_of_another_shape_or_type_is_refused(graph, change, words):
    with pytest.raises(ShapeError, match=f"six: .*{words}"):
        replace(graph, **change)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sparse", [False, True])
def test_features_that_are_not_finite_are_named_by_their_nodes(graph, value, sparse):
    x = graph.x.clone()
    x[4, 1] = x[4, 2] = x[5, 0] = value
    if sparse:
        starts = torch.arange(N + 1) * 3
        x = csr(starts, torch.arange(3).repeat(N), x.flatten(), (N, 3))
    with pytest.raises(DataError, match=r"six: x of node 4 \(and of 1 others\) is not finite"):
        replace(graph, x=x)
    with pytest.raises(DataError, match="encoding of node 0"):
        replace(graph, encoding=torch.full((N, 2), value))


def test_labels_below_the_unknown_one_are_refused(graph):
    with pytest.raises(DataError, match="found label -2"):
        replace(graph, y=graph.y - 1)


def test_a_split_has_no_node_without_a_label(graph):
    split = Split(*masks([0], [1], [4, 5]), "second")
    with pytest.raises(DataError, match=r"test of split second has node 5 and 0 others without"):
        replace(graph, splits=(split,))
