import math

import networkx as nx
import numpy as np
import pytest
import torch
from odd_graphs import (
    batched,
    blocks,
    counts,
    edges_of,
    every_graph,
    random_edges,
    renumbered,
    single,
    walk,
)
from tolerances import TOLERANCE

from eqflow.edges import Edges, weighted_sum
from eqflow.errors import UsageError
from eqflow.graphs import Graph, matrices, ppr
from eqflow.graphs.matrices import adjacency, to_scipy
from eqflow.graphs.ppr import (
    chebyshev_weights,
    personalised_pagerank,
    ppr_encoding,
    ppr_low_rank_encoding,
    sparse_pagerank,
)
from eqflow.graphs.sparsification import AtLeast, AverageDegree, LargestPerRow

NEAR = {"rtol": TOLERANCE[torch.float64], "atol": TOLERANCE[torch.float64]}
EVERYTHING = LargestPerRow(10_000)


@every_graph
@pytest.mark.parametrize("teleport", [0.05, 0.5, 1.0])
def test_the_matrix_solves_its_equation_and_its_rows_sum_to_one(name, teleport):
    edges = single(name)
    U = personalised_pagerank(edges, teleport)
    identity = torch.eye(edges.nodes, dtype=torch.float64)
    left = (identity - (1 - teleport) * walk(edges)) @ U
    torch.testing.assert_close(left, teleport * identity, **NEAR)
    torch.testing.assert_close(U.sum(1), torch.ones(edges.nodes, dtype=torch.float64), **NEAR)
    assert (-TOLERANCE[torch.float64] < U).all()


@every_graph
def test_a_row_is_the_personalised_pagerank_of_networkx_on_reversed_edges(name):
    edges = single(name)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(edges.nodes))
    for r, row in enumerate(counts(edges).tolist()):
        # There too a walk with nowhere to go stays.
        links = {c: count for c, count in enumerate(row) if count} or {r: 1.0}
        graph.add_weighted_edges_from((r, c, count) for c, count in links.items())
    U = personalised_pagerank(edges, 0.15)
    for node in range(edges.nodes):
        row = nx.pagerank(graph, 0.85, {node: 1.0}, tol=1e-13, max_iter=1000)
        expected = torch.tensor([row[k] for k in range(edges.nodes)], dtype=torch.float64)
        torch.testing.assert_close(U[node], expected, **NEAR)


def test_an_isolated_node_has_itself_alone():
    edges = single("two components and a node alone")
    alone = torch.eye(6, dtype=torch.float64)[3]
    torch.testing.assert_close(personalised_pagerank(edges)[3], alone, **NEAR)
    torch.testing.assert_close(sparse_pagerank(edges, tolerance=1e-12).to_dense()[3], alone)


def test_it_smooths_as_weighted_sum_does():
    """`U x` is the fixed point of `x ← β T x + (1 − β) x₀` with `T` in the edge primitives."""
    edges = single("directed")
    x = torch.arange(10.0, dtype=torch.float64).reshape(5, 2)
    smooth = personalised_pagerank(edges, 0.2) @ x
    degree = edges.incoming.lengths
    w = 1 / degree[edges.receiver].double()
    stays = (degree == 0).double().unsqueeze(1) * smooth
    again = 0.8 * (weighted_sum(w, smooth, edges) + stays) + 0.2 * x
    torch.testing.assert_close(again, smooth, **NEAR)


@every_graph
@pytest.mark.parametrize("teleport", [0.05, 0.3, 1.0])
def test_the_series_is_the_solve(name, teleport):
    edges = single(name)
    series = sparse_pagerank(edges, EVERYTHING, teleport, tolerance=1e-13).to_dense()
    torch.testing.assert_close(series, personalised_pagerank(edges, teleport), **NEAR)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("name", ["star", "ring with chords", "directed"])
def test_no_entry_is_further_off_than_the_tolerance(name, tolerance):
    edges = single(name)
    error = sparse_pagerank(edges, EVERYTHING, 0.05, tolerance).to_dense()
    error -= personalised_pagerank(edges)
    assert error.abs().max() <= tolerance


