import math

import pytest
import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import NumericalError, ShapeError, UsageError

SIZES = [12, 1, 0, 7, 2, 30]


def ragged(dimension: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(dimension)
    x = torch.randn(sum(SIZES), dimension, generator=source, dtype=torch.float64)
    return x.to(dtype), torch.tensor([0, *SIZES]).cumsum(0)


def listed(edges: Edges) -> list[tuple[int, int]]:
    return list(zip(edges.receiver.tolist(), edges.sender.tolist(), strict=True))


def distances(x: Tensor, ptr: Tensor) -> Tensor:
    """All distances, infinite between clouds and from a point to itself."""
    cloud = torch.arange(len(ptr) - 1).repeat_interleave(ptr.diff())
    d = (x.unsqueeze(0) - x.unsqueeze(1)).norm(dim=-1)
    d[cloud.unsqueeze(0) != cloud.unsqueeze(1)] = math.inf
    return d.fill_diagonal_(math.inf)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@pytest.mark.parametrize("r", [1e-9, 0.5, 1.3, 1e6])
def test_radius_is_every_ordered_pair_of_a_cloud_within_reach(dimension: int, r: float) -> None:
    x, ptr = ragged(dimension)
    expected = (distances(x, ptr) <= r).nonzero().tolist()
    assert listed(Edges.radius(x, r, ptr)) == [tuple(pair) for pair in expected]


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [1, 3, 11, 100])
def test_knn_is_each_nodes_nearest_of_its_cloud(dimension: int, k: int) -> None:
    x, ptr = ragged(dimension)
    d = distances(x, ptr)
    expected = [
        (node, other)
        for node in range(len(x))
        for other in sorted(d[node].argsort()[:k].tolist())
        if d[node, other] < math.inf
    ]
    assert listed(Edges.knn(x, k, ptr)) == expected


def test_clouds_on_top_of_each_other_are_never_joined() -> None:
    x = torch.zeros(6, 3)
    ptr = torch.tensor([0, 2, 6])
    joined = Edges.complete(ptr)
    assert listed(Edges.radius(x, 10.0, ptr)) == listed(joined)
    assert listed(Edges.knn(x, 5, ptr)) == listed(joined)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_graph_is_the_same_far_from_the_origin(dtype: torch.dtype) -> None:
    x, ptr = ragged(dtype=dtype)
    offset = 1e6 if dtype == torch.float64 else 64.0
    far = x + offset
    near = far.double() - offset  # the same positions, rounded as the far ones are
    assert listed(Edges.radius(far, 1.2, ptr)) == listed(Edges.radius(near, 1.2, ptr))
    assert listed(Edges.knn(far, 4, ptr)) == listed(Edges.knn(near, 4, ptr))


def test_a_pair_at_the_cutoff_itself_is_within_it() -> None:
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.5, 0.0]])
    assert listed(Edges.radius(x, 2.0, torch.tensor([0, 3]))) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_coincident_points_are_neighbours_and_no_point_is_its_own(k: int) -> None:
    x = torch.zeros(5, 3)
    ptr = torch.tensor([0, 5])
    edges = Edges.knn(x, k, ptr)
    assert edges.incoming.lengths.tolist() == [k] * 5
    assert (edges.sender != edges.receiver).all()
    assert len(set(listed(edges))) == 5 * k
    assert listed(Edges.radius(x, 0.1, ptr)) == listed(Edges.complete(ptr))


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (1, 1, 1)])
def test_clouds_without_pairs_have_no_edges(sizes: tuple) -> None:
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    x = torch.zeros(sum(sizes), 3)
    for edges in (Edges.radius(x, 1.0, ptr), Edges.knn(x, 2, ptr)):
        assert (edges.count, edges.nodes, edges.clouds.count) == (0, sum(sizes), len(sizes))


def test_many_clouds_are_searched_in_one_go() -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, generator=source)
    ptr = torch.arange(0, 20_001, 10)
    edges = Edges.radius(x, 1.0, ptr)
    within = torch.cdist(x.reshape(-1, 10, 3), x.reshape(-1, 10, 3)) <= 1.0
    assert edges.count == int(within.sum()) - 20_000


@pytest.mark.parametrize("r", [0.0, -1.0, math.nan, math.inf])
def test_a_cutoff_has_to_be_positive_and_finite(r: float) -> None:
    with pytest.raises(UsageError, match=r"radius: found .* expected a positive, finite cutoff"):
        Edges.radius(torch.zeros(2, 3), r, torch.tensor([0, 2]))


def test_the_number_of_neighbours_has_to_be_positive() -> None:
    with pytest.raises(UsageError, match="knn: found k = 0"):
        Edges.knn(torch.zeros(2, 3), 0, torch.tensor([0, 2]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_positions_that_are_not_finite_are_an_error(bad: float) -> None:
    x = torch.tensor([[0.0, 0.0], [bad, 0.0]])
    with pytest.raises(NumericalError, match="not finite"):
        Edges.radius(x, 1.0, torch.tensor([0, 2]))
    with pytest.raises(NumericalError, match="not finite"):
        Edges.knn(x, 1, torch.tensor([0, 2]))


def test_positions_that_do_not_fit_ptr_are_an_error() -> None:
    with pytest.raises(ShapeError):
        Edges.radius(torch.zeros(3, 2), 1.0, torch.tensor([0, 2]))
