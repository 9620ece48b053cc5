"""Predictions from two spectra, against linear diffusions that are followed to their end."""

import math

import networkx
import pytest
import torch
from awkward_graphs import (
    DIRECTED,
    GRID,
    IRREGULAR,
    SYMMETRIC,
    adjacency,
    both_ways,
    draws,
    of_networkx,
)
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.nn import (
    frequency_dominance,
    laplacian_spectrum,
    largest_laplacian_eigenvalue,
    normalised_dirichlet_energy,
)
from eqflow.nn.frequency import DENSE_NODES, MOST_NODES

SUMS = TOLERANCE[torch.float64]
every_graph = pytest.mark.parametrize("edges", SYMMETRIC.values(), ids=SYMMETRIC)
TRIED = {
    "grid": GRID,
    "irregular": IRREGULAR,
    "with an isolated node": SYMMETRIC["two components and an isolated node"],
    "self loops": SYMMETRIC["self loops"],
    "complete": of_networkx(networkx.complete_graph(5)),
    "odd ring": of_networkx(networkx.cycle_graph(7)),
}
tried = pytest.mark.parametrize("edges", TRIED.values(), ids=TRIED)


def symmetric(channels: int, seed: int) -> Tensor:
    w = draws(channels, channels, seed=seed)
    return (w + w.T) / 2


def normalised_adjacency(edges: Edges) -> Tensor:
    a = adjacency(edges)
    scale = torch.where(a.sum(1) > 0, a.sum(1).clamp(min=1).rsqrt(), 0.0)
    return scale.unsqueeze(1) * a * scale


def generator(edges: Edges, w: Tensor, omega: Tensor) -> Tensor:
    """The matrix of `vec(x) ↦ vec(Ã x W − x Ω)`, row by row."""
    n = edges.nodes
    return torch.kron(normalised_adjacency(edges), w) - torch.kron(torch.eye(n).double(), omega)


def end_of(edges: Edges, matrix: Tensor, channels: int) -> float:
    """Normalised Dirichlet energy after the matrix was applied `2^40` times."""
    power = matrix / matrix.abs().max()
    for _ in range(40):
        power = power @ power
        power = power / power.abs().max()
    x = (power @ draws(edges.nodes * channels, seed=9)).reshape(edges.nodes, channels)
    return float(normalised_dirichlet_energy(x, edges))


@every_graph
def test_the_spectrum_is_that_of_the_laplacian_of_networkx(edges: Edges) -> None:
    graph = networkx.from_numpy_array(adjacency(edges).numpy())
    expected = torch.from_numpy(networkx.normalized_laplacian_spectrum(graph)).sort().values
    found = laplacian_spectrum(edges)
    assert found.dtype == torch.float64
    assert float((found - expected).abs().max()) < SUMS
    assert largest_laplacian_eigenvalue(edges) == pytest.approx(float(found[-1]), abs=SUMS)
    components = networkx.number_connected_components(graph)
    assert int((found.abs() < 1e-8).sum()) == components


@pytest.mark.parametrize("kind", ["grid", "scale free", "with isolated nodes"])
def test_iterations_on_a_large_graph_find_the_eigenvalue_of_the_whole_spectrum(kind: str) -> None:
    graph = {
        "grid": lambda: networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(25, 25)),
        "scale free": lambda: networkx.barabasi_albert_graph(600, 3, seed=0),
        "with isolated nodes": lambda: networkx.gnm_random_graph(600, 900, seed=0),
    }[kind]()
    edges = of_networkx(graph)
    assert edges.nodes > DENSE_NODES
    dense = laplacian_spectrum(edges)[-1]
    assert largest_laplacian_eigenvalue(edges) == pytest.approx(float(dense), rel=1e-9)
    assert largest_laplacian_eigenvalue(edges) == largest_laplacian_eigenvalue(edges)


@tried
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("damping", ["none", "diagonal", "matrix"])
def test_a_flow_ends_where_the_spectra_say(edges: Edges, seed: int, damping: str) -> None:
    shift = torch.eye(3).double() * (seed - 3)  # from repelling alone to attracting alone
    w = symmetric(3, seed) + shift
    omega = {
        "none": torch.zeros(3, 3).double(),
        "diagonal": draws(3, seed=seed + 100).diag(),
        "matrix": symmetric(3, seed + 200),
    }[damping]
    given = {"none": None, "diagonal": omega.diag(), "matrix": omega}[damping]
    said = frequency_dominance(w, edges, damping=given)
    assert said.dominant in ("low", "high")
    m = generator(edges, w, omega)
    shifted = m - torch.linalg.eigvalsh(m)[-1] * torch.eye(len(m)).double()
    measured = end_of(edges, torch.linalg.matrix_exp(shifted), 3)
    assert measured == pytest.approx(said.limit, abs=1e-6)


