"""The fused message pass against the composed one, on the GPU or in Triton's interpreter.

The interpreter rounds no operand to bf16 and has no fast tangent: there, errors of precisions other
than tf32 are those of float32.
"""

import itertools

import pytest
import torch
from passes import CLOSE, DEVICE, GRAPHS_TO_PASS, OPTIONS, directions, inputs, network
from torch.testing import assert_close

from eqflow.edges import (
    Edges,
    MessageInputs,
    MessageTangents,
    egcl_messages,
    egcl_messages_dual,
    kernels,
    record_backends,
    reference,
    use_backend,
)
from eqflow.edges.backend import PRECISIONS
from eqflow.edges.network import EdgeNetwork

F = 32
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
every_graph = pytest.mark.parametrize("name", GRAPHS_TO_PASS)

# What a pass of three layers may be off by, relatively, where operands have this many bits.
ERROR = {"ieee": 2e-6, "tf32x3": 2e-6, "tf32": 5e-3, "bf16": 4e-2}


def fused(primal: MessageInputs, net: EdgeNetwork, edges: Edges, precision="ieee"):
    x, receiver, sender, scalars, envelope = primal
    with use_backend("triton", precision=precision, strict=True):
        return egcl_messages(x, receiver, sender, scalars, net, edges, envelope)


def composed(primal: MessageInputs, net: EdgeNetwork, edges: Edges):
    x, receiver, sender, scalars, envelope = primal
    with use_backend("torch"):
        return reference.egcl_messages(x, receiver, sender, scalars, net, edges, envelope)


def fused_dual(primal: MessageInputs, tangent: MessageTangents, net: EdgeNetwork, edges: Edges):
    with use_backend("triton", precision="ieee", strict=True):
        return egcl_messages_dual(primal, tangent, net, edges)


def composed_dual(primal: MessageInputs, tangent: MessageTangents, net: EdgeNetwork, edges: Edges):
    with use_backend("torch"):
        return reference.egcl_messages_dual(primal, tangent, net, edges)


def all_close(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, **CLOSE)


# Values.


@every_option
@pytest.mark.parametrize(
    ("scalars", "with_envelope"), [(0, True), (1, False), (2, True), (17, False)]
)
def test_the_sums_are_those_of_the_composition(scalars, with_envelope, options) -> None:
    edges = GRAPHS_TO_PASS["ragged"].edges(DEVICE)
    net = network(F, scalars, **options)
    primal = inputs(edges, F, scalars, with_envelope=with_envelope)
    all_close(fused(primal, net, edges), composed(primal, net, edges))


@every_graph
def test_every_graph_has_its_sums(name: str) -> None:
    edges = GRAPHS_TO_PASS[name].edges(DEVICE)
    for options in (OPTIONS["all"], OPTIONS["plain"]):
        net, primal = network(F, 1, **options), inputs(edges, F)
        all_close(fused(primal, net, edges), composed(primal, net, edges))


def test_the_complete_graph_needs_no_list_of_edges() -> None:
    edges = Edges.complete(torch.tensor([0, 4, 5, 9], device=DEVICE))
    net, primal = network(F, 0), inputs(edges, F, scalars=0)
    all_close(fused(primal, net, edges), composed(primal, net, edges))


@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 32, 48, 64, 128, 256])
def test_every_width_and_dimension_has_its_sums(width: int, dimension: int) -> None:
    edges = GRAPHS_TO_PASS["unsorted clouds"].edges(DEVICE)
    net, primal = network(width, 1), inputs(edges, width, dimension=dimension)
    found = fused(primal, net, edges)
    assert found[1].shape == (edges.nodes, width)
    all_close(found, composed(primal, net, edges))


def test_tensors_need_not_be_contiguous() -> None:
    edges = GRAPHS_TO_PASS["ragged"].edges(DEVICE)
    net, primal = network(F, 2), inputs(edges, F, 2)
    transposed = MessageInputs(*[v.t().contiguous().t() if v.dim() == 2 else v for v in primal])
    turned = net.with_tensors(
        tuple(v.t().contiguous().t() if v.dim() == 2 else v for v in net.tensors())
    )
    all_close(fused(transposed, turned, edges), composed(primal, net, edges))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [32, 64])
