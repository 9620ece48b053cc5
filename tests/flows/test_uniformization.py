"""Linear diffusion by a series: equal to the matrix exponential, within a bound that is stated."""

import math

import numpy as np
import pytest
import torch
from example_diffusions import (
    KINDS,
    coefficients_of,
    dense_operator,
    dense_solution,
    irregular_graph,
    relative_error,
    state_of,
    symmetric_graph,
)
from scipy.integrate import quad
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.edges import Edges, segment_softmax
from eqflow.errors import UsageError
from eqflow.flows import Status, propagate
from eqflow.flows.effort import Effort
from eqflow.flows.evaluation import NonFinite, Stopped
from eqflow.flows.operator_bound import Bound, bound
from eqflow.flows.power_series import combine_powers
from eqflow.flows.uniformization import series_weights
from eqflow.geometry import Segments
from eqflow.nn.diffusion import Coefficients

EXACT = TOLERANCE[torch.float64]
EDGES = irregular_graph()


def with_gradients(coefficients: Coefficients) -> tuple[Coefficients, list[Tensor]]:
    parts = [coefficients.weight, coefficients.gain, coefficients.mixing, coefficients.damping]
    parts.append(coefficients.source)
    leaves = [None if p is None else p.clone().requires_grad_() for p in parts]
    return Coefficients(coefficients.edges, *leaves), [p for p in leaves if p is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.05, 1.0, 6.0])
def test_the_solution_is_that_of_the_matrix_exponential(kind: str, t: float) -> None:
    coefficients, x = coefficients_of(kind, EDGES), state_of(EDGES)
    found = propagate(coefficients, x, [0.0, t], tolerance=1e-13).states[-1]
    assert relative_error(found, dense_solution(coefficients, x, t)) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-8])
def test_the_error_is_within_the_stated_bound(kind: str, tolerance: float) -> None:
    for t in (0.3, 2.0):
        coefficients, x = coefficients_of(kind, EDGES), state_of(EDGES)
        limits = bound(coefficients)
        found = propagate(coefficients, x, [0.0, t], tolerance=tolerance).states[-1]
        c = limits.shift + limits.norm
        allowed = math.exp(c * t) * limits.size(x)
        if coefficients.source is not None:
            integral = quad(lambda u: math.exp(c * u), 0, t)[0]  # noqa: B023
            allowed += 2 * limits.size(coefficients.source) * integral
        error = limits.size(found - dense_solution(coefficients, x, t))
        assert error <= tolerance * allowed + EXACT * limits.size(x)


@pytest.mark.parametrize("kind", KINDS)
def test_shift_and_norm_bound_the_operator(kind: str) -> None:
    for seed in range(5):
        coefficients = coefficients_of(kind, EDGES, seed=seed)
        limits = bound(coefficients)
        L = dense_operator(coefficients)
        rest = L - limits.shift * torch.eye(len(L), dtype=L.dtype)
        # No eigenvalue is larger than any norm.
        assert float(torch.linalg.eigvals(rest).abs().max()) <= limits.norm * (1 + EXACT)
        for power in range(3):
            v = state_of(EDGES, seed=power)
            moved = (rest @ v.reshape(-1)).reshape(v.shape)
            assert limits.size(moved) <= limits.norm * limits.size(v) * (1 + EXACT)
        if limits.is_positive:
            assert float(rest.min()) >= -EXACT * limits.norm


def test_rows_columns_and_symmetric_weights_that_are_normalised_cannot_grow() -> None:
    logits = torch.randn(EDGES.count, dtype=torch.float64)
    rows = segment_softmax(logits, EDGES)
    assert bound(Coefficients(EDGES, rows)).norm == pytest.approx(1)

    columns = segment_softmax(logits, EDGES, "sender")
    total = torch.zeros(EDGES.nodes, dtype=torch.float64).index_add(0, EDGES.receiver, columns)
    limits = bound(Coefficients(EDGES, columns, gain=total - 1))
    assert (limits.shift, limits.norm, limits.order) == (pytest.approx(-1), pytest.approx(1), 1.0)

    graph = symmetric_graph()
    degree = graph.incoming.lengths.double()
    weight = (degree[graph.sender] * degree[graph.receiver]).rsqrt()
    total = torch.zeros_like(degree).index_add(0, graph.receiver, weight)
    limits = bound(Coefficients(graph, weight, gain=total))
    assert (limits.shift, limits.norm, limits.order) == (0, pytest.approx(1), 2.0)


