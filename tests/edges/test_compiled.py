"""Message passes through a C++ compiler: those of the plain formulas, and their derivatives."""

import shutil
from dataclasses import replace

import pytest
import torch
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges, use_backend
from eqflow.edges.backend import as_chosen, current_choice
from eqflow.edges.reference import compiled, edge_mlp
from eqflow.edges.reference.edge_mlp import Inputs, Tangents
from eqflow.errors import UsageError
from eqflow.nn import EGNNField

needs_a_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)
WIDTH = 16
# What torch warns of in its own compiler.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


def drawn(*shape: int) -> Tensor:
    return rng.normal(shape, torch.zeros((), dtype=torch.float64), rng.generator(0, *shape))


def problem(*, gates: bool, envelope: bool) -> tuple[Inputs, Tangents, object, Edges]:
    """Two clouds, the parts of a dual pass that ask for gradients, and a network."""
    edges = Edges.complete(torch.tensor([0, 9, 21]))
    with rng.seeded(0, "weights"):
        layer = EGNNField(width=WIDTH, layers=2, attention=gates).double().egnn.layers[0]
    parts = [drawn(21, WIDTH), drawn(21, WIDTH) + 1, drawn(edges.count, 2)]
    along = [drawn(21, 1, WIDTH), None, drawn(edges.count, 1, 2)]
    weights = [drawn(edges.count, 1), drawn(edges.count, 1, 1)] if envelope else [None, None]
    for part in (*parts, *along, *weights):
        if part is not None:
            part.requires_grad_()
    return (
        Inputs(*parts, weights[0]),
        Tangents(*along, weights[1]),
        layer.edge_network(),
        edges,
    )


def gradients(found: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    loss = sum((part.cos() * (k + 1)).sum() for k, part in enumerate(found))
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


@needs_a_compiler
def test_values_and_gradients_are_those_of_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BLOCK", 60)  # several blocks
    inputs, _, network, edges = problem(gates=False, envelope=False)
    asked = [part for part in (*inputs, *network.tensors()) if part is not None]
    expected = edge_mlp.composed(inputs, network, edges)
    found = compiled.edge_mlp(inputs, network, edges)
    pairs = [*zip(found, expected, strict=True)]
    pairs += zip(gradients(found, asked), gradients(expected, asked), strict=True)
    tolerance = TOLERANCE[torch.float64]
    for here, there in pairs:
        torch.testing.assert_close(here, there, rtol=tolerance, atol=tolerance)


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gates", "envelope"), [(True, True), (False, False)], ids=["gates, envelope", "neither"]
)
def test_values_tangents_and_gradients_are_those_of_the_formulas(
    gates: bool, envelope: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BLOCK", 60)  # several blocks
    inputs, tangents, network, edges = problem(gates=gates, envelope=envelope)
    asked = [part for part in (*inputs, *tangents, *network.tensors()) if part is not None]
    expected = edge_mlp.composed_dual(inputs, tangents, network, edges)
    found = compiled.dual_edge_mlp(inputs, tangents, network, edges)
    tolerance = TOLERANCE[torch.float64]
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=tolerance, atol=tolerance)
    for here, there in zip(gradients(found, asked), gradients(expected, asked), strict=True):
        torch.testing.assert_close(here, there, rtol=tolerance, atol=tolerance)


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_field_and_its_gradients_are_the_same_compiled(dtype: torch.dtype) -> None:
    with rng.seeded(0, "weights"):
        field = EGNNField(width=64, layers=3).to(dtype)
    clouds = torch.tensor([0, *torch.full((30,), 12).cumsum(0)])
    x = drawn(360, 3).to(dtype)
    edges = Edges.complete(clouds)
    t = torch.tensor(0.3, dtype=dtype)
    found = []
    for wanted in (True, False):
        with as_chosen(replace(current_choice(), compiled=wanted)):
            value = field(t, x, edges)
            found.append((value, *torch.autograd.grad(value.square().sum(), field.parameters())))
    tolerance = TOLERANCE[dtype]
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=100 * tolerance, atol=100 * tolerance)


@needs_a_compiler
@pytest.mark.slow
def test_a_gradient_of_a_gradient_is_that_of_the_formulas() -> None:
    inputs, _, network, edges = problem(gates=True, envelope=False)
    found = []
    for way in (compiled.edge_mlp, edge_mlp.composed):
        out = way(inputs, network, edges)
        (first,) = torch.autograd.grad(
            out[0].cos().sum() + out[1].sin().sum(), inputs.receiver, create_graph=True
        )
        found.append(torch.autograd.grad(first.square().sum(), inputs.receiver)[0])
    torch.testing.assert_close(*found)


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = torch._inductor.exc.InductorError.__new__(torch._inductor.exc.InductorError)
    RuntimeError.__init__(failure, "no g++ here")

    def fails(*_: object) -> None:
        raise failure

    monkeypatch.setattr(compiled, "_compiled", lambda function: fails)
    inputs, _, network, edges = problem(gates=False, envelope=False)
    with pytest.raises(UsageError, match=r"no g\+\+ here.*train\.compile"):
        compiled.edge_mlp(inputs, network, edges)


def test_compiling_is_asked_for_by_a_block() -> None:
    assert not current_choice().compiled
    with use_backend("torch", compiled=True):
        assert current_choice().compiled
