"""Linearly implicit Euler: stable at any step, with the gradient of the solution."""

import math
from itertools import pairwise

import pytest
import torch
from example_diffusions import (
    Quasilinear,
    coefficients_of,
    dense_operator,
    irregular_graph,
    relative_error,
    state_of,
    symmetric_graph,
)
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import SolverFailed, UsageError
from eqflow.flows import Solver, Status, diffuse
from eqflow.flows import implicit as module
from eqflow.flows.effort import Effort
from eqflow.flows.evaluation import NonFinite
from eqflow.flows.implicit import NotConverged, implicit_euler_step
from eqflow.nn.diffusion import Coefficients

EXACT = TOLERANCE[torch.float64]
EDGES = irregular_graph()


def step(coefficients: Coefficients, x: Tensor, h: float, tolerance: float = 1e-13) -> Tensor:
    return implicit_euler_step(lambda t, x: coefficients, 0.0, h, x, tolerance, Effort())


def unit_weights(dtype: torch.dtype = torch.float64) -> Coefficients:
    graph = symmetric_graph()
    return Coefficients(graph, torch.ones(graph.count, dtype=dtype))


@pytest.mark.parametrize("kind", ["plain", "gain", "damped", "source", "mixed", "heads"])
@pytest.mark.parametrize("h", [0.01, 0.3, 5.0])
def test_a_step_solves_its_equations(kind: str, h: float) -> None:
    coefficients, x = coefficients_of(kind, EDGES), state_of(EDGES)
    source = 0 if coefficients.source is None else coefficients.source
    L = dense_operator(coefficients)
    right = (x + h * source).reshape(-1)
    expected = torch.linalg.solve(torch.eye(len(L), dtype=L.dtype) - h * L, right)
    assert relative_error(step(coefficients, x, h).reshape(-1), expected) < 1e-9


def test_symmetric_equations_are_solved_by_conjugate_gradients(monkeypatch) -> None:
    used = []
    for name in ("cg", "bicgstab"):
        solve = getattr(module, name)

        def watched(*given, solve=solve, name=name, **more):
            used.append(name)
            return solve(*given, **more)

        monkeypatch.setattr(module, name, watched)
    step(unit_weights(), state_of(symmetric_graph()), 2.0)
    assert used == ["cg"]
    step(coefficients_of("plain", EDGES), state_of(EDGES), 2.0)
    assert used == ["cg", "bicgstab"]


def test_it_converges_at_order_one() -> None:
    field, x = Quasilinear(EDGES), 0.5 * state_of(EDGES)
    exact = diffuse(field, x, EDGES, 0.5, Solver(rtol=1e-12, atol=1e-12)).final()
    errors = [
        relative_error(
            diffuse(field, x, EDGES, 0.5, Solver("implicit", rtol=1e-12, steps=steps)).final(),
            exact,
        )
        for steps in (20, 40, 80)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("ratio", [1.1, 10.0, 1e4])
def test_it_is_stable_where_explicit_euler_is_not(ratio: float) -> None:
    """Explicit Euler grows from `h = 2 / λ_max` on."""
    coefficients = unit_weights()
    x = state_of(coefficients.edges)
    largest = -float(torch.linalg.eigvalsh(dense_operator(coefficients)).min())
    h = ratio * 2 / largest
    explicit, implicit = x, x
    for _ in range(100):
        explicit = explicit + h * coefficients.velocity(explicit)
        implicit = step(coefficients, implicit, h)
    assert not float(explicit.abs().max()) < 1e4
    # Pure diffusion: towards the mean, never past it.
    assert torch.allclose(implicit, x.mean(0).expand_as(x), atol=1e-3)


def test_a_step_keeps_the_centroid_and_the_range() -> None:
    coefficients = unit_weights()
    x = state_of(coefficients.edges)
    found = step(coefficients, x, 0.7)
    assert torch.allclose(found.mean(0), x.mean(0), rtol=EXACT, atol=EXACT)
    assert (found.amax(0) < x.amax(0)).all()
    assert (found.amin(0) > x.amin(0)).all()


@pytest.mark.parametrize("kind", ["plain", "gain", "damped", "source", "mixed", "heads"])
def test_every_gradient_passes_gradcheck(kind: str) -> None:
    found = coefficients_of(kind, EDGES, 2)
    parts = [found.weight, found.gain, found.mixing, found.damping, found.source]
    leaves = [None if part is None else part.requires_grad_() for part in parts]
    coefficients = Coefficients(EDGES, *leaves)
    x = state_of(EDGES, 2).requires_grad_()

    def solve(x: Tensor, *parts: Tensor) -> Tensor:
        return step(coefficients, x, 0.8, 1e-14)

    given = [leaf for leaf in leaves if leaf is not None]
    # Two solves to a residual, where a difference quotient of 1e-6 divides by 1e-6.
    assert torch.autograd.gradcheck(solve, (x, *given), fast_mode=True)


def test_gradients_go_through_coefficients_of_the_state() -> None:
    field, x = Quasilinear(EDGES), state_of(EDGES).requires_grad_()

    def solve(x: Tensor, *parameters: Tensor) -> Tensor:
        return diffuse(field, x, EDGES, 0.4, Solver("implicit", rtol=1e-14, steps=2)).final()

    assert torch.autograd.gradcheck(solve, (x, *field.parameters()), fast_mode=True)


def test_a_second_derivative_is_refused() -> None:
    coefficients = unit_weights()
    x = state_of(coefficients.edges).requires_grad_()
    with pytest.raises(UsageError, match="second derivative"):
        torch.autograd.grad(step(coefficients, x, 0.5).sum(), x, create_graph=True)


def test_single_precision_is_solved_to_its_precision() -> None:
    coefficients = unit_weights(torch.float32)
    x = state_of(coefficients.edges)
    found = step(coefficients, x.float(), 3.0)
    assert found.dtype is torch.float32
    assert relative_error(found.double(), step(unit_weights(), x, 3.0)) < TOLERANCE[torch.float32]


def growing(rate: float) -> Coefficients:
    """`L = rate · I`, with which `I − hL` is singular at `h = 1 / rate`."""
    none = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), 3)
    gain = torch.full((3,), rate, dtype=torch.float64)
    return Coefficients(none, torch.zeros(0, dtype=torch.float64), gain)


