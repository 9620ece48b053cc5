import math
from typing import NamedTuple

import pytest
import torch
from loops import GRAPHS, Graph
from tolerances import TOLERANCE
from torch import Tensor
from torch.nn.functional import silu

from eqflow.edges import (
    EdgeNetwork,
    Edges,
    Gate,
    MessageInputs,
    MessageTangents,
    attention_diffusion,
    attention_weights,
    egcl_messages,
    egcl_messages_dual,
    smooth_cutoff,
)
from eqflow.errors import ShapeError

F, K = 5, 2
names = ("uniform", "ragged", "isolated", "repeated and loops", "unsorted clouds", "no edges")
every_graph = pytest.mark.parametrize("graph", [GRAPHS[name] for name in names], ids=names)


class Layer(NamedTuple):
    """The weights of one convolution with its first layer as one matrix on `[h_i, h_j, d², a]`."""

    first: Tensor
    bias: Tensor
    network: EdgeNetwork


def layer(scalars: int, **options) -> Layer:
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64) / math.sqrt(F)

    first = draw(F, 2 * F + 1 + scalars)
    network = EdgeNetwork(
        scalar_weight=first[:, 2 * F :],
        message_weight=draw(F, F),
        message_bias=draw(F),
        coordinate_weight=draw(F, F),
        coordinate_bias=draw(F),
        coordinate_out=draw(1, F),
        attention=Gate(draw(1, F), draw(1)),
        inference=Gate(draw(1, F), draw(1)),
        coordinate_range=1.5,
        stabilized=True,
    )
    return Layer(first, draw(F), network._replace(**options))


def by_edges(x, h, a, layer: Layer, edges: Edges, envelope) -> tuple[Tensor, Tensor]:
    """The formulas, an edge at a time."""
    net = layer.network
    shift, total = torch.zeros_like(x), torch.zeros_like(h)
    for e, (j, i) in enumerate(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True)):
        d2 = ((x[i] - x[j]) ** 2).sum()
        d = (d2 + 1e-8).sqrt()
        scalars = d2.reshape(1) if a is None else torch.cat([d2.reshape(1), a[e]])
        m = silu(layer.first @ torch.cat([h[i], h[j], scalars]) + layer.bias)
        m = silu(net.message_weight @ m + net.message_bias)
        if net.attention:
            m = m * torch.sigmoid(net.attention.weight[0] @ m + net.attention.bias)
        phi = (net.coordinate_out @ silu(net.coordinate_weight @ m + net.coordinate_bias))[0]
        if net.coordinate_range:
            phi = net.coordinate_range * torch.tanh(phi)
        c = 1 / (d + 1) if net.stabilized else 1 / int((edges.receiver == i).sum())
        s = 1.0 if envelope is None else envelope[e]
        inferred = m
        if net.inference:
            inferred = m * torch.sigmoid(net.inference.weight[0] @ m + net.inference.bias)
        shift[i] += s * c * phi * (x[i] - x[j])
        total[i] += s * inferred
    return shift, total


