"""Lists of edges become symmetric, without repeats and self loops, as PyG's own tools make them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.utils import remove_self_loops, to_undirected

from eqflow.edges import Edges
from eqflow.errors import ShapeError
from eqflow.graphs.adjacency import joined

PAIRS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=30)


def index(pairs: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()


def pairs_of(edges: Edges) -> list[tuple[int, int]]:
    return sorted(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))


@given(PAIRS)
def test_both_directions_without_repeats_are_those_of_pyg(pairs):
    listed = index(pairs)
    expected = to_undirected(listed, num_nodes=9)
    edges = joined(listed, 9, self_loops=True)
    assert pairs_of(edges) == sorted(map(tuple, expected.T.tolist()))
    assert edges.nodes == 9
    without = joined(listed, 9)
    assert pairs_of(without) == sorted(map(tuple, remove_self_loops(expected)[0].T.tolist()))
    assert edges.is_symmetric
    assert without.is_symmetric


@given(PAIRS)
def test_directed_edges_stay_as_they_are_listed(pairs):
    edges = joined(index(pairs), 8, undirected=False, self_loops=True)
    assert pairs_of(edges) == sorted(pairs)
    without = joined(index(pairs), 8, undirected=False)
    assert pairs_of(without) == sorted((a, b) for a, b in pairs if a != b)


@given(PAIRS)
def test_a_graph_is_undirected_where_its_adjacency_matrix_is_symmetric(pairs):
    adjacency = torch.zeros(8, 8)
    for sender, receiver in pairs:
        adjacency[sender, receiver] += 1
    edges = Edges.from_index(index(pairs), 8)
    assert edges.is_symmetric == torch.equal(adjacency, adjacency.T)


def test_several_graphs_stay_apart():
    ptr = torch.tensor([0, 2, 5])
    edges = joined(index([(0, 1), (3, 2)]), 5, ptr=ptr)
    assert edges.clouds.count == 2
    assert pairs_of(edges) == [(0, 1), (1, 0), (2, 3), (3, 2)]


def test_an_index_out_of_range_is_refused():
    for undirected in (True, False):
        with pytest.raises(ShapeError, match="found indices from 0 to 5, expected 0 to 4"):
            joined(index([(0, 5)]), 5, undirected)