def test_equations_without_a_solution_are_told_with_their_residual() -> None:
    coefficients = growing(2.0)
    with pytest.raises(NotConverged, match=r"residual 1\.0e\+00") as failed:
        step(coefficients, state_of(coefficients.edges), 0.5)
    assert failed.value.status is Status.NOT_CONVERGED
    assert failed.value.residual == pytest.approx(1)


def test_a_diffusion_that_did_not_converge_says_so(monkeypatch) -> None:
    monkeypatch.setattr(module, "ITERATIONS", 1)
    monkeypatch.setattr(module, "RESTART", 1)
    field, x = Quasilinear(EDGES), state_of(EDGES)
    solved = diffuse(field, x, EDGES, 5.0, Solver("implicit", rtol=1e-10, steps=1))
    assert (solved.states, solved.status) == (None, Status.NOT_CONVERGED)
    with pytest.raises(SolverFailed, match=r"did not converge \(residual"):
        solved.final()


def test_a_state_that_is_not_finite_ends_the_step() -> None:
    x = state_of(EDGES)
    x[2, 1] = math.nan
    with pytest.raises(NonFinite):
        step(coefficients_of("plain", EDGES), x, 0.5)


def test_nothing_to_do_is_done() -> None:
    coefficients = unit_weights()
    constant = torch.full((coefficients.edges.nodes, 2), 3.25, dtype=torch.float64)
    assert torch.equal(step(coefficients, constant, 10.0), constant)


@pytest.mark.parametrize("nodes", [3, 4, 5])
@pytest.mark.parametrize("channels", [1, 2])
def test_one_edge_without_its_reverse_is_never_taken_for_symmetric(
    nodes: int, channels: int
) -> None:
    path = [(k, k + 1) for k in range(nodes - 1)]
    pairs = torch.tensor([*path, *((b, a) for a, b in path), (0, nodes - 1)]).t()
    edges = Edges.from_index(pairs, nodes)
    coefficients = Coefficients(edges, torch.ones(edges.count, dtype=torch.float64))
    x = state_of(edges)[:, :channels]
    end = step(coefficients, x, 1000.0, 1e-10)
    operator = torch.stack(
        [coefficients.linear(row.reshape(-1, 1)).squeeze(1) for row in torch.eye(nodes).double()], 1
    )
    expected = torch.linalg.solve(torch.eye(nodes).double() - 1000 * operator, x)
    assert relative_error(end, expected) < 1e-6
