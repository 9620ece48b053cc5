import networkx as nx
import pytest
import torch
from odd_graphs import batched, edges_of, single
from tolerances import TOLERANCE
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.graphs.hyperbolic import (
    descend,
    exp_at_origin,
    into_ball,
    log_at_origin,
    mobius_add,
    poincare_distance,
    poincare_embedding,
)
from eqflow.nn.diffusion.hyperbolic import RIM, squared_hyperbolic_distance

NEAR = {"rtol": TOLERANCE[torch.float64], "atol": TOLERANCE[torch.float64]}


def points(n: int, width: int, seed: int, radius: float = 0.95) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    u = torch.randn(n, width, generator=source, dtype=torch.float64)
    r = torch.rand(n, 1, generator=source, dtype=torch.float64)
    return radius * r * u / u.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_distance_is_that_of_the_definition_and_symmetric(width):
    u, v = points(50, width, 0), points(50, width, 1)
    y = 2 * (u - v).square().sum(1) / ((1 - u.square().sum(1)) * (1 - v.square().sum(1)))
    torch.testing.assert_close(poincare_distance(u, v), torch.arccosh(1 + y), **NEAR)
    torch.testing.assert_close(poincare_distance(v, u), poincare_distance(u, v), **NEAR)
    assert poincare_distance(u, u).eq(0).all()


@pytest.mark.parametrize("width", [1, 2, 5])
def test_translations_and_turns_of_the_ball_change_no_distance(width):
    u, v, w = points(50, width, 0), points(50, width, 1), points(50, width, 2, 0.9)
    Q, _ = torch.linalg.qr(points(width, width, 3))
    moved = poincare_distance(mobius_add(w, u), mobius_add(w, v))
    torch.testing.assert_close(moved, poincare_distance(u, v), **NEAR)
    torch.testing.assert_close(poincare_distance(u @ Q, v @ Q), poincare_distance(u, v), **NEAR)
    pairs = torch.tensor([[0, 1, 5], [1, 9, 5]])
    edges = Edges.from_index(pairs, 50)
    w = w[:1].expand(50, -1)
    torch.testing.assert_close(
        squared_hyperbolic_distance(mobius_add(w, u), edges),
        squared_hyperbolic_distance(u, edges),
        **NEAR,
    )


def test_no_way_round_is_shorter():
    u, v, w = points(300, 3, 0), points(300, 3, 1), points(300, 3, 2)
    detour = poincare_distance(u, w) + poincare_distance(w, v)
    assert (poincare_distance(u, v) <= detour + 1e-12).all()
    # And it is no longer where the third point is on the geodesic: a line through the origin.
    line = torch.tensor([[-0.7, 0.0], [0.1, 0.0], [0.9, 0.0]], dtype=torch.float64)
    whole = poincare_distance(line[0], line[2])
    parts = poincare_distance(line[0], line[1]) + poincare_distance(line[1], line[2])
    torch.testing.assert_close(parts, whole, **NEAR)


def test_near_points_keep_their_digits_and_far_ones_stay_finite():
    u = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    h = torch.tensor([[1e-12, 0.0]], dtype=torch.float64)
    # 2 h / (1 − ‖u‖²), to the digits that u + h has itself.
    expected = 2 * ((u + h) - u).norm() / 0.75
    torch.testing.assert_close(poincare_distance(u, u + h), expected.reshape(1), **NEAR)
    rim = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]], requires_grad=True)
    d = poincare_distance(rim[:, None], rim)
    d.sum().backward()
    assert d.isfinite().all()
    assert rim.grad.isfinite().all()
    assert d[0, 1].item() == pytest.approx(2 * torch.tensor(2 / RIM).asinh().item(), rel=1e-5)


def test_derivatives_are_right_and_zero_where_points_coincide():
    u, v = points(6, 3, 0).requires_grad_(), points(6, 3, 1).requires_grad_()
    assert gradcheck(poincare_distance, (u, v))
    assert gradgradcheck(poincare_distance, (u, v))
    poincare_distance(u, u.detach()).sum().backward()
    assert u.grad.eq(0).all()
    edges = Edges.from_index(torch.tensor([[0, 1, 2, 4, 4], [1, 0, 2, 5, 5]]), 6)
    squared = lambda x: squared_hyperbolic_distance(x, edges)  # noqa: E731
    together = u.detach()[[0, 0, 2, 3, 4, 5]].requires_grad_()  # nodes 0 and 1 coincide
    assert gradcheck(squared, (together,))
    assert gradgradcheck(squared, (together,))
    plain = poincare_distance(together[edges.receiver], together[edges.sender]).square()
    torch.testing.assert_close(squared(together), plain, **NEAR)


def test_a_step_to_a_tangent_vector_and_back_is_none():
    v = 3 * points(40, 4, 0)
    v[0] = 0
    v[1] = 1e-9
    v[2] *= 1e-2 / v[2].norm()  # at the border of the series
    u = exp_at_origin(v)
    torch.testing.assert_close(log_at_origin(u), v, **NEAR)
    torch.testing.assert_close(poincare_distance(u, torch.zeros_like(u)), 2 * v.norm(dim=1), **NEAR)
    assert (u.norm(dim=1) < 1).all()
    small = torch.stack([v[0], v[1], v[2], v[3]]).requires_grad_()
    assert gradcheck(exp_at_origin, (small,))
    assert gradgradcheck(exp_at_origin, (small,))
    assert gradcheck(log_at_origin, (exp_at_origin(small).detach().requires_grad_(),))


def test_the_ball_is_a_gyrogroup_about_the_origin():
    u, v = points(30, 3, 0), points(30, 3, 1)
    zero = torch.zeros_like(u)
    torch.testing.assert_close(mobius_add(zero, v), v, **NEAR)
    torch.testing.assert_close(mobius_add(-u, mobius_add(u, v)), v, **NEAR)
    assert (mobius_add(u, v).norm(dim=1) < 1).all()