def test_the_number_of_products_is_little_more_than_rate_times_time() -> None:
    weight = segment_softmax(torch.randn(EDGES.count, dtype=torch.float64), EDGES)
    x = state_of(EDGES)
    for t in (1.0, 18.3, 100.0):
        used = propagate(Coefficients(EDGES, weight), x, [0, t], tolerance=1e-5).products
        assert t < used < t + 6 * math.sqrt(t) + 8


@pytest.mark.parametrize(
    ("shift", "norm", "t"),
    [(-3, 3, 2), (2, 1, 1.9), (0, 1, 3), (-100, 5, 3), (-1e-9, 1e-9, 1), (-0.5, 40, 1), (-1, 0, 2)],
)
def test_the_weights_of_the_series_are_its_integrals(shift: float, norm: float, t: float) -> None:
    weights, rest = series_weights(Bound(shift, norm, 1.0, True), [t / 3, t], 1e-12)
    for row, end in zip(weights, (t / 3, t), strict=True):
        for k in (0, 1, 5, len(rest) - 1):
            if k >= len(rest):
                continue

            def integrand(u: float, k: int = k) -> float:
                growth = (norm * u) ** k if k else 1.0
                return math.exp(shift * u) * growth / math.factorial(k)

            expected = quad(integrand, 0, end, epsabs=0, epsrel=1e-12, limit=500)[0]
            assert row[k] == pytest.approx(expected, rel=1e-9)
    assert np.all(np.diff(rest) <= 0)


def test_a_long_time_neither_overflows_nor_underflows() -> None:
    """`exp(−rt)` is 0 in float32 from rt = 104 on, and in float64 from 746 on."""
    graph = symmetric_graph()
    weight = torch.ones(graph.count)
    for dtype in (torch.float32, torch.float64):
        x = state_of(graph).to(dtype)
        coefficients = Coefficients(graph, weight.to(dtype))
        found = propagate(coefficients, x, [0.0, 300.0], tolerance=1e-6).states[-1]
        # On a connected graph nothing but the mean is left.
        assert torch.allclose(found, x.mean(0).expand_as(x), atol=TOLERANCE[dtype])


def test_several_times_cost_no_more_products_than_the_last() -> None:
    coefficients, x = coefficients_of("source", EDGES), state_of(EDGES)
    times = [0.0, 0.4, 1.1, 3.0]
    found = propagate(coefficients, x, times, tolerance=1e-13)
    assert found.products == propagate(coefficients, x, [0, 3.0], tolerance=1e-13).products
    assert torch.equal(found.states[0], x)
    for t, state in zip(times[1:], found.states[1:], strict=True):
        assert relative_error(state, dense_solution(coefficients, x, t)) < EXACT


@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_times_on_both_sides_of_a_cut_are_all_given(kind: str) -> None:
    coefficients, x = coefficients_of(kind, EDGES), state_of(EDGES)
    longest = bound(coefficients).longest_step(1e-12, torch.finfo(x.dtype).eps)
    times = [0.0, *(longest * part for part in (0.3, 0.99, 1.01, 1.5, 2.2))]
    found = propagate(coefficients, x, times, tolerance=1e-12).states
    for before, after, start, end in zip(found, found[1:], times, times[1:], strict=False):
        step = propagate(coefficients, before, [start, end], tolerance=1e-12).states[-1]
        assert relative_error(after, step) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_passes_gradcheck(kind: str) -> None:
    coefficients, leaves = with_gradients(coefficients_of(kind, EDGES, 2))
    x = state_of(EDGES, 2).requires_grad_()
    end = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def solve(end: Tensor, x: Tensor, *parts: Tensor) -> Tensor:
        times = torch.stack([torch.zeros_like(end), end / 3, end])
        return propagate(coefficients, x, times, tolerance=1e-15).states[1:]

    assert torch.autograd.gradcheck(solve, (end, x, *leaves), fast_mode=True)