def test_what_powers_leave_out_is_missing_from_each_row():
    edges = single("directed")
    U = sparse_pagerank(edges, EVERYTHING, 0.05, tolerance=2e-5).to_dense()
    missing = 1 - U.sum(1)
    K = math.ceil(math.log(2e-5) / math.log(0.95))
    torch.testing.assert_close(missing, torch.full((5,), 0.95**K).double(), rtol=0.1, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_chebyshev_terms_leave_out_less_than_they_may_and_are_few(beta, tolerance):
    c = chebyshev_weights(beta, tolerance)
    s = np.linspace(-1, 1, 401)
    error = np.abs(np.polynomial.chebyshev.chebval(s, c) - 1 / (1 - beta * s)).max()
    assert error <= tolerance
    if beta > 0.9:
        powers = math.log(tolerance * (1 - beta)) / math.log(beta)
        assert 4 * len(c) < powers


def test_graphs_of_a_batch_do_not_see_each_other():
    batch, alone = batched()
    expected = blocks([personalised_pagerank(edges) for edges in alone])
    torch.testing.assert_close(personalised_pagerank(batch), expected, **NEAR)
    keep = AverageDegree(2)
    sparse = sparse_pagerank(batch, keep).to_dense()
    expected = blocks([sparse_pagerank(edges, keep).to_dense() for edges in alone])
    assert torch.equal(sparse, expected)
    low = ppr_low_rank_encoding(batch, 3)
    each = torch.cat([ppr_low_rank_encoding(edges, 3) for edges in alone])
    assert torch.equal(low, each)


def test_nodes_may_be_numbered_otherwise():
    edges = random_edges(40, 60)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    U = personalised_pagerank(edges)
    again = personalised_pagerank(renumbered(edges, order))
    torch.testing.assert_close(again, U[order][:, order], **NEAR)


def test_the_largest_of_each_row_are_kept_whatever_the_blocks(monkeypatch):
    edges = random_edges(50, 80)
    U = personalised_pagerank(edges)
    values, places = U.topk(7, dim=1)
    expected = torch.zeros_like(U).scatter(1, places, values)
    kept = sparse_pagerank(edges, LargestPerRow(7), tolerance=1e-13)
    torch.testing.assert_close(kept.to_dense(), expected, **NEAR)
    monkeypatch.setattr(matrices, "BLOCK_ROWS", 3)
    again = sparse_pagerank(edges, LargestPerRow(7), tolerance=1e-13)
    torch.testing.assert_close(again.to_dense(), kept.to_dense(), **NEAR)


@pytest.mark.parametrize("tolerance", [1e-5, 1e-12])
def test_of_equal_entries_those_of_lower_nodes_are_kept(tolerance):
    # From each leaf, the other leaves are equally far.
    kept = sparse_pagerank(single("star"), LargestPerRow(4), tolerance=tolerance).to_dense() > 0
    expected = [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 5]]
    assert [row.nonzero().squeeze(1).tolist() for row in kept] == expected


def test_where_fewer_nodes_are_reached_than_asked_for_all_are_kept():
    kept = sparse_pagerank(single("two components and a node alone"), LargestPerRow(5))
    assert kept.crow_indices().diff().tolist() == [3, 3, 3, 1, 2, 2]


def test_a_threshold_keeps_what_is_above_it():
    edges = random_edges(50, 80)
    U = personalised_pagerank(edges)
    kept = sparse_pagerank(edges, AtLeast(0.02), tolerance=1e-13).to_dense()
    torch.testing.assert_close(kept, U.where(U >= 0.02, 0), **NEAR)


@pytest.mark.parametrize("block", [2, 64])
def test_an_average_degree_keeps_the_largest_of_all_entries(block, monkeypatch):
    monkeypatch.setattr(matrices, "BLOCK_ROWS", block)  # 2: the pool is cut down on the way
    edges = random_edges(50, 80)
    kept = sparse_pagerank(edges, AverageDegree(4.5), tolerance=1e-13)
    assert len(kept.values()) == 225
    values = personalised_pagerank(edges).flatten().sort(descending=True).values
    torch.testing.assert_close(kept.values().sort(descending=True).values, values[:225], **NEAR)


def test_an_average_degree_counts_out_entries_that_are_equal():
    kept = sparse_pagerank(single("no edges"), AverageDegree(0.7))
    assert kept.to_dense().diagonal().ne(0).tolist() == [True, True, False]


