import numpy as np
import pytest
import torch
from odd_graphs import batched, blocks, counts, edges_of, every_graph, random_edges, single
from tolerances import TOLERANCE

from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.graphs import matrices
from eqflow.graphs.deepwalk import deepwalk, deepwalk_matrix

NEAR = {"rtol": TOLERANCE[torch.float64], "atol": TOLERANCE[torch.float64]}


def explicit(edges: Edges, window: int, negatives: int) -> torch.Tensor:
    """The formula as it stands, dense; nodes without edges have none in it."""
    A = counts(edges)
    A = torch.maximum(A, A.T)
    d = A.sum(1)
    has = d > 0
    T = A[has][:, has] / d[has, None]
    powers = sum(torch.linalg.matrix_power(T, r) for r in range(1, window + 1))
    M = torch.zeros_like(A)
    M[has.nonzero(), has.nonzero().T] = d.sum() / (negatives * window) * powers / d[has]
    return M.clamp(min=1).log()


def block_model(sizes: list[int], within: float, between: float, seed: int = 0) -> Edges:
    block = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    likely = torch.where(block[:, None] == block, within, between)
    draws = torch.rand(likely.shape, generator=torch.Generator().manual_seed(seed))
    upper = (draws < likely).triu(1)
    return Edges.from_index((upper | upper.T).nonzero().T.contiguous(), len(block))


@every_graph
@pytest.mark.parametrize(("window", "negatives"), [(1, 1), (3, 1), (10, 5)])
def test_the_matrix_is_the_closed_form(name, window, negatives, monkeypatch):
    monkeypatch.setattr(matrices, "BLOCK_ROWS", 2)
    edges = single(name)
    M = deepwalk_matrix(edges, window, negatives).to_dense()
    torch.testing.assert_close(M, explicit(edges, window, negatives), **NEAR)
    torch.testing.assert_close(M, M.T, **NEAR)


