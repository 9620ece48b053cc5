"""The hand-written passes equal autograd of the plain formulas, whatever the blocks."""

import pytest
import torch
from loops import GRAPHS
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from eqflow.edges import (
    EdgeNetwork,
    Edges,
    Gate,
    available_backends,
    dual_silu,
    egcl_messages,
    record_backends,
    use_backend,
)
from eqflow.edges.reference import by_hand
from eqflow.edges.reference.by_hand import parts
from eqflow.edges.reference.edge_mlp import Inputs, Tangents, composed, composed_dual

F = 4
GATES = {"plain": (), "attention": ("attention",), "both": ("attention", "inference")}
names = ("uniform", "ragged", "isolated", "repeated and loops", "one receiver", "no edges")
every_graph = pytest.mark.parametrize("name", names)
every_gate = pytest.mark.parametrize("gates", GATES.values(), ids=GATES)
with_and_without_weight = pytest.mark.parametrize("weighted", [True, False])


@pytest.fixture(params=[3, parts.CPU_BLOCK])
def _block(request, monkeypatch) -> None:
    """Blocks of a receiver or two, and all edges at once."""
    monkeypatch.setattr(parts, "CPU_BLOCK", request.param)


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()


def network(gates: tuple[str, ...], scalars: int = 2) -> EdgeNetwork:
    return EdgeNetwork(
        draw(F, scalars),
        draw(F, F, seed=1),
        draw(F, seed=2),
        draw(F, F, seed=3),
        draw(F, seed=4),
        draw(1, F, seed=5),
        Gate(draw(1, F, seed=6), draw(1, seed=7)) if "attention" in gates else None,
        Gate(draw(1, F, seed=8), draw(1, seed=9)) if "inference" in gates else None,
        None,
        stabilized=True,
    )


def inputs_for(edges: Edges, weighted: bool) -> Inputs:
    n, e = edges.nodes, edges.count
    return Inputs(
        draw(n, F), draw(n, F, seed=1), draw(e, 2, seed=2), draw(e, 1, seed=3) if weighted else None
    )


def tangents_for(edges: Edges, weighted: bool, nodes: str) -> Tangents:
    n, e = edges.nodes, edges.count
    return Tangents(
        draw(n, 1, F, seed=4) if "receiver" in nodes else None,
        draw(n, 1, F, seed=5) if "sender" in nodes else None,
        draw(e, 1, 2, seed=6),
        draw(e, 1, 1, seed=7) if weighted else None,
    )


def present(*groups: object) -> list[Tensor]:
    return [part for group in groups for part in group if part is not None]


def loss(found: tuple[Tensor, ...]) -> Tensor:
    weights = [draw(*part.shape, seed=20 + k).detach() for k, part in enumerate(found)]
    return sum((part * weight).sum() for part, weight in zip(found, weights, strict=True))


def assert_same(found, expected, tolerance: float = 1e-11) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        scale = other.detach().abs().max().clamp(min=1) if other.numel() else 1.0
        assert one.numel() == 0 or ((one - other).abs().max() / scale).item() < tolerance


@every_graph
@every_gate
@with_and_without_weight
@pytest.mark.usefixtures("_block")
def test_the_value_and_every_gradient_are_those_of_the_formulas(name, gates, weighted) -> None:
    edges, net = GRAPHS[name].edges(), network(gates)
    inputs = inputs_for(edges, weighted)
    leaves = present(inputs, net.tensors())
    found, expected = by_hand.edge_mlp(inputs, net, edges), composed(inputs, net, edges)
    assert_same(found, expected)
    assert_same(*(torch.autograd.grad(loss(out), leaves) for out in (found, expected)))


@every_graph
@every_gate
@with_and_without_weight
@pytest.mark.parametrize("nodes", ["", "receiver", "sender", "receiver and sender"])
@pytest.mark.usefixtures("_block")
def test_a_tangent_and_every_gradient_through_it_are_those_of_the_formulas(
    name, gates, weighted, nodes
) -> None:
    edges, net = GRAPHS[name].edges(), network(gates)
    inputs, tangents = inputs_for(edges, weighted), tangents_for(edges, weighted, nodes)
    leaves = present(inputs, tangents, net.tensors())
    found = by_hand.dual_edge_mlp(inputs, tangents, net, edges)
    expected = composed_dual(inputs, tangents, net, edges)
    assert_same(found, expected)
    assert_same(*(torch.autograd.grad(loss(out), leaves) for out in (found, expected)))


