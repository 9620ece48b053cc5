"""Exponential integrators: their order, and that they are exact where nothing changes."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from example_diffusions import (
    Quasilinear,
    coefficients_of,
    dense_solution,
    irregular_graph,
    relative_error,
    state_of,
)
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.edges import Edges
from eqflow.flows import Solver, diffuse
from eqflow.flows.effort import Effort
from eqflow.flows.exponential import exponential_euler_step, exponential_midpoint_step
from eqflow.nn.diffusion import GRAND

EXACT = TOLERANCE[torch.float64]
EDGES = irregular_graph()
ORDERS = {"exponential_euler": 1, "exponential": 2}
Step = Callable[..., Tensor]


def reference(field: Quasilinear, x: Tensor, time: float) -> Tensor:
    solver = Solver("dopri5", rtol=1e-12, atol=1e-12, step_limit=10_000)
    return diffuse(field, x, EDGES, time, solver).final().detach()


@pytest.mark.parametrize("method", ORDERS)
def test_it_converges_at_its_order(method: str) -> None:
    field, x = Quasilinear(EDGES, strength=0.5), 0.5 * state_of(EDGES)
    exact = reference(field, x, 0.5)
    errors = []
    for steps in (20, 40, 80):
        found = diffuse(field, x, EDGES, 0.5, Solver(method, rtol=1e-12, steps=steps))
        assert found.evaluations == steps + (method == "exponential")
        errors.append(relative_error(found.final(), exact))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(ORDERS[method], abs=0.2)


@pytest.mark.parametrize("method", ORDERS)
def test_it_comes_to_what_dopri5_comes_to(method: str) -> None:
    field, x = Quasilinear(EDGES, strength=0.01), 0.5 * state_of(EDGES)
    found = diffuse(field, x, EDGES, 0.1, Solver(method, rtol=1e-13, steps=20)).final()
    assert relative_error(found, reference(field, x, 0.1)) < 1e-3 / 20 ** ORDERS[method]


def midpoint_step(*given: object) -> Tensor:
    return exponential_midpoint_step(*given)[0]


@pytest.mark.parametrize("step", [exponential_euler_step, midpoint_step])
@pytest.mark.parametrize("kind", ["plain", "source", "mixed", "everything"])
def test_one_step_is_exact_for_constant_coefficients(step: Step, kind: str) -> None:
    constant, x = coefficients_of(kind, EDGES), state_of(EDGES)
    found = step(lambda t, x: constant, 1.0, 3.5, x, 1e-13, Effort())
    assert relative_error(found, dense_solution(constant, x, 2.5)) < EXACT


def test_coefficients_are_asked_for_where_the_methods_say() -> None:
    constant, x, asked = coefficients_of("plain", EDGES), state_of(EDGES), []

    def at(t: float, state: Tensor) -> object:
        asked.append((t, state))
        return constant

    exponential_euler_step(at, 1.0, 3.0, x, 1e-6, Effort())
    assert asked == [(1.0, x)]
    asked.clear()
    arrived, before = exponential_midpoint_step(at, 1.0, 3.0, x, 1e-13, Effort())
    assert [t for t, _ in asked] == [1.0, 2.0]
    assert relative_error(asked[1][1], dense_solution(constant, x, 1.0)) < EXACT
    asked.clear()
    exponential_midpoint_step(at, 3.0, 4.0, arrived, 1e-13, Effort(), before)
    assert [t for t, _ in asked] == [2.0, 3.5]


@pytest.mark.parametrize("method", ORDERS)
def test_every_gradient_passes_gradcheck(method: str) -> None:
    field, x = Quasilinear(EDGES), state_of(EDGES).requires_grad_()
    solver = Solver(method, rtol=1e-15, steps=2)

    def solve(x: Tensor, *parameters: Tensor) -> Tensor:
        return diffuse(field, x, EDGES, 0.4, solver).final()

    assert torch.autograd.gradcheck(solve, (x, *field.parameters()), fast_mode=True)


def test_stiff_diffusion_is_no_obstacle() -> None:
    """Steps tens of times as long as an explicit method could take."""
    constant, x = coefficients_of("plain", EDGES), state_of(EDGES)
    fast = torch.nn.Parameter(50 * constant.weight)
    field = Quasilinear(EDGES, strength=0.0)
    field.weight, field.source = fast, torch.nn.Parameter(torch.zeros_like(x))
    found = diffuse(field, x, EDGES, 1.0, Solver("exponential", rtol=1e-8, steps=4)).final()
    explicit = diffuse(field, x, EDGES, 1.0, Solver("euler", steps=40)).final()
    assert float(found.detach().abs().max()) <= float(x.abs().max())
    assert float(explicit.detach().abs().max()) > 1e6


def test_attention_diffusion_needs_a_fraction_of_the_evaluations_of_dopri5() -> None:
    loops = torch.arange(9).repeat(2, 1)
    graph = torch.cat([torch.stack([EDGES.sender, EDGES.receiver]), loops], 1)
    edges, x = Edges.from_index(graph, 9), state_of(EDGES, 4)
    field = GRAND(4, heads=2, attention_width=4, nonlinear=True).double()
    exact = diffuse(field, x, edges, 6.0, Solver(rtol=1e-11, atol=1e-11))
    explicit = diffuse(field, x, edges, 6.0, Solver(rtol=1e-5, atol=1e-5))
    frozen = diffuse(field, x, edges, 6.0, Solver("exponential", rtol=1e-7, steps=4))
    assert frozen.evaluations == 5 < explicit.evaluations / 6
    assert relative_error(frozen.final(), exact.final()) < 1e-4
