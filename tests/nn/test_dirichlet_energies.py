"""Energies of features on a graph, against matrices and against what defines them."""

import math
from typing import Any

import pytest
import torch
from awkward_graphs import (
    DIRECTED,
    GRAPHS,
    GRID,
    SYMMETRIC,
    adjacency,
    both_ways,
    cloud_matrix,
    draws,
)
from awkward_graphs import relative as relative_error
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.nn import (
    degree_scaled_dirichlet_energy,
    dirichlet_energy,
    laplacian_spectrum,
    mean_average_distance,
    node_dirichlet_energies,
    normalised_dirichlet_energy,
)
from eqflow.testing import assert_independent, assert_invariant, clouds

every_graph = pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
every_symmetric = pytest.mark.parametrize("edges", SYMMETRIC.values(), ids=SYMMETRIC)


def by_trace(x: Tensor, laplacian: Tensor, edges: Edges) -> Tensor:
    """`½ tr(xᵀ L x)` of each graph."""
    return 0.5 * cloud_matrix(edges) @ (x * (laplacian @ x)).sum(1)


def laplacian_of(edges: Edges) -> Tensor:
    """Of the graph in which each edge leads both ways with half its weight."""
    a = (adjacency(edges) + adjacency(edges).T) / 2
    return a.sum(1).diag() - a


@every_graph
def test_the_energy_is_half_the_trace_with_the_laplacian(edges: Edges) -> None:
    x = draws(edges.nodes, 3)
    found = dirichlet_energy(x, edges)
    assert found.shape == (edges.clouds.count,)
    assert relative_error(found, by_trace(x, laplacian_of(edges), edges)) < 1e-14
    parts = cloud_matrix(edges) @ node_dirichlet_energies(x, edges)
    assert relative_error(parts, found) < 1e-14


def test_each_pair_of_neighbours_counts_once() -> None:
    x = torch.tensor([[0.0], [3.0]])
    assert dirichlet_energy(x, both_ways([(0, 1)], 2)).item() == 4.5
    assert dirichlet_energy(x, both_ways([(0, 1), (0, 1), (1, 1)], 2)).item() == 9.0
    one_way = Edges.from_index(torch.tensor([[0], [1]]), 2)
    assert dirichlet_energy(x, one_way).item() == 2.25


@every_symmetric
def test_scaled_by_degrees_it_is_that_of_the_normalised_laplacian(edges: Edges) -> None:
    x = draws(edges.nodes, 3)
    a = adjacency(edges)
    scale = torch.where(a.sum(1) > 0, a.sum(1).clamp(min=1).rsqrt(), 0.0)
    delta = (a.sum(1) > 0).double().diag() - scale.unsqueeze(1) * a * scale
    energy = degree_scaled_dirichlet_energy(x, edges)
    assert relative_error(energy, by_trace(x, delta, edges)) < 1e-14
    quotient = normalised_dirichlet_energy(x, edges)
    size = cloud_matrix(edges) @ x.square().sum(1)
    assert relative_error(quotient, energy / size) < 1e-14
    assert bool((quotient <= float(laplacian_spectrum(edges)[-1]) / 2 + 1e-14).all())


@pytest.mark.parametrize("size", [1e-250, 1.0, 1e250])
def test_the_normalised_energy_does_not_see_the_size_of_features(size: float) -> None:
    x = draws(20, 3)
    found = normalised_dirichlet_energy(size * x, GRID)
    assert relative_error(found, normalised_dirichlet_energy(x, GRID)) < 1e-13