@pytest.mark.parametrize(("over", "axis"), [("rows", 1), ("columns", 0)])
def test_the_encoding_is_normalised_as_asked_and_fits_a_graph(over, axis):
    edges = single("ring with chords")
    encoding = ppr_encoding(edges, LargestPerRow(3), normalise=over)
    torch.testing.assert_close(encoding.to_dense().sum(axis), torch.ones(7))
    raw = sparse_pagerank(edges, LargestPerRow(3)).to_dense().float()
    assert torch.equal(ppr_encoding(edges, LargestPerRow(3), normalise=None).to_dense(), raw)
    graph = Graph(torch.zeros(7, 1), edges, torch.zeros(7, dtype=torch.int64), encoding)
    assert graph.encoding.layout is torch.sparse_csr
    assert graph.encoding.dtype == torch.float32


@every_graph
def test_symmetric_columns_are_those_of_the_symmetric_transition_matrix(name):
    """As published, with self loops: `α (I − (1 − α) D^{-1/2} A D^{-1/2})⁻¹`, then columns."""
    plain = single(name)
    loops = torch.arange(plain.nodes)
    pairs = torch.stack([plain.sender, plain.receiver])
    edges = Edges.from_index(torch.cat([pairs, loops.repeat(2, 1)], 1), plain.nodes)
    A = counts(edges)
    root = A.sum(1).rsqrt()
    T = root[:, None] * A * root
    S = 0.05 * torch.linalg.inv(torch.eye(len(A)) - 0.95 * T)
    encoding = ppr_encoding(edges, EVERYTHING, 0.05, "symmetric_columns", tolerance=1e-12)
    torch.testing.assert_close(encoding.to_dense(), (S / S.sum(0)).float())


def test_a_column_that_nothing_is_left_of_stays_zero():
    encoding = ppr_encoding(single("star"), LargestPerRow(1), teleport=0.05)
    sums = encoding.to_dense().sum(0)
    assert ((sums - 1).abs() < TOLERANCE[torch.float32]).logical_or(sums == 0).all()
    assert (sums == 0).any()


@pytest.mark.parametrize("dense_rows", [0, 400])
def test_the_dense_encoding_is_of_left_singular_vectors(dense_rows, monkeypatch):
    monkeypatch.setattr(matrices, "DENSE_ROWS", dense_rows)
    edges = random_edges(60, 90)
    U = personalised_pagerank(edges)
    encoding = ppr_low_rank_encoding(edges, 5, EVERYTHING, tolerance=1e-13).double()
    sigma = encoding.square().sum(0)
    near = {"rtol": TOLERANCE[torch.float32], "atol": TOLERANCE[torch.float32]}
    torch.testing.assert_close(sigma, torch.linalg.svdvals(U)[:5], **near)
    torch.testing.assert_close(U @ (U.T @ encoding), encoding * sigma.square(), **near)
    largest = encoding.abs().argmax(0)
    assert (encoding[largest, torch.arange(5)] > 0).all()


def test_channels_beyond_the_nodes_are_zero():
    encoding = ppr_low_rank_encoding(single("path"), 6)
    assert torch.equal(encoding[:, 4:], torch.zeros(4, 2))
    assert encoding[:, :4].any(0).all()


def test_a_graph_without_nodes_has_an_empty_matrix():
    edges = edges_of([], 0)
    assert personalised_pagerank(edges).shape == (0, 0)
    assert sparse_pagerank(edges).shape == (0, 0)
    assert ppr_low_rank_encoding(edges, 2).shape == (0, 2)


def test_the_sparse_matrix_of_a_tensor_is_the_same():
    A = adjacency(random_edges(20, 30))
    assert (to_scipy(matrices.to_torch(A)) != A).nnz == 0


@pytest.mark.parametrize("teleport", [0.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("function", [personalised_pagerank, sparse_pagerank, ppr_encoding])
def test_a_teleport_that_is_no_probability_is_refused(function, teleport):
    with pytest.raises(UsageError, match="teleport: found"):
        function(single("path"), teleport=teleport)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LargestPerRow(0),
        lambda: LargestPerRow(2.5),
        lambda: AtLeast(0.0),
        lambda: AverageDegree(float("nan")),
        lambda: sparse_pagerank(single("path"), tolerance=0.0),
        lambda: ppr_low_rank_encoding(single("path"), 0),
        lambda: ppr_encoding(single("path"), normalise="both"),
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=r"found .*expected"):
        wrong()


def test_a_graph_too_large_for_a_dense_matrix_is_sent_to_the_series(monkeypatch):
    monkeypatch.setattr(ppr, "DENSE_LIMIT", 3)
    with pytest.raises(UsageError, match="Use sparse_pagerank"):
        personalised_pagerank(single("path"))