def test_second_derivatives_pass_gradgradcheck() -> None:
    graph = irregular_graph(5, 8)
    coefficients, leaves = with_gradients(coefficients_of("gain", graph, 2))
    x = state_of(graph, 2).requires_grad_()

    def solve(x: Tensor, *parts: Tensor) -> Tensor:
        return propagate(coefficients, x, [0, 0.7], tolerance=1e-15).states[-1]

    assert torch.autograd.gradgradcheck(solve, (x, *leaves), fast_mode=True)


def test_the_derivative_by_hand_is_that_of_the_formula() -> None:
    """Where the diagonal is rounding it is left out of the value, and not out of the gradient."""
    weight = segment_softmax(torch.randn(EDGES.count, dtype=torch.float64), EDGES)
    every = Edges.from_index(
        torch.cat([torch.stack([EDGES.sender, EDGES.receiver]), torch.full((2, 1), 8)], 1), 9
    )
    weight = torch.cat([weight, weight.new_ones(1)]).requires_grad_()
    gain = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    v = state_of(every).requires_grad_()
    b = np.array([[0.5, 0.3, 0.2, 0.1], [0.1, 0.2, 0.2, 0.4]])

    def powers(weight: Tensor, gain: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return combine_powers(every, weight, gain, v, b, -1.0, 1.0)

    assert torch.autograd.gradcheck(powers, (weight, gain, v))


def test_forward_mode_passes_through() -> None:
    coefficients, x = coefficients_of("plain", EDGES), state_of(EDGES)
    tangent = state_of(EDGES, seed=9)

    def solve(x: Tensor) -> Tensor:
        return propagate(coefficients, x, [0, 0.7], tolerance=1e-14).states[-1]

    _, pushed = torch.func.jvp(solve, (x,), (tangent,))
    assert relative_error(pushed, solve(tangent)) < EXACT


def test_a_constant_state_stays_bit_by_bit_and_a_shift_costs_no_digits() -> None:
    weight = segment_softmax(torch.randn(EDGES.count), EDGES)
    coefficients, x = Coefficients(EDGES, weight), state_of(EDGES).float()
    constant = torch.full_like(x, 12345.678)
    assert torch.equal(propagate(coefficients, constant, [0, 5.0]).states[-1], constant)

    near = propagate(coefficients, x, [0, 5.0]).states[-1]
    far = propagate(coefficients, x + 2.0**16, [0, 5.0]).states[-1] - 2.0**16
    # The input itself is rounded to 2⁻⁷ there.
    assert float((near - far).abs().max()) < 2.0**-6


def test_symmetric_weights_conserve_the_centroid_and_shrink_the_range() -> None:
    graph = symmetric_graph()
    coefficients, x = Coefficients(graph, torch.ones(graph.count).double()), state_of(graph)
    found = propagate(coefficients, x, [0, 0.5, 2.0], tolerance=1e-12).states
    assert torch.allclose(found.mean(1), x.mean(0).expand(3, -1), rtol=EXACT, atol=EXACT)
    ranges = found.amax(1) - found.amin(1)
    assert (ranges.diff(dim=0) < 0).all()


def test_flows_over_two_times_compose() -> None:
    coefficients, x = coefficients_of("everything", EDGES), state_of(EDGES)
    halfway = propagate(coefficients, x, [0, 0.6], tolerance=1e-13).states[-1]
    twice = propagate(coefficients, halfway, [0, 0.9], tolerance=1e-13).states[-1]
    once = propagate(coefficients, x, [0, 1.5], tolerance=1e-13).states[-1]
    assert relative_error(twice, once) < EXACT


def test_graphs_of_a_batch_see_each_other_within_the_tolerance_only() -> None:
    one, other = irregular_graph(), symmetric_graph()
    clouds = Segments(torch.tensor([0, 9, 18]))
    both = Edges.from_index(
        torch.cat(
            [
                torch.stack([one.sender, one.receiver]),
                torch.stack([other.sender, other.receiver]) + 9,
            ],
            1,
        ),
        18,
        clouds,
    )
    first, second = coefficients_of("plain", one).weight, coefficients_of("plain", other).weight
    joint = Coefficients(both, torch.cat([first, 7 * second]))
    x = torch.cat([state_of(one), state_of(other)])
    found = propagate(joint, x, [0, 1.0], tolerance=1e-13).states[-1]
    alone = propagate(Coefficients(one, first), x[:9], [0, 1.0], tolerance=1e-13).states[-1]
    assert relative_error(found[:9], alone) < EXACT


def test_degenerate_graphs_are_solved() -> None:
    none = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), 3)
    x = state_of(none)
    source = state_of(none, seed=2)
    empty = torch.zeros(0, dtype=torch.float64)
    still = propagate(Coefficients(none, empty, source=source), x, [0, 2.0]).states[-1]
    assert torch.allclose(still, x + 2 * source)
    nobody = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), 0)
    nothing = propagate(Coefficients(nobody, empty), x[:0], [0, 2.0]).states[-1]
    assert nothing.shape == (0, 3)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [1.0, 0.0], [0.0, math.nan], [0.0, math.inf]])