@every_graph
@every_gate
@pytest.mark.usefixtures("_block")
def test_without_gradients_values_are_the_same_and_inputs_stay_as_they_were(name, gates) -> None:
    edges, net = GRAPHS[name].edges(), network(gates)
    inputs, tangents = inputs_for(edges, True), tangents_for(edges, True, "receiver and sender")
    given = present(inputs, tangents, net.tensors())
    before = [value.detach().clone() for value in given]
    with torch.no_grad():
        assert_same(by_hand.edge_mlp(inputs, net, edges), composed(inputs, net, edges))
        found = by_hand.dual_edge_mlp(inputs, tangents, net, edges)
        assert_same(found, composed_dual(inputs, tangents, net, edges))
    assert all(map(torch.equal, given, before))


def test_what_is_kept_is_kept_by_autograd_and_only_where_it_is_needed() -> None:
    edges, net = GRAPHS["ragged"].edges(), network(GATES["both"])
    inputs = inputs_for(edges, weighted=True)
    wide = edges.count * F

    def kept(run) -> int:
        """How many tensors as large as edges times features autograd is given to keep."""
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        )
        with hooks:
            run()
        return sum(size == wide for size in sizes)

    assert kept(lambda: by_hand.edge_mlp(inputs, net, edges)) == 2
    with torch.no_grad():
        assert kept(lambda: by_hand.edge_mlp(inputs, net, edges)) == 0
    assert kept(lambda: composed(inputs, net, edges)) > 2


@every_gate
def test_the_composed_tangent_is_that_of_forward_mode(gates) -> None:
    edges, net = GRAPHS["ragged"].edges(), network(gates)
    inputs = inputs_for(edges, weighted=True)
    tangents = tangents_for(edges, True, "receiver and sender")
    values, moved = torch.func.jvp(
        lambda *parts: composed(Inputs(*parts), net, edges),
        tuple(inputs),
        tuple(part.squeeze(1) for part in tangents),
    )
    phi, total, dphi, dtotal = composed_dual(inputs, tangents, net, edges)
    assert_same((phi, total), values)
    assert_same((dphi.squeeze(1), dtotal.squeeze(1)), moved)


def test_first_and_second_derivatives_pass_the_numerical_check() -> None:
    edges, net = GRAPHS["repeated and loops"].edges(), network(GATES["both"])
    inputs = inputs_for(edges, weighted=True)

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return by_hand.edge_mlp(Inputs(*leaves[:4]), net.with_tensors(leaves[4:]), edges)

    leaves = (*inputs, *net.tensors())
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


def test_second_derivatives_are_right_where_the_same_weights_came_before() -> None:
    edges, net = GRAPHS["repeated and loops"].edges(), network(GATES["attention"])
    inputs = inputs_for(edges, weighted=False)
    leaves = present(inputs, net.tensors())

    def chained(run) -> list[Tensor]:
        nodes = inputs.receiver
        for _ in range(2):
            phi, total = run(inputs._replace(receiver=nodes, sender=nodes), net, edges)
            nodes = torch.tanh(total + phi.sum())
        first = torch.autograd.grad(loss((nodes,)), leaves, create_graph=True, allow_unused=True)
        used = [gradient for gradient in first if gradient is not None]
        return [*used, *present(torch.autograd.grad(loss(used), leaves, allow_unused=True))]

    assert_same(chained(by_hand.edge_mlp), chained(composed), tolerance=1e-9)


def test_a_backward_pass_runs_on_the_backend_of_its_forward_pass() -> None:
    edges, net = GRAPHS["ragged"].edges(), network(GATES["both"])
    inputs = inputs_for(edges, weighted=True)
    with use_backend("torch"):
        found = loss(by_hand.edge_mlp(inputs, net, edges))
    other = "triton" if "triton" in available_backends() else None
    with use_backend(other), record_backends() as ran:
        torch.autograd.grad(found, inputs.receiver, create_graph=True)
    assert ran
    assert {backend for _, backend in ran} == {"torch"}


