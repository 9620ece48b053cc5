"""Which keys of a solver have no effect: those, and only those, that change no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.flows.diffusion_arguments import is_linear
from eqflow.flows.graph_diffusion import diffuse
from eqflow.flows.solver import ADAPTIVE, DIFFUSION, FIXED, STIFF, Solver
from eqflow.nn.diffusion import GRAND
from eqflow.train.solver_unused import without_effect

CHANGES = {"solver.steps": {"steps": 3}, "solver.rtol": {"rtol": 0.3}, "solver.atol": {"atol": 0.3}}


def answers(method: str, *, nonlinear: bool) -> dict[str, bool]:
    """Whether each key changes the answer of a diffusion."""
    torch.manual_seed(0)
    field = GRAND(4, heads=2, attention_width=4, nonlinear=nonlinear).double()
    assert is_linear(field) != nonlinear
    pairs = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 4]])
    edges = Edges.from_index(torch.cat([pairs, pairs.flip(0)], 1), 5)
    x = 3 * torch.randn(5, 4, dtype=torch.float64)
    solver = Solver(method, rtol=1e-3, atol=1e-3, steps=2)

    @torch.no_grad()
    def solved(by: Solver) -> Tensor:
        return diffuse(field, x, edges, 4.0, by).require()[-1]

    usual = solved(solver)
    return {
        key: not torch.equal(usual, solved(replace(solver, **change)))
        for key, change in CHANGES.items()
    }


@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED, *DIFFUSION])
def test_keys_without_effect_are_those_that_change_no_answer(method: str, nonlinear: bool) -> None:
    changing = answers(method, nonlinear=nonlinear)
    unused = without_effect(method, is_linear=not nonlinear)
    assert set(unused) == {key for key, changes in changing.items() if not changes}


@pytest.mark.parametrize("method", [*ADAPTIVE, *STIFF, *FIXED, *DIFFUSION])
def test_reasons_name_the_method_and_a_way_out(method: str) -> None:
    for is_linear_ in (False, True):
        for line in without_effect(method, is_linear=is_linear_).values():
            assert line.startswith(f"found with solver.method={method}")
            assert "eave it out" in line


def test_stretches_are_counted_whatever_the_method() -> None:
    assert without_effect("dopri5", is_revealing=True) == {}
    assert set(without_effect("rk4", is_revealing=True)) == {"solver.rtol", "solver.atol"}


def test_a_method_that_there_is_not_has_no_key_without_effect() -> None:
    assert without_effect("magic") == {}