def test_times_that_do_not_rise_are_refused(times: list[float]) -> None:
    with pytest.raises(UsageError, match="times"):
        propagate(coefficients_of("plain", EDGES), state_of(EDGES), times)


def test_a_tolerance_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="tolerance"):
        propagate(coefficients_of("plain", EDGES), state_of(EDGES), [0, 1], tolerance=0)


def test_more_products_than_allowed_end_the_solve_before_they_are_made() -> None:
    coefficients = coefficients_of("plain", EDGES)
    effort = Effort(limit=10)
    with pytest.raises(Stopped) as stopped:
        propagate(coefficients, state_of(EDGES), [0, 50.0], effort=effort)
    assert stopped.value.status is Status.STEP_LIMIT
    assert effort.products == 0


@pytest.mark.parametrize("kind", ["plain", "everything"])
@pytest.mark.parametrize("broken", ["state", "weight"])
def test_values_that_are_not_finite_are_told_where_they_are(kind: str, broken: str) -> None:
    coefficients, x = coefficients_of(kind, EDGES), state_of(EDGES)
    row = 4
    if broken == "state":
        x[row, 1] = math.nan
    else:
        coefficients.weight[EDGES.receiver == row] = math.inf
    with pytest.raises(NonFinite) as stopped:
        propagate(coefficients, x, [0, 1.0])
    assert not torch.isfinite(stopped.value.broken[row]).all()


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_the_gradient_at_an_equilibrium_is_that_of_the_matrix_exponential(tolerance: float) -> None:
    """There every power of the velocity vanishes, and none of its derivatives does."""
    edges = Edges.from_index(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
    degree = edges.incoming.lengths.double()
    weight = (degree[edges.sender] * degree[edges.receiver]).rsqrt()
    W = torch.tensor([[1.0, 0.3], [0.3, 0.8]], dtype=torch.float64)
    A = torch.zeros(3, 3, dtype=torch.float64)
    A[edges.receiver, edges.sender] = weight
    L = torch.kron(A, W) - torch.eye(6, dtype=torch.float64)
    parts = Coefficients(
        edges, weight, gain=edges.incoming.sum(weight), mixing=W, damping=torch.ones(()).double()
    )
    covector = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    for x in (torch.zeros(3, 2, dtype=torch.float64), 1e-9 * covector):
        x = x.clone().requires_grad_()
        end = propagate(parts, x, [0.0, 2.0], tolerance=tolerance).states[-1]
        (found,) = torch.autograd.grad(end, x, covector)
        expected = torch.linalg.matrix_exp(2 * L).t() @ covector.reshape(-1)
        torch.testing.assert_close(found.reshape(-1), expected, rtol=10 * tolerance, atol=0)