OPTIONS = {
    "all": {},
    "no attention": {"attention": None},
    "no inference": {"inference": None},
    "unbounded": {"coordinate_range": None},
    "mean": {"stabilized": False},
    "plain": {
        "stabilized": False,
        "attention": None,
        "inference": None,
        "coordinate_range": None,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("with_envelope", [False, True])
@pytest.mark.parametrize("scalars", [0, K])
@every_graph
def test_messages_are_those_of_the_unfactored_formulas(
    graph: Graph, scalars: int, with_envelope: bool, options: dict
) -> None:
    edges, source = graph.edges(), torch.Generator().manual_seed(1)
    weights = layer(scalars, **options)
    x = torch.randn(edges.nodes, 3, generator=source, dtype=torch.float64)
    h = torch.randn(edges.nodes, F, generator=source, dtype=torch.float64)
    a = torch.randn(edges.count, K, generator=source, dtype=torch.float64) if scalars else None
    envelope = torch.rand(edges.count, generator=source).double() if with_envelope else None
    receiver = h @ weights.first[:, :F].t() + weights.bias
    sender = h @ weights.first[:, F : 2 * F].t()
    found = egcl_messages(x, receiver, sender, a, weights.network, edges, envelope)
    expected = by_edges(x, h, a, weights, edges, envelope)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_messages_have_derivatives_of_two_orders_also_where_points_coincide() -> None:
    edges = Edges.complete(torch.tensor([0, 3]))
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    nodes = torch.randn(3, F, dtype=torch.float64)
    network = layer(0).network
    shift, m = egcl_messages(x, nodes, nodes, None, network, edges)
    first = torch.autograd.grad((shift.square().sum() + m.sum()), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), x)[0]
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_a_part_of_a_message_that_does_not_fit_is_an_error_that_says_which() -> None:
    edges = Edges.complete(torch.tensor([0, 3]))
    shapes = (3, 2), (3, F), (6, K)
    x, nodes, scalars = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
    network = layer(K).network
    wrong = {
        r"found x of shape \(2, 2\), expected \(3, 2\)": (x[:2], nodes, nodes, scalars, None),
        r"found receiver of shape \(3, 4\)": (x, nodes[:, :4], nodes, scalars, None),
        r"found sender of shape \(2, 5\)": (x, nodes, nodes[:2], scalars, None),
        r"found scalars of shape None, expected \(6, 2\)": (x, nodes, nodes, None, None),
        r"found scalars of shape \(7, 2\)": (x, nodes, nodes, torch.zeros(7, K), None),
        r"found envelope of shape \(5,\)": (x, nodes, nodes, scalars, torch.zeros(5)),
    }
    for message, (x_, receiver, sender, a, s) in wrong.items():
        with pytest.raises(ShapeError, match="egcl_messages: " + message):
            egcl_messages(x_, receiver, sender, a, network, edges, s)
    primal = MessageInputs(x, nodes, nodes, scalars)
    for tangent in (
        MessageTangents(x),
        MessageTangents(x[:, None], receiver=nodes),
        MessageTangents(x[:, None], receiver=nodes[:, None].expand(3, 2, F)),
        MessageTangents(x[:, None], envelope=torch.zeros(6, 1)),
    ):
        with pytest.raises(ShapeError, match="egcl_messages_dual: found a tangent of"):
            egcl_messages_dual(primal, tangent, network, edges)


def test_a_message_has_one_floating_type() -> None:
    edges = Edges.complete(torch.tensor([0, 3]))
    network = layer(K).network
    good = MessageInputs(
        *(torch.ones(s, dtype=torch.float64) for s in ((3, 2), (3, F), (3, F), (6, K), (6,)))
    )

    def messages(given: MessageInputs, network: EdgeNetwork) -> None:
        egcl_messages(*given[:4], network, edges, given.envelope)

    messages(good, network)
    for name, part in good._asdict().items():
        for dtype in (torch.float32, torch.int64, torch.bool):
            # The first is what the others are compared with.
            expected = name if name != "x" or dtype is not torch.float32 else "receiver"
            found = torch.float64 if expected != name else dtype
            with pytest.raises(ShapeError, match=f"egcl_messages: found .*{expected} of {found}"):
                messages(good._replace(**{name: part.to(dtype)}), network)
    for k, weight in enumerate(network.tensors()):
        weights = list(network.tensors())
        weights[k] = weight.float()
        with pytest.raises(ShapeError, match=r"found x of torch.float64 and \w+ of torch.float32"):
            messages(good, network.with_tensors(weights))
    for name, part in good._asdict().items():
        tangent = MessageTangents(good.x[:, None])._replace(**{name: part[:, None].float()})
        with pytest.raises(
            ShapeError, match=f"found {name} .* and {name}_tangent of torch.float32"
        ):
            egcl_messages_dual(good, tangent, network, edges)


# Attention diffusion.


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("wrong", ["query", "key", "x"])
def test_attention_takes_floats(wrong: str, dtype: torch.dtype) -> None:
    edges = Edges.complete(torch.tensor([0, 3]))
    given = {name: torch.ones(3, 2) for name in ("query", "key", "x")}
    given[wrong] = given[wrong].to(dtype)
    with pytest.raises(ShapeError, match=f"attention_diffusion: found {wrong} of {dtype}"):
        attention_diffusion(**given, edges=edges)
    if wrong != "x":
        with pytest.raises(ShapeError, match=f"attention_weights: found {wrong} of {dtype}"):
            attention_weights(given["query"], given["key"], edges)


def dense_attention(query: Tensor, key: Tensor, x: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Softmax of an N × N matrix, −∞ where there is no edge, for one head."""
    mask = torch.zeros(edges.nodes, edges.nodes, dtype=torch.bool)
    mask[edges.receiver, edges.sender] = True
    logits = (query @ key.t() / math.sqrt(query.shape[1])).masked_fill(~mask, -math.inf)
    a = torch.where(mask.any(1, keepdim=True), logits, 0.0).softmax(1) * mask
    return a @ x - a.sum(1, keepdim=True) * x, a[edges.receiver, edges.sender]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["uniform", "ragged", "isolated", "unsorted clouds", "no edges"])
def test_attention_diffusion_is_that_of_the_dense_softmax(name: str, dtype: torch.dtype) -> None:
    edges = GRAPHS[name].edges()
    query, key, x = (torch.randn(edges.nodes, 2, 4, dtype=torch.float64) for _ in range(3))
    query, key, x = query.to(dtype), key.to(dtype), x.to(dtype)
    found = attention_diffusion(query, key, x, edges)
    a = attention_weights(query, key, edges)
    for head in range(2):
        expected, weights = dense_attention(
            query[:, head].double(), key[:, head].double(), x[:, head].double(), edges
        )
        tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(found[:, head].double(), expected, **tolerance)
        torch.testing.assert_close(a[:, head].double(), weights, **tolerance)
        alone = attention_diffusion(query[:, head], key[:, head], x[:, head], edges)
        torch.testing.assert_close(found[:, head], alone, **tolerance)


def test_heads_of_attention_diffusion_may_share_their_values() -> None:
    edges = GRAPHS["ragged"].edges()
    query, key = torch.randn(edges.nodes, 2, 4), torch.randn(edges.nodes, 2, 4)
    x = torch.randn(edges.nodes, 3)
    found = attention_diffusion(query, key, x, edges)
    copied = attention_diffusion(query, key, x.unsqueeze(1).expand(-1, 2, -1), edges)
    assert found.shape == (edges.nodes, 2, 3)
    assert attention_weights(query, key, edges).shape == (edges.count, 2)
    assert torch.equal(found, copied)


# The envelope.


def test_the_envelope_is_one_at_zero_half_way_in_the_middle_and_zero_beyond() -> None:
    d = torch.tensor([0.0, 1.5, 3.0, 3.1, 1e6], dtype=torch.float64)
    assert smooth_cutoff(d, 3.0).tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_the_envelope_falls() -> None:
    d = torch.linspace(0, 4, 1001, dtype=torch.float64)
    assert (smooth_cutoff(d, 3.0).diff() <= 0).all()


@pytest.mark.parametrize("step", [1e-3, 1e-4, 1e-5])
def test_the_envelope_and_two_derivatives_vanish_at_the_cutoff_from_both_sides(step) -> None:
    for side in (-step, step):
        d = torch.tensor(2.0 + side, dtype=torch.float64, requires_grad=True)
        value = smooth_cutoff(d, 2.0)
        first = torch.autograd.grad(value, d, create_graph=True)[0]
        second = torch.autograd.grad(first, d)[0]
        # 10 (1 − u)³ to lowest order, u = d / 2.
        assert abs(float(value.detach())) <= 10 * (step / 2) ** 3 * 1.01
        assert abs(float(first.detach())) <= 15 * (step / 2) ** 2 * 1.01
        assert abs(float(second)) <= 15 * (step / 2) * 1.01


def test_the_envelope_is_flat_at_zero_distance() -> None:
    d = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(smooth_cutoff(d, 2.0), d, create_graph=True)[0]
    second = torch.autograd.grad(first, d)[0]
    assert float(first.detach()) == 0
    assert float(second) == 0