def test_points_outside_are_drawn_in_and_others_left():
    u = torch.tensor([[0.5, 0.0], [3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    inside = into_ball(u)
    assert torch.equal(inside[[0, 2]], u[[0, 2]])
    torch.testing.assert_close(inside[1], (1 - RIM) * u[1] / 5, **NEAR)


def quality(d: Tensor, adjacent: Tensor) -> tuple[float, float]:
    """Mean average precision and mean rank of neighbours among all nodes by distance."""
    d = d.clone().fill_diagonal_(float("inf"))
    rank = d.argsort(1).argsort(1) + 1
    precision, ranks = [], []
    for node, near in enumerate(adjacent):
        found = rank[node][near].sort().values.double()
        place = torch.arange(1, len(found) + 1)
        precision.append((place / found).mean())
        ranks.append((found - place + 1).mean())
    return float(torch.stack(precision).mean()), float(torch.stack(ranks).mean())


def tree(branches: int, depth: int) -> tuple[Edges, Tensor]:
    graph = nx.balanced_tree(branches, depth)
    adjacent = torch.from_numpy(nx.to_numpy_array(graph)) > 0
    return edges_of(list(graph.edges), len(graph)), adjacent


def euclidean(u: Tensor, v: Tensor) -> Tensor:
    return ((u - v).square().sum(-1) + 1e-12).sqrt()


def test_a_tree_fits_in_two_hyperbolic_dimensions_and_not_in_two_euclidean():
    edges, adjacent = tree(3, 4)
    n, epochs = edges.nodes, 300
    u = poincare_embedding(edges, 2, epochs=epochs)
    precision, rank = quality(poincare_distance(u[:, None], u), adjacent)
    # The same loss, draws and steps in the plane, at the best of four rates.
    flat = []
    for rate in (0.03, 0.1, 0.3, 1.0):
        source = rng.generator(0, "plane")
        start = 1e-3 * torch.randn(n, 2, generator=source, dtype=torch.float64)
        rates = [rate / 10] * 20 + [rate] * (epochs - 20)
        ends = torch.stack([edges.sender, edges.receiver])
        v = descend(start, ends, rates, 10, source, euclidean, lambda x, g, r: x - r * g)
        flat.append(quality(euclidean(v[:, None], v), adjacent))
    chance = quality(points(n, n, 0) @ points(n, n, 1).T, adjacent)
    assert precision > 0.9
    assert rank < 2
    assert precision > max(p for p, _ in flat) + 0.1
    assert rank < min(r for _, r in flat)
    assert precision > 10 * chance[0]
    assert rank < chance[1] / 10


def test_the_root_of_a_tree_comes_to_lie_nearer_the_origin_than_its_leaves():
    edges, _ = tree(3, 4)
    norm = poincare_embedding(edges, 2, epochs=300).norm(dim=1)
    assert norm[:4].max() < norm[-81:].min()  # the root and its children, and the leaves


def test_the_embedding_is_a_function_of_the_seed_and_lies_within_the_ball():
    edges = single("ring with chords")
    u = poincare_embedding(edges, 3, seed=5, epochs=30)
    assert torch.equal(poincare_embedding(edges, 3, seed=5, epochs=30), u)
    assert not torch.equal(poincare_embedding(edges, 3, seed=6, epochs=30), u)
    rough = poincare_embedding(edges, 3, epochs=30, rate=100.0)
    assert rough.isfinite().all()
    assert (rough.norm(dim=1) <= 1 - RIM + 1e-12).all()


def test_graphs_of_a_batch_do_not_see_each_other():
    batch, alone = batched()
    each = torch.cat([poincare_embedding(edges, 2, epochs=5, burn_in=2) for edges in alone])
    assert torch.equal(poincare_embedding(batch, 2, epochs=5, burn_in=2), each)


def test_direction_repetition_and_self_loops_make_no_difference():
    pairs = [(0, 1), (1, 2), (2, 3), (3, 0)]
    u = poincare_embedding(edges_of(pairs, 4), 2, epochs=10, burn_in=0)
    odd = [(1, 0), (0, 1), (1, 2), (2, 2), (3, 2), (2, 3), (0, 3)]
    assert torch.equal(poincare_embedding(edges_of(odd, 4), 2, epochs=10, burn_in=0), u)


def test_a_graph_without_edges_stays_where_it_began():
    u = poincare_embedding(single("no edges"), 4)
    assert u.norm(dim=1).max() <= 1e-3
    assert poincare_embedding(edges_of([], 0), 4).shape == (0, 4)


@pytest.mark.parametrize(
    "setting",
    [{"width": 0}, {"epochs": -1}, {"burn_in": 301}, {"negatives": 0}, {"rate": 0.0}],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UsageError, match=r"found .*expected"):
        poincare_embedding(single("path"), **{"width": 2} | setting)


@pytest.mark.slow
def test_neighbours_of_cora_lie_near_each_other(shared_data):
    from torch_geometric.datasets.planetoid import read_planetoid_data

    raw = read_planetoid_data(str(shared_data / "planetoid" / "Cora" / "raw"), "cora")
    edges = Edges.from_index(raw.edge_index, raw.num_nodes)
    u = poincare_embedding(edges, 16, epochs=100)
    near = squared_hyperbolic_distance(u, edges).sqrt()
    source = rng.generator(0, "pairs")
    other = torch.randint(0, edges.nodes, (edges.count,), generator=source)
    far = poincare_distance(u[edges.receiver], u[other])
    assert (near < far).double().mean() > 0.98