def test_batched_gradients_are_those_taken_one_by_one() -> None:
    edges, net = GRAPHS["ragged"].edges(), network(GATES["both"])
    inputs = inputs_for(edges, weighted=True)
    _, total = by_hand.edge_mlp(inputs, net, edges)
    basis = torch.eye(total.numel(), dtype=total.dtype).reshape(-1, *total.shape)
    (batched,) = torch.autograd.grad(
        total, inputs.receiver, basis, is_grads_batched=True, retain_graph=True
    )
    single = [torch.autograd.grad(total, inputs.receiver, g, retain_graph=True)[0] for g in basis]
    assert_same([batched], [torch.stack(single)])


@every_gate
def test_a_tangent_can_be_differentiated_twice(gates) -> None:
    edges, net = GRAPHS["repeated and loops"].edges(), network(gates)
    inputs, tangents = inputs_for(edges, True), tangents_for(edges, True, "receiver and sender")
    leaves = present(inputs, tangents, net.tensors())

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        inputs, tangents = Inputs(*leaves[:4]), Tangents(*leaves[4:8])
        return by_hand.dual_edge_mlp(inputs, tangents, net.with_tensors(leaves[8:]), edges)

    assert gradcheck(run, leaves)
    found = loss(run(*leaves))
    first = torch.autograd.grad(found, leaves, create_graph=True)
    again = torch.autograd.grad(loss(first), leaves, allow_unused=True)
    plain = composed_dual(inputs, tangents, net, edges)
    first = torch.autograd.grad(loss(plain), leaves, create_graph=True)
    expected = torch.autograd.grad(loss(first), leaves, allow_unused=True)
    assert_same(present(again), present(expected), tolerance=1e-10)


@pytest.mark.parametrize("directions", [1, 3])
def test_the_dual_activation_passes_the_numerical_check_twice(directions) -> None:
    z, dz = draw(3, F), draw(3, directions, F)
    assert gradcheck(dual_silu, (z, dz))
    assert gradgradcheck(dual_silu, (z, dz))


def test_forward_mode_and_func_transforms_see_the_plain_formulas() -> None:
    edges, net = GRAPHS["ragged"].edges(), network(GATES["both"], scalars=1)
    x, moved = draw(edges.nodes, 3).detach(), draw(edges.nodes, 3, seed=1).detach()
    nodes = draw(edges.nodes, F).detach()

    def run(x: Tensor) -> Tensor:
        return egcl_messages(x, nodes, nodes, None, net, edges)[0]

    value, tangent = torch.func.jvp(run, (x,), (moved,))
    assert_same([run(x)], [value])
    with forward_ad.dual_level():
        other = forward_ad.unpack_dual(run(forward_ad.make_dual(x, moved))).tangent
    assert_same([other], [tangent])
    covector = draw(*value.shape, seed=2).detach()
    leaf = x.clone().requires_grad_()
    (pulled,) = torch.autograd.grad(run(leaf), leaf, covector)
    torch.testing.assert_close((pulled * moved).sum(), (covector * tangent).sum())
    batched = torch.func.vmap(run)(torch.stack([x, x + 1, 2 * x]))
    assert_same(batched, [run(x), run(x + 1), run(2 * x)])


@every_graph
def test_blocks_are_whole_receivers_and_together_all_edges(name) -> None:
    edges = GRAPHS[name].edges()
    for size in (1, 3, 10**6):
        blocks = edges.blocks(size)
        rows = [row for block in blocks for row in range(block.rows.start, block.rows.stop)]
        assert rows == list(range(edges.count))
        receivers = [set(block.receiver.tolist()) for block in blocks]
        assert sum(map(len, receivers)) == len(set().union(*receivers, set()))
        for block, nodes in zip(blocks, receivers, strict=True):
            assert len(nodes) == 1 or len(block.receiver) <= size
            assert torch.equal(block.sender, edges.sender[block.rows])


def test_a_network_with_other_tensors_keeps_its_options() -> None:
    for gates in GATES.values():
        net = network(gates)._replace(coordinate_range=2.0, stabilized=False)
        doubled = net.with_tensors(tuple(2 * tensor for tensor in net.tensors()))
        assert doubled.coordinate_range == 2.0
        assert not doubled.stabilized
        assert len(doubled.tensors()) == len(net.tensors()) == 6 + 2 * len(gates)
        pairs = zip(doubled.tensors(), net.tensors(), strict=True)
        assert all(torch.equal(a, 2 * b) for a, b in pairs)
