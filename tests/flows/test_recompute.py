"""Checkpointed evaluations: the gradient of the steps taken, in less memory."""

import pytest
import torch
from example_flows import enlarged_field, ragged
from torch import Tensor, nn

from eqflow import rng
from eqflow.edges.backend import current_choice, use_backend
from eqflow.errors import UsageError
from eqflow.flows import Batch, ContinuousFlow, Exact, Hutchinson, MaximumLikelihood, Solver
from eqflow.flows import integrate as integrate_flow
from eqflow.flows.recompute import recomputed
from eqflow.flows.solver import State

EXACT = 1e-12
SOLVERS = [
    {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4},
    {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "implementation": "torchdiffeq"},
    {"method": "adaptive_heun", "rtol": 1e-2, "atol": 1e-2},
    {"method": "rk4", "steps": 3},
    {"method": "midpoint", "steps": 4, "implementation": "torchdiffeq"},
    {"method": "euler", "steps": 5},
]


@pytest.mark.parametrize("settings", SOLVERS)
@pytest.mark.parametrize(
    ("divergence", "weights"),
    [(Exact(), (0.0, 0.0)), (Hutchinson(1), (0.0, 0.0)), (Hutchinson(2), (0.3, 0.05))],
)
def test_the_gradient_of_a_likelihood_is_the_direct_one(
    settings: dict, divergence: object, weights: tuple[float, float]
) -> None:
    """The trace takes a gradient inside the evaluation, with a graph of its own."""
    torch.manual_seed(2)
    field = enlarged_field(width=4, layers=1, gain=100.0)
    x, clouds = ragged(2, (3, 1, 2))
    x.requires_grad_()

    def gradients(gradient: str) -> tuple[Tensor, ...]:
        objective = MaximumLikelihood(Solver(**settings, gradient=gradient), divergence, *weights)
        loss = objective(ContinuousFlow(field), Batch(x, clouds), rng.generator(0)).value
        return torch.autograd.grad(loss, (x, *field.parameters()), allow_unused=True)

    for one, other in zip(gradients("direct"), gradients("checkpoint"), strict=True):
        if one is None or other is None:
            # A parameter no output depends on has no gradient, or one of zeros.
            assert all(g is None or not g.any() for g in (one, other))
            continue
        scale = float(one.abs().max())
        assert torch.allclose(one, other, rtol=EXACT, atol=EXACT * max(scale, 1))


def test_an_evaluation_is_differentiated_once_and_says_so_of_a_second_time() -> None:
    weight = nn.Parameter(torch.tensor([[0.3, -0.8], [0.9, 0.1]], dtype=torch.float64))

    def value(y: Tensor, _weight: Tensor) -> Tensor:
        field = recomputed(lambda t, y: torch.tanh(y.reshape(2, 2) @ weight).reshape(-1), (weight,))
        return field(torch.tensor(0.5), y)

    y = torch.tensor([0.1, 0.4, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (y, weight))
    with pytest.raises(UsageError, match=r"solver\.gradient=direct"):
        torch.autograd.grad(value(y, weight).sum(), weight, create_graph=True)


def test_only_states_are_kept_between_the_passes() -> None:
    """Of each evaluation one state is saved, whatever the field keeps inside."""
    wide = nn.Linear(3, 500, dtype=torch.float64)
    start = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)

    def right_hand_side(t: Tensor, state: State) -> State:
        return (torch.tanh(wide(state[0])) @ wide.weight / 500,)

    def saved(gradient: str) -> int:
        sizes = []
        parameters = {p.data_ptr() for p in wide.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in parameters:
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            integrate_flow(
                right_hand_side,
                (start,),
                torch.tensor([0.0, 1.0], dtype=torch.float64),
                Solver("rk4", steps=5, gradient=gradient),
                parameters=wide.parameters(),
            ).final()
        return sum(sizes)

    evaluations = 20
    assert saved("checkpoint") <= evaluations * (start.numel() + 1)
    assert saved("direct") > evaluations * 4 * 500


def test_a_weight_changed_between_the_passes_is_an_error() -> None:
    weight = nn.Parameter(torch.ones(2))
    y = torch.ones(2, requires_grad=True)
    value = recomputed(lambda t, y: y * weight, (weight,))(torch.tensor(0.0), y)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_field_that_depends_on_nothing_has_no_gradient(frozen: bool) -> None:
    weight = nn.Parameter(torch.ones(2), requires_grad=not frozen)
    y = torch.ones(2, requires_grad=True)
    value = recomputed(lambda t, y: torch.ones(2), (weight,))(torch.tensor(0.0), y)
    (value.sum() + y.sum()).backward()
    assert torch.equal(y.grad, torch.ones(2))
    assert weight.grad is None


def test_the_second_time_is_on_the_backend_of_the_first() -> None:
    seen = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.append(current_choice())
        return y * t

    y = torch.ones(2, requires_grad=True)
    with use_backend("torch", precision="ieee", strict=True):
        value = recomputed(field, ())(torch.tensor(2.0), y)
    value.sum().backward()
    assert len(seen) == 2
    assert seen[0] == seen[1] != current_choice()