def test_the_error_against_float64_is_that_of_the_precision(width: int, precision: str) -> None:
    edges = GRAPHS_TO_PASS["ragged"].edges(DEVICE)
    wide = torch.float64
    net, primal = network(width, 1, wide), inputs(edges, width, dtype=wide)
    expected = composed(primal, net, edges)
    narrow = MessageInputs(*[value.float() for value in primal])
    found = fused(
        narrow, net.with_tensors(tuple(v.float() for v in net.tensors())), edges, precision
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one.double() - other).abs().max() / other.abs().max()) < ERROR[precision]


def test_a_small_bounded_weight_keeps_its_relative_precision() -> None:
    edges = GRAPHS_TO_PASS["ragged"].edges(DEVICE)
    net, primal = network(F, 0, torch.float64), inputs(edges, F, 0, dtype=torch.float64)
    net = net._replace(coordinate_out=net.coordinate_out * 1e-5)
    shift, _ = fused(
        MessageInputs(*[v if v is None else v.float() for v in primal]),
        net.with_tensors(tuple(value.float() for value in net.tensors())),
        edges,
    )
    expected, _ = composed(primal, net, edges)
    assert float((shift.double() - expected).abs().max() / expected.abs().max()) < 2e-6


def test_points_far_from_the_origin_have_the_sums_of_points_near_it() -> None:
    edges = GRAPHS_TO_PASS["ragged"].edges(DEVICE)
    net = network(F, 1, torch.float32)
    near = inputs(edges, F, dtype=torch.float32)
    near = near._replace(x=(near.x * 8).round() / 8)
    far = near._replace(x=near.x + 2.0**17)
    for one, other in zip(fused(near, net, edges), fused(far, net, edges), strict=True):
        assert torch.equal(one, other)