def test_at_the_ends_of_the_spectrum_the_normalised_energy_is_what_it_is_called() -> None:
    a = adjacency(GRID)
    root = a.sum(1).sqrt()
    alternating = root * torch.tensor([(-1.0) ** (i // 5 + i % 5) for i in range(20)])
    assert normalised_dirichlet_energy(root.unsqueeze(1), GRID).item() < 1e-15
    high = normalised_dirichlet_energy(alternating.unsqueeze(1), GRID)
    assert high.item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", ["repeated edges", "directed and repeated", "a batch"])
def test_derivatives_of_both_orders_are_right(name: str) -> None:
    edges = GRAPHS[name]
    x = draws(edges.nodes, 2).requires_grad_()
    for energy in (dirichlet_energy, degree_scaled_dirichlet_energy):
        assert torch.autograd.gradcheck(lambda x, f=energy: f(x, edges), x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x, f=energy: f(x, edges), x)
    assert torch.autograd.gradcheck(lambda x: normalised_dirichlet_energy(x, edges), x)


@pytest.mark.parametrize("name", dict(clouds()))
def test_energies_of_positions_are_invariant_and_independent(name: str) -> None:
    batch = dict(clouds())[name]

    def energy(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return dirichlet_energy(x, Edges.complete(ptr))

    for group in ("E(3)", "S(n)"):
        assert_invariant(energy, batch, group=group)
    assert_independent(energy, batch)


@every_graph
def test_the_mean_average_distance_is_an_average_of_cosine_distances(edges: Edges) -> None:
    x = draws(edges.nodes, 3)
    unit = x / x.norm(dim=1, keepdim=True)
    a = adjacency(edges)
    degree = a.sum(1)
    average = (a * (1 - unit @ unit.T)).sum(1) / degree.clamp(min=1)
    counted = cloud_matrix(edges) @ (degree > 0).double()
    expected = cloud_matrix(edges) @ average / counted.clamp(min=1)
    assert relative_error(mean_average_distance(x, edges), expected) < 1e-14


def test_directions_that_are_almost_one_have_a_distance_with_digits() -> None:
    angle = 1e-9
    x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    found = mean_average_distance(x, both_ways([(0, 1)], 2)).item()
    assert found == pytest.approx(angle**2 / 2, rel=1e-6)


def test_features_without_a_direction_or_a_size() -> None:
    edges = SYMMETRIC["a batch"]
    x = draws(8, 3)
    x[:3] = 0
    assert dirichlet_energy(x, edges)[0].item() == 0
    quotient = normalised_dirichlet_energy(x, edges)
    assert quotient[0].item() == 0
    assert quotient[1].item() > 0
    assert mean_average_distance(x, edges)[0].item() == 0
    assert mean_average_distance(x, edges)[2].item() == 0


@pytest.mark.parametrize("exponent", [66, -100])
def test_single_precision_keeps_directions_and_quotients_of_extreme_sizes(exponent: int) -> None:
    x = draws(GRID.nodes, 3).float()
    for function in (normalised_dirichlet_energy, mean_average_distance):
        found = function(2.0**exponent * x, GRID)
        assert found.dtype == torch.float32
        assert relative_error(found, function(x, GRID)) < TOLERANCE[torch.float32]


def test_no_features_no_nodes_and_features_of_zero_are_as_smooth_as_can_be() -> None:
    nothing = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), 0)
    for function in (normalised_dirichlet_energy, mean_average_distance, dirichlet_energy):
        for edges, x in (
            (GRID, torch.zeros(GRID.nodes, 3)),
            (GRID, torch.zeros(GRID.nodes, 0)),
            (nothing, torch.zeros(0, 3)),
            (nothing, torch.zeros(0, 0)),
        ):
            assert function(x, edges).tolist() == [0.0]
    zero = torch.zeros(GRID.nodes, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(normalised_dirichlet_energy(zero, GRID).sum(), zero)
    assert not gradient.any()


def test_an_edge_index_is_no_graph() -> None:
    pairs: Any = torch.tensor([[0], [1]])
    for function in (dirichlet_energy, normalised_dirichlet_energy, mean_average_distance):
        with pytest.raises(UsageError, match=r"found edges of type Tensor.*Edges\.from_index"):
            function(torch.ones(2, 1), pairs)


def test_nan_stays_in_its_graph() -> None:
    edges = DIRECTED["a directed batch"]
    x = draws(6, 3)
    x[4] = torch.nan
    for energy in (dirichlet_energy, normalised_dirichlet_energy, mean_average_distance):
        assert energy(x, edges).isnan().tolist() == [False, True]


def test_features_of_another_shape_are_refused() -> None:
    for energy in (
        dirichlet_energy,
        degree_scaled_dirichlet_energy,
        normalised_dirichlet_energy,
        mean_average_distance,
    ):
        for shape in ((20,), (19, 3), (20, 3, 2)):
            with pytest.raises(ShapeError):
                energy(torch.zeros(shape, dtype=torch.float64), GRID)
        with pytest.raises(ShapeError, match="floating point"):
            energy(torch.zeros(20, 3, dtype=torch.int64), GRID)