def test_it_is_the_logarithm_of_how_often_walks_pair_two_nodes_beyond_chance():
    """Counts of pairs on simulated walks, within five standard errors."""
    edges, window, walks, steps = single("ring with chords"), 2, 2000, 60
    A = counts(edges)
    T = (A / A.sum(1, keepdim=True)).cumsum(1)
    source = torch.Generator().manual_seed(0)
    # Walks begin where they would be at any later time: in proportion to degree.
    start = (A.sum(1) / A.sum()).cumsum(0)
    at = torch.searchsorted(start, torch.rand(walks, generator=source).double())
    path = [at]
    for _ in range(steps - 1):
        draw = torch.rand(walks, 1, generator=source).double()
        at = torch.searchsorted(T[at].contiguous(), draw).squeeze(1)
        path.append(at)
    path = torch.stack(path)
    estimates = []
    for part in path.split(walks // 20, dim=1):
        pairs = torch.zeros(7, 7, dtype=torch.float64)
        for r in range(1, window + 1):
            first, second = part[:-r].flatten(), part[r:].flatten()
            found = torch.bincount(first * 7 + second, minlength=49).reshape(7, 7).double()
            # Both orders of a pair count, each step as much as the others.
            pairs += (found + found.T) / found.sum() / 2 / window
        estimates.append(pairs)
    estimates = torch.stack(estimates)
    mean, error = estimates.mean(0), estimates.std(0) / 20**0.5
    chance = A.sum(1)[:, None] * A.sum(1) / A.sum() ** 2
    joint = explicit_ratio(edges, window) * chance
    assert ((mean - joint).abs() <= 5 * error + 1e-9).all()


def explicit_ratio(edges: Edges, window: int) -> torch.Tensor:
    """How much more often than by chance; what `log max(·, 1)` is then taken of."""
    M = deepwalk_matrix(edges, window).to_dense().exp()
    A = counts(edges)
    T = A / A.sum(1, keepdim=True)
    full = A.sum() / window * sum(torch.linalg.matrix_power(T, r) for r in (1, 2)) / A.sum(1)
    torch.testing.assert_close(M, full.clamp(min=1), **NEAR)
    return full


@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_of_a_block_model_lie_apart(seed):
    edges = block_model([60, 60, 60], 0.2, 0.02, seed)
    u = deepwalk(edges, 8)
    # Of the leading eigenvectors, the first says who is where, the next two which block.
    u = torch.nn.functional.normalize(u[:, 1:3] - u[:, 1:3].mean(0), dim=1)
    block = torch.arange(3).repeat_interleave(60)
    centre = torch.stack([u[block == k].mean(0) for k in range(3)])
    found = torch.cdist(u, centre).argmin(1)
    assert (found == block).double().mean() > 0.95


def test_without_blocks_none_are_found():
    """The check above fails where there is nothing to find."""
    u = deepwalk(block_model([180], 0.08, 0.08), 8)
    u = torch.nn.functional.normalize(u[:, 1:3] - u[:, 1:3].mean(0), dim=1)
    block = torch.arange(3).repeat_interleave(60)
    centre = torch.stack([u[block == k].mean(0) for k in range(3)])
    assert (torch.cdist(u, centre).argmin(1) == block).double().mean() < 0.6


@pytest.mark.parametrize("dense_rows", [0, 400])
def test_the_embedding_is_of_left_singular_vectors(dense_rows, monkeypatch):
    monkeypatch.setattr(matrices, "DENSE_ROWS", dense_rows)
    edges = random_edges(80, 120)
    M = explicit(edges, 10, 1)
    u = deepwalk(edges, 6).double()
    sigma = u.square().sum(0)
    near = {"rtol": 10 * TOLERANCE[torch.float32], "atol": 10 * TOLERANCE[torch.float32]}
    # Ten times the tolerance: an error of u counts with σ, which is up to 100 here.
    torch.testing.assert_close(sigma, torch.linalg.svdvals(M)[:6], **near)
    torch.testing.assert_close(M @ (M.T @ u) / sigma.square(), u, **near)


def test_graphs_of_a_batch_do_not_see_each_other():
    batch, alone = batched()
    assert torch.equal(deepwalk(batch, 3), torch.cat([deepwalk(edges, 3) for edges in alone]))
    expected = blocks([deepwalk_matrix(edges).to_dense() for edges in alone])
    assert torch.equal(deepwalk_matrix(batch).to_dense(), expected)


def test_it_is_the_same_each_time_and_whichever_way_edges_point():
    edges = random_edges(500, 900)
    u = deepwalk(edges, 4)
    assert torch.equal(deepwalk(edges, 4), u)
    one_way = edges.sender < edges.receiver
    pairs = torch.stack([edges.sender, edges.receiver])[:, one_way]
    assert torch.equal(deepwalk(Edges.from_index(pairs, 500), 4), u)


def test_isolated_nodes_are_at_the_origin_and_channels_beyond_the_nodes_zero():
    u = deepwalk(single("two components and a node alone"), 9)
    assert not u[3].any()
    assert not u[:, 6:].any()
    assert u[[0, 1, 2, 4, 5]].any(1).all()
    assert not deepwalk(single("no edges"), 2).any()
    assert deepwalk(edges_of([], 0), 2).shape == (0, 2)
    assert deepwalk_matrix(edges_of([], 0)).shape == (0, 0)


@pytest.mark.parametrize(
    "setting", [{"width": 0}, {"width": 2.0}, {"window": 0}, {"negatives": 0}, {"window": True}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UsageError, match=r"found .*expected"):
        deepwalk(single("path"), **{"width": 2} | setting)


def test_cora_takes_seconds(shared_data):
    from torch_geometric.datasets.planetoid import read_planetoid_data

    raw = read_planetoid_data(str(shared_data / "planetoid" / "Cora" / "raw"), "cora")
    edges = Edges.from_index(raw.edge_index, raw.num_nodes)
    u = deepwalk(edges, 16)
    assert np.isfinite(u.numpy()).all()
    # Neighbours lie nearer than nodes at random.
    unit = torch.nn.functional.normalize(u, dim=1)
    near = (unit[edges.sender] * unit[edges.receiver]).sum(1).mean()
    assert near > 0.7 > 0.4 > (unit @ unit.T).mean()
