"""Features dense and sparse are the same numbers, and rows add up to 1 as PyG has it."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from tolerances import TOLERANCE
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import DataError
from eqflow.graphs import Graph, binary_features, normalised_features
from eqflow.graphs.features import csr, from_scipy, rows_of, to_scipy

N, F = 20, 40


def counts(density: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Counts of words; the last node has none."""
    source = rng.generator(1, "counts")
    x = torch.randint(1, 5, (N, F), generator=source).to(dtype)
    x[torch.rand(N, F, generator=source) > density] = 0
    x[-1] = 0
    return x


def graph_of(x: torch.Tensor) -> Graph:
    edges = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), len(x))
    return Graph(x, edges, torch.zeros(len(x), dtype=torch.int64))


def test_matrices_are_sparse_below_a_tenth_and_the_same_either_way():
    for density, layout in ((0.05, torch.sparse_csr), (0.4, torch.strided)):
        x = counts(density)
        made = from_scipy(scipy.sparse.csr_matrix(x.numpy()), torch.float64)
        assert made.layout is layout
        assert made.dtype is torch.float64
        assert torch.equal(made.to_dense(), x)
        assert np.array_equal(to_scipy(made).toarray(), x.numpy())
        places = torch.tensor([3, 0, 19, 7])
        assert torch.equal(rows_of(made, places).to_dense(), x[places])
        assert rows_of(made, places).layout is layout


def test_repeated_entries_are_added_and_stored_zeros_dropped():
    matrix = scipy.sparse.csr_matrix(
        (np.array([1.0, 2.0, 0.0]), np.array([5, 5, 1]), np.array([0, 3, 3])), shape=(2, 50)
    )
    made = from_scipy(matrix)
    assert made.values().tolist() == [3.0]
    assert made.col_indices().tolist() == [5]


def test_no_warning_reaches_the_user():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        x = from_scipy(scipy.sparse.csr_matrix(counts(0.05).numpy()))
        weight = torch.ones(F, 3, requires_grad=True)
        (x @ weight).sum().backward()
        normalised_features(graph_of(x))
        rows_of(x, torch.tensor([1]))
    assert not [str(warning.message) for warning in seen]
    assert torch.equal(weight.grad[:, 0], x.to_dense().sum(0))


@pytest.mark.parametrize("density", [0.05, 0.4])
def test_rows_add_up_to_one_and_empty_ones_to_zero(density):
    x = counts(density)
    graph = graph_of(from_scipy(scipy.sparse.csr_matrix(x.numpy()), torch.float64))
    scaled = normalised_features(graph).x.to_dense()
    expected = NormalizeFeatures()(Data(x=x.clone())).x
    torch.testing.assert_close(scaled, expected, rtol=TOLERANCE[torch.float64], atol=0)
    empty = x.sum(1) == 0
    assert empty[-1]
    assert not scaled[empty].any()


def test_rows_below_one_are_scaled_up_as_well():
    x = counts(0.4) / 1000
    scaled = normalised_features(graph_of(x)).x
    torch.testing.assert_close(
        scaled.sum(1)[:-1], torch.ones(N - 1).double(), rtol=TOLERANCE[torch.float64], atol=0
    )


def test_normalising_twice_changes_nothing():
    for density in (0.05, 0.4):
        once = normalised_features(
            graph_of(from_scipy(scipy.sparse.csr_matrix(counts(density).numpy()), torch.float64))
        )
        twice = normalised_features(once)
        torch.testing.assert_close(
            twice.x.to_dense(), once.x.to_dense(), rtol=TOLERANCE[torch.float64], atol=0
        )


def test_negative_features_are_refused():
    for density in (0.05, 0.4):
        x = counts(density)
        x[2, 3] = -0.5
        with pytest.raises(DataError, match=r"found the feature -0\.5, expected none below 0"):
            normalised_features(
                graph_of(from_scipy(scipy.sparse.csr_matrix(x.numpy()), torch.float64))
            )


@pytest.mark.parametrize("density", [0.05, 0.4])
def test_binary_features_are_one_where_there_was_anything(density):
    x = counts(density)
    graph = graph_of(from_scipy(scipy.sparse.csr_matrix(x.numpy()), torch.float64))
    assert torch.equal(binary_features(graph).x.to_dense(), (x > 0).double())
    assert torch.equal(graph.x.to_dense(), x)


def test_a_matrix_that_is_none_is_refused_by_torch():
    with pytest.raises(RuntimeError, match="col_indices"):
        csr(torch.tensor([0, 1]), torch.tensor([4]), torch.tensor([1.0]), (1, 3))