def test_the_same_call_gives_the_same_bits() -> None:
    edges = GRAPHS_TO_PASS["one receiver of many"].edges(DEVICE)
    net, primal = network(F, 1, torch.float32), inputs(edges, F, dtype=torch.float32)
    first, second = (fused(primal, net, edges) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_cloud_gives_the_same_alone_as_in_a_batch() -> None:
    ptr = torch.tensor([0, 4, 21, 24], device=DEVICE)
    batch = Edges.complete(ptr)
    net, together = network(F, 0, torch.float32), inputs(batch, F, 0, dtype=torch.float32)
    sums = fused(together, net, batch)
    for start, stop in itertools.pairwise(ptr.tolist()):
        alone = Edges.complete(torch.tensor([0, stop - start], device=DEVICE))
        at = slice(*batch.incoming.ptr[[start, stop]].tolist())
        x, receiver, sender, _, envelope = together
        part = MessageInputs(
            x[start:stop], receiver[start:stop], sender[start:stop], None, envelope[at]
        )
        for one, other in zip(fused(part, net, alone), sums, strict=True):
            assert_close(one, other[start:stop], rtol=1e-6, atol=1e-6)


# Tangents.


@every_option
@pytest.mark.parametrize("scalars", [0, 2])
def test_the_tangents_are_those_of_the_composition(scalars: int, options: dict) -> None:
    edges = GRAPHS_TO_PASS["ragged"].edges(DEVICE)
    net = network(F, scalars, **options)
    primal = inputs(edges, F, scalars)
    tangent = directions(primal, 2)
    all_close(fused_dual(primal, tangent, net, edges), composed_dual(primal, tangent, net, edges))


@pytest.mark.parametrize("width", [5, 64, 128, 256])
def test_every_width_has_its_tangents(width: int) -> None:
    edges = GRAPHS_TO_PASS["unsorted clouds"].edges(DEVICE)
    net, primal = network(width, 1), inputs(edges, width, dimension=2)
    tangent = directions(primal, 1)
    all_close(fused_dual(primal, tangent, net, edges), composed_dual(primal, tangent, net, edges))


@every_graph
def test_every_graph_has_its_tangents(name: str) -> None:
    edges = GRAPHS_TO_PASS[name].edges(DEVICE)
    net, primal = network(F, 1), inputs(edges, F)
    tangent = directions(primal, 1)
    all_close(fused_dual(primal, tangent, net, edges), composed_dual(primal, tangent, net, edges))


@pytest.mark.parametrize("without", [("receiver", "sender"), ("scalars", "envelope"), ("sender",)])
def test_a_direction_may_leave_parts_where_they_are(without: tuple[str, ...]) -> None:
    edges = GRAPHS_TO_PASS["unsorted clouds"].edges(DEVICE)
    net, primal = network(5, 1), inputs(edges, 5, dimension=2)
    tangent = directions(primal, 2, *without)
    all_close(fused_dual(primal, tangent, net, edges), composed_dual(primal, tangent, net, edges))


@pytest.mark.parametrize("width", [32, 64])
def test_the_values_beside_tangents_are_those_without(width: int) -> None:
    edges = GRAPHS_TO_PASS["ragged"].edges(DEVICE)
    net, primal = network(width, 1, torch.float32), inputs(edges, width, dtype=torch.float32)
    found = fused_dual(primal, directions(primal, 3), net, edges)
    for one, other in zip(found[:2], fused(primal, net, edges), strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-6)


# What there is no kernel for.


@pytest.mark.parametrize(
    ("primal", "net", "reason"),
    [
        ({"F": 300}, {"F": 300}, "messages are 300 wide, at most 256"),
        ({"dimension": 4}, {}, "points have 4 dimensions, at most 3"),
        ({"dtype": torch.float64}, {}, "several types"),
        ({"dtype": torch.float16}, {"dtype": torch.float16}, "float32, not in float16"),
        ({"scalars": 33}, {"scalars": 33}, "more than 32 scalars"),
    ],
)
def test_there_is_a_reason_why_there_is_no_kernel(primal: dict, net: dict, reason: str) -> None:
    edges = GRAPHS_TO_PASS["unsorted clouds"].edges(DEVICE)
    usual = {"F": F, "scalars": 1, "dtype": torch.float32}
    x, receiver, sender, scalars, envelope = inputs(edges, **(usual | primal))
    weights = network(**(usual | net))
    arguments = (x, receiver, sender, scalars, weights, edges, envelope)
    assert reason in (kernels.unsupported("egcl_messages", *arguments) or "there is a kernel")


def test_torch_takes_what_no_kernel_does_and_says_why() -> None:
    edges = GRAPHS_TO_PASS["unsorted clouds"].edges(DEVICE)
    x, receiver, sender, scalars, envelope = inputs(edges, 300)
    with (
        use_backend("triton"),
        record_backends() as ran,
        pytest.warns(RuntimeWarning, match=r"egcl_messages: torch runs .* 300 wide"),
    ):
        egcl_messages(x, receiver, sender, scalars, network(300, 1), edges, envelope)
    assert ran["egcl_messages", "torch"] == 1


def test_a_direction_has_to_be_given() -> None:
    edges = GRAPHS_TO_PASS["unsorted clouds"].edges(DEVICE)
    net, primal = network(F, 1, torch.float32), inputs(edges, F, dtype=torch.float32)
    none = MessageTangents(primal.x.new_zeros(edges.nodes, 0, 3))
    reason = kernels.unsupported("egcl_messages_dual", primal, none, net, edges)
    assert reason == "there are no directions"


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the interpreter
def test_a_cloud_that_is_not_finite_leaves_those_of_its_tile_alone(broken, precision) -> None:
    edges = Edges.complete(torch.tensor([0, 3, 7]))
    shapes = [(32, 1), (32, 32), (32,), (32, 32), (32,), (1, 32)]
    weights = (torch.randn(shape) / 32**0.5 for shape in shapes)
    network = EdgeNetwork(*weights, None, None, 2.0, stabilized=True)
    leaves = [torch.randn(7, 3), torch.randn(7, 32), torch.randn(7, 32)]
    leaves[0][1] = broken
    x, receiver, sender = (leaf.requires_grad_() for leaf in leaves)
    tangent = torch.randn(7, 1, 3)
    with use_backend("triton", precision=precision, strict=True):
        found = egcl_messages(x, receiver, sender, None, network, edges)
        dual = egcl_messages_dual(
            MessageInputs(x, receiver, sender), MessageTangents(tangent), network, edges
        )
        gradients = torch.autograd.grad([part.sum() for part in found], (x, receiver, sender))
    for part in (*found, *dual, *gradients):
        assert part[:3].isnan().any()
        assert part[3:].isfinite().all()