@tried
@pytest.mark.parametrize("seed", range(6))
def test_without_damping_the_printed_criterion_says_the_same(edges: Edges, seed: int) -> None:
    w = symmetric(3, seed)
    said = frequency_dominance(w, edges)
    assert said.mixing_lowest < 0 < said.mixing_highest
    printed = abs(said.mixing_lowest) * (said.laplacian_highest - 1) > said.mixing_highest
    assert (said.dominant == "high") == printed


def test_both_kinds_of_dominance_are_among_what_is_tried() -> None:
    found = {
        frequency_dominance(symmetric(3, seed), edges).dominant
        for edges in TRIED.values()
        for seed in range(6)
    }
    assert found == {"low", "high"}


@tried
@pytest.mark.parametrize("step", [0.3, 1.0, 2.7])
@pytest.mark.parametrize("seed", range(3))
def test_explicit_steps_end_where_the_spectra_say(edges: Edges, step: float, seed: int) -> None:
    w, omega = symmetric(3, seed), draws(3, seed=seed + 100).diag()
    said = frequency_dominance(w, edges, damping=omega, step=step)
    m = torch.eye(3 * edges.nodes).double() + step * generator(edges, w, omega)
    assert end_of(edges, m, 3) == pytest.approx(said.limit, abs=1e-6)
    rates = torch.linalg.eigvalsh(m).abs().max().log() / step
    assert max(said.low_rate, said.high_rate) == pytest.approx(float(rates), abs=1e-9)


@tried
def test_long_steps_of_pure_diffusion_blow_up_the_highest_frequency(edges: Edges) -> None:
    one = torch.eye(2).double()
    limit = 2 / largest_laplacian_eigenvalue(edges)
    for factor, expected in ((0.99, "low"), (1.01, "high")):
        said = frequency_dominance(one, edges, damping=one, step=factor * limit)
        assert said.dominant == expected
    assert frequency_dominance(one, edges, damping=one).dominant == "low"


def test_where_both_ends_grow_alike_neither_is_said_to_win() -> None:
    for w in (torch.zeros(2, 2).double(), torch.diag(torch.tensor([1.0, -1.0]).double())):
        said = frequency_dominance(w, GRID)  # bipartite: λ_max = 2
        assert said.dominant == "neither"
        assert math.isnan(said.limit)
    assert frequency_dominance(symmetric(2, 0), SYMMETRIC["no edges"]).dominant == "neither"


def test_short_steps_have_the_rates_of_the_flow() -> None:
    w = symmetric(3, 1) + 3 * torch.eye(3).double()
    flow, steps = frequency_dominance(w, IRREGULAR), frequency_dominance(w, IRREGULAR, step=1e-7)
    assert steps.low_rate == pytest.approx(flow.low_rate, rel=1e-5)
    assert (flow.step, steps.step) == (None, 1e-7)


# Bad input.


def test_wrong_graphs_are_refused() -> None:
    for edges in DIRECTED.values():
        for asked in (laplacian_spectrum, largest_laplacian_eigenvalue):
            with pytest.raises(UsageError, match="found a directed graph"):
                asked(edges)
    with pytest.raises(UsageError, match="batch of 3 graphs"):
        frequency_dominance(symmetric(2, 0), SYMMETRIC["a batch"])
    large = both_ways([(0, 1)], MOST_NODES + 1)
    with pytest.raises(UsageError, match="largest_laplacian_eigenvalue"):
        laplacian_spectrum(large)
    assert largest_laplacian_eigenvalue(large) == pytest.approx(2.0)
    assert largest_laplacian_eigenvalue(SYMMETRIC["no edges"]) == 0


def test_wrong_matrices_are_refused() -> None:
    for w in (draws(2, 2), torch.full((2, 2), torch.nan)):
        with pytest.raises(UsageError, match="mixing that differs from its transpose"):
            frequency_dominance(w, GRID)
    with pytest.raises(UsageError, match="damping that differs"):
        frequency_dominance(symmetric(2, 0), GRID, damping=draws(2, 2))
    for w in (draws(2, 3), draws(2), torch.zeros(()), torch.zeros(0, 0)):
        with pytest.raises(ShapeError, match="square matrix"):
            frequency_dominance(w, GRID)
    with pytest.raises(ShapeError, match="damping"):
        frequency_dominance(symmetric(2, 0), GRID, damping=draws(3))
    for step in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="found a step of"):
            frequency_dominance(symmetric(2, 0), GRID, step=step)
