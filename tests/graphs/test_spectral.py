import networkx as nx
import pytest
import torch
from odd_graphs import batched, counts, edges_of, every_graph, random_edges, single, walk
from tolerances import TOLERANCE
from torch_geometric.data import Data
from torch_geometric.transforms import AddLaplacianEigenvectorPE, AddRandomWalkPE

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.graphs import matrices
from eqflow.graphs.spectral import laplacian_encoding, random_signs, random_walk_encoding

NEAR = {"rtol": TOLERANCE[torch.float64], "atol": TOLERANCE[torch.float64]}
SINGLE = {"rtol": TOLERANCE[torch.float32], "atol": TOLERANCE[torch.float32]}


def laplacian(edges: Edges) -> torch.Tensor:
    """Of networkx, weighted by how often edges are there; isolated nodes have a zero row."""
    A = counts(edges).fill_diagonal_(0)
    A = torch.maximum(A, A.T)
    graph = nx.from_numpy_array(A.numpy())
    return torch.from_numpy(nx.normalized_laplacian_matrix(graph).toarray())


def components(edges: Edges) -> list[list[int]]:
    A = counts(edges)
    return [
        sorted(part) for part in nx.connected_components(nx.from_numpy_array((A + A.T).numpy()))
    ]


@every_graph
@pytest.mark.parametrize("dense_rows", [0, 400])
def test_vectors_are_those_of_the_smallest_eigenvalues_above_zero(name, dense_rows, monkeypatch):
    monkeypatch.setattr(matrices, "DENSE_ROWS", dense_rows)
    edges = single(name)
    L = laplacian(edges)
    modes = edges.nodes - len(components(edges))
    width = max(1, modes - 1)
    u = laplacian_encoding(edges, width)
    eigenvalues = torch.linalg.eigvalsh(L)[len(components(edges)) :]
    kept = min(width, modes)
    torch.testing.assert_close(L @ u[:, :kept], u[:, :kept] * eigenvalues[:kept], **NEAR)
    gram = torch.eye(width, dtype=torch.float64)
    gram[kept:] = 0
    torch.testing.assert_close(u.T @ u, gram, **NEAR)


def test_the_iteration_finds_what_the_dense_decomposition_finds(monkeypatch):
    # Forty complete graphs and a longer one: as many zero modes, which must not be found.
    one = torch.combinations(torch.arange(5)).T
    large = random_edges(60, 20)
    pairs = [torch.cat([one, one.flip(0)], 1) + 5 * k for k in range(40)]
    pairs.append(torch.stack([large.sender, large.receiver]) + 200)
    edges = Edges.from_index(torch.cat(pairs, 1), 262)
    monkeypatch.setattr(matrices, "DENSE_ROWS", 1000)
    dense = laplacian_encoding(edges, 4)
    monkeypatch.setattr(matrices, "DENSE_ROWS", 0)
    torch.testing.assert_close(laplacian_encoding(edges, 4), dense, rtol=0, atol=1e-7)
    assert dense[:200].abs().max() < 1e-9  # eigenvalues of complete graphs are above 1
    assert not dense[260:].any()


def test_zero_modes_are_left_out_one_for_each_component():
    edges = single("two components and a node alone")
    u = laplacian_encoding(edges, 6)
    for part in components(edges):
        root = counts(edges).sum(1)[part].sqrt()
        torch.testing.assert_close(root @ u[part], torch.zeros(6, dtype=torch.float64), **NEAR)
    assert u.any(0).tolist() == [True, True, True, False, False, False]
    assert not u[3].any()
    assert laplacian_encoding(single("no edges"), 2).eq(0).all()


def test_it_agrees_with_pyg_on_a_connected_graph_but_for_signs():
    edges = random_edges(90, 150)  # below 100 nodes PyG is dense, and draws signs alone
    index = torch.stack([edges.sender, edges.receiver])
    data = Data(edge_index=index, num_nodes=90)
    theirs = AddLaplacianEigenvectorPE(5, is_undirected=True)(data).laplacian_eigenvector_pe
    ours = laplacian_encoding(edges, 5).float()
    same = torch.minimum((ours - theirs).abs().amax(0), (ours + theirs).abs().amax(0))
    assert (same < TOLERANCE[torch.float32]).all()


@every_graph
def test_return_probabilities_are_the_diagonal_of_powers_of_the_walk(name, monkeypatch):
    monkeypatch.setattr(matrices, "BLOCK_ROWS", 2)
    edges = single(name)
    T = walk(edges)
    expected = [torch.linalg.matrix_power(T, k).diagonal() for k in range(1, 6)]
    torch.testing.assert_close(random_walk_encoding(edges, 5), torch.stack(expected, 1), **NEAR)


def test_return_probabilities_agree_with_pyg_on_a_simple_graph():
    edges = random_edges(50, 80)
    index = torch.stack([edges.sender, edges.receiver])
    data = AddRandomWalkPE(6)(Data(edge_index=index, num_nodes=50))
    torch.testing.assert_close(
        random_walk_encoding(edges, 6).float(), data.random_walk_pe, **SINGLE
    )


def test_a_walk_that_cannot_go_anywhere_has_always_returned():
    assert random_walk_encoding(single("no edges"), 3).eq(1).all()


@pytest.mark.parametrize("encoding", [laplacian_encoding, random_walk_encoding])
def test_graphs_of_a_batch_do_not_see_each_other(encoding):
    batch, alone = batched()
    assert torch.equal(encoding(batch, 4), torch.cat([encoding(edges, 4) for edges in alone]))
    assert encoding(edges_of([], 0), 4).shape == (0, 4)


@pytest.mark.parametrize("encoding", [laplacian_encoding, random_walk_encoding])
def test_a_width_that_is_no_number_of_channels_is_refused(encoding):
    for width in (0, -1, 1.5, True):
        with pytest.raises(UsageError, match="found width"):
            encoding(single("path"), width)


def test_the_largest_entry_of_each_vector_is_positive():
    u = laplacian_encoding(random_edges(30, 40), 6)
    assert (u[u.abs().argmax(0), torch.arange(6)] > 0).all()


def test_signs_are_drawn_for_each_channel_of_each_graph():
    batch, _ = batched()
    u = torch.ones(batch.nodes, 64)
    signed = random_signs(u, batch.clouds, rng.generator(0, "signs"))
    assert torch.equal(signed.abs(), u)
    for first, last in zip(batch.clouds.ptr[:-1], batch.clouds.ptr[1:], strict=True):
        assert (signed[first:last] == signed[first : first + 1]).all()
    signs = signed[batch.clouds.ptr[:-1][batch.clouds.lengths > 0]]
    # Fair, within five standard errors, and not the same in all graphs.
    assert abs(signs.mean()) < 5 / signs.numel() ** 0.5
    assert (signs[0] != signs[1]).any()
    assert torch.equal(random_signs(u, batch.clouds, rng.generator(0, "signs")), signed)
    with pytest.raises(ShapeError, match="one row a node"):
        random_signs(u[1:], batch.clouds, rng.generator(0, "signs"))
