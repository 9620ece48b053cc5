"""Derivatives of the fused message pass against those of the composed one."""

import pytest
import torch
from passes import CLOSE, DEVICE, GRAPHS_TO_PASS, OPTIONS, directions, given, inputs, network
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jvp, vmap
from torch.testing import assert_close

from eqflow.edges import (
    Edges,
    MessageDual,
    MessageInputs,
    MessageTangents,
    egcl_messages,
    egcl_messages_dual,
    use_backend,
)
from eqflow.edges.kernels import messages_backward, messages_dual_backward

F = 32
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
some_graphs = pytest.mark.parametrize("name", GRAPHS_TO_PASS)


class Pass:
    """One pass as a function of its tensors: x, receiver, sender, scalars, envelope, weights."""

    def __init__(self, edges: Edges, width: int = F, scalars: int = 1, **options) -> None:
        self.edges, self.network = edges, network(width, scalars, **options)
        self.inputs = inputs(edges, width, scalars)
        self.tensors = given(*self.inputs, *self.network.tensors())

    def unpacked(self, tensors):
        rest = list(tensors)
        taken = [None if value is None else rest.pop(0) for value in self.inputs]
        return MessageInputs(*taken), self.network.with_tensors(tuple(rest))

    def run(self, backend: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        (x, receiver, sender, scalars, envelope), net = self.unpacked(tensors)
        with use_backend(backend, precision="ieee", strict=True):
            return egcl_messages(x, receiver, sender, scalars, net, self.edges, envelope)

    def fused(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return self.run("triton", *tensors)

    def composed(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return self.run("torch", *tensors)

    def leaves(self) -> list[Tensor]:
        return [value.clone().requires_grad_() for value in self.tensors]


def made(name: str, **options) -> Pass:
    return Pass(GRAPHS_TO_PASS[name].edges(DEVICE), **options)


def all_close(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, **CLOSE)


def gradients(function, leaves: list[Tensor], **options) -> tuple[Tensor, ...]:
    """Of both sums, each weighted at random."""
    source = torch.Generator().manual_seed(1)
    results = function(*leaves)
    weights = [torch.randn(value.shape, generator=source).to(value) for value in results]
    return torch.autograd.grad(results, leaves, weights, materialize_grads=True, **options)


# Reverse mode.


@every_option
@pytest.mark.parametrize("scalars", [0, 2])
def test_the_gradient_is_that_of_the_composition(scalars: int, options: dict) -> None:
    case = made("ragged", scalars=scalars, **options)
    leaves = case.leaves()
    all_close(gradients(case.fused, leaves), gradients(case.composed, leaves))


@some_graphs
def test_every_graph_has_its_gradient(name: str) -> None:
    case = made(name)
    leaves = case.leaves()
    all_close(gradients(case.fused, leaves), gradients(case.composed, leaves))


@pytest.mark.parametrize("width", [5, 64, 128, 256])
def test_every_width_has_its_gradient(width: int) -> None:
    case = made("unsorted clouds", width=width)
    leaves = case.leaves()
    all_close(gradients(case.fused, leaves), gradients(case.composed, leaves))


def test_operands_are_multiplied_out_some_tiles_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(messages_backward, "OPERANDS_FROM", F)
    monkeypatch.setattr(messages_backward, "ELEMENTS_AT_ONCE", 64 * F)
    case = made("one receiver of many")
    leaves = case.leaves()
    all_close(gradients(case.fused, leaves), gradients(case.composed, leaves))


def test_the_gradient_by_inputs_alone_is_the_same() -> None:
    case = made("ragged")
    leaves = case.leaves()
    fixed = [value.detach() for value in leaves[5:]]
    found = gradients(lambda *moving: case.fused(*moving, *fixed), leaves[:5])
    all_close(found, gradients(case.composed, leaves)[:5])


def test_the_same_gradient_has_the_same_bits() -> None:
    case = made("one receiver of many")
    leaves = case.leaves()
    first, second = (gradients(case.fused, leaves) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_gradient_is_finite_where_points_coincide() -> None:
    case = made("ragged")
    leaves = [torch.zeros_like(case.tensors[0]), *case.tensors[1:]]
    leaves = [value.clone().requires_grad_() for value in leaves]
    found = gradients(case.fused, leaves)
    assert all(value.isfinite().all() for value in found)
    all_close(found, gradients(case.composed, leaves))


@pytest.mark.parametrize("name", ["repeated and loops", "one receiver of many", "no edges"])
def test_the_gradient_has_that_of_the_composition(name: str) -> None:
    case = made(name, width=5)
    leaves = case.leaves()

    def penalty(function) -> tuple[Tensor, ...]:
        first = gradients(function, leaves, create_graph=True)
        loss = sum(value.square().sum() for value in first)
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    all_close(penalty(case.fused), penalty(case.composed))


# Forward mode.


@pytest.mark.parametrize("moving", [1, 5, 15], ids=["x", "inputs", "weights too"])
def test_forward_mode_is_that_of_the_composition(moving: int) -> None:
    case = made("ragged", width=5)
    still = case.tensors[moving:]
    tangents = tuple(torch.randn_like(value) for value in case.tensors[:moving])

    def along(function) -> tuple[Tensor, Tensor]:
        point = tuple(case.tensors[:moving])
        return jvp(lambda *values: function(*values, *still), point, tangents)[1]

    expected = along(case.composed)
    all_close(along(case.fused), expected)
    with forward_ad.dual_level():
        moved = map(forward_ad.make_dual, case.tensors[:moving], tangents)
        found = [forward_ad.unpack_dual(v).tangent for v in case.fused(*moved, *still)]
    all_close(found, expected)


def test_many_directions_at_once_are_one_pass_with_as_many_tangents() -> None:
    case = made("ragged", width=5)
    leaves = case.leaves()
    tangents = torch.randn(3, *leaves[0].shape).to(leaves[0])

    def along(function, tangent: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(lambda x: function(x, *leaves[1:]), (leaves[0],), (tangent,))[1]

    found = vmap(lambda tangent: along(case.fused, tangent))(tangents)
    expected = vmap(lambda tangent: along(case.composed, tangent))(tangents)
    all_close(found, expected)

    def loss(results) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(v.square().sum() for v in results), leaves)

    all_close(loss(found), loss(expected))


def test_transforms_of_torch_func_pass_through() -> None:
    case = made("unsorted clouds", width=5)
    rest = case.tensors[1:]
    clouds = torch.randn(2, *case.tensors[0].shape).to(rest[0])

    def energy(function, x: Tensor) -> Tensor:
        shift, message = function(x, *rest)
        return shift.square().sum() + message.square().sum()

    for transform in (vmap, lambda f: vmap(grad(f)), lambda f: lambda x: hessian(f)(x[0])):
        found = transform(lambda x: energy(case.fused, x))(clouds)
        all_close([found], [transform(lambda x: energy(case.composed, x))(clouds)])


# Reverse mode through tangents.


@every_option
@pytest.mark.parametrize("at_once", [None, 40], ids=["at once", "some receivers at a time"])
def test_tangents_have_the_gradient_of_the_composition(at_once, options, monkeypatch) -> None:
    if at_once is not None:
        monkeypatch.setattr(messages_dual_backward, "ELEMENTS_AT_ONCE", at_once * 3 * 5)
    case = made("ragged", width=5, **options)
    tangent = directions(case.inputs, 2)
    leaves = [v.clone().requires_grad_() for v in given(*tangent, *case.tensors)]

    def dual(backend: str, *tensors: Tensor) -> MessageDual:
        primal, net = case.unpacked(tensors[5:])
        with use_backend(backend, precision="ieee", strict=True):
            return egcl_messages_dual(primal, MessageTangents(*tensors[:5]), net, case.edges)

    all_close(
        gradients(lambda *tensors: dual("triton", *tensors), leaves),
        gradients(lambda *tensors: dual("torch", *tensors), leaves),
    )


def test_the_derivative_of_a_trace_can_be_differentiated_again() -> None:
    case = Pass(GRAPHS_TO_PASS["repeated and loops"].edges(DEVICE))
    primal = MessageInputs(*case.inputs)
    tangents = directions(primal, 1)
    found = {}
    for backend in ("torch", "triton"):
        leaves = [part.detach().requires_grad_() for part in primal]
        with use_backend(backend, precision="ieee", strict=True):
            dual = egcl_messages_dual(MessageInputs(*leaves), tangents, case.network, case.edges)
            trace = (dual.shift_tangent * tangents.x).sum()  # linear: its covector is a constant
            first = torch.autograd.grad(trace, leaves, create_graph=True)
            again = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found[backend] = (*first, *again)
    for one, other in zip(found["triton"], found["torch"], strict=True):
        assert_close(one, other, **CLOSE)
