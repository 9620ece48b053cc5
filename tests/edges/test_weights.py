"""Weights that sum to 1 at one end of the edges."""

import pytest
import torch
from loops import GRAPHS, Graph

from eqflow.edges import Edges, attention_weights, normalised, segment_softmax, segment_sum
from eqflow.errors import ShapeError, UsageError

EDGES = Edges.from_index(torch.tensor([[0, 1, 2, 0, 1], [1, 0, 1, 2, 2]]), 3)
every_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
every_normaliser = pytest.mark.parametrize("normaliser", ["softmax", "squareplus"])
every_end = pytest.mark.parametrize("end", ["receiver", "sender"])


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@every_graph
@every_normaliser
@every_end
@pytest.mark.parametrize("heads", [(), (3,)])
def test_weights_are_positive_and_sum_to_one_at_their_end(
    graph: Graph, normaliser: str, end: str, heads: tuple
) -> None:
    edges = graph.edges()
    a = normalised(draw(edges.count, *heads), edges, normaliser, end)
    assert (a > 0).all()
    lengths = edges.incoming.lengths if end == "receiver" else edges.outgoing.lengths
    total = segment_sum(a, edges, end)
    expected = (lengths > 0).double().reshape(-1, *[1] * len(heads)).expand_as(total)
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=1e-14)


@every_graph
@every_normaliser
@pytest.mark.parametrize("heads", [(), (3,)])
def test_weights_of_senders_are_those_of_receivers_of_the_transposed_graph(
    graph: Graph, normaliser: str, heads: tuple
) -> None:
    edges = graph.edges()
    back = edges.transposed()
    logits = draw(edges.count, *heads)
    expected = normalised(logits[back.order], back, normaliser)[edges.from_sender_order]
    found = normalised(logits, edges, normaliser, "sender")
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@every_end
@every_normaliser
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_huge_logits_of_one_graph_are_finite_and_leave_the_other_alone(
    end: str, normaliser: str, dtype: torch.dtype
) -> None:
    edges = GRAPHS["unsorted clouds"].edges()
    logits = draw(edges.count, 2).to(dtype)
    first = edges.clouds.ids[edges.receiver] == 0
    huge = torch.where(first.unsqueeze(1), logits, logits * 1e30).requires_grad_()
    a = normalised(huge, edges, normaliser, end)
    assert a.isfinite().all()
    assert torch.equal(a[first], normalised(logits, edges, normaliser, end)[first])
    assert torch.autograd.grad(a.square().sum(), huge)[0].isfinite().all()
    total = segment_sum(a, edges, end)
    torch.testing.assert_close(total[total > 0], torch.ones_like(total[total > 0]))


@every_end
def test_squareplus_of_two_logits_is_their_ratio(end: str) -> None:
    """`squareplus(3/2) = 2` and `squareplus(−3/2) = 1/2`, so that the weights are 4/5 and 1/5."""
    pairs = torch.tensor([[0, 1], [2, 2]])
    edges = Edges.from_index(pairs if end == "receiver" else pairs.flip(0), 3)
    a = normalised(torch.tensor([1.5, -1.5], dtype=torch.float64), edges, "squareplus", end)
    torch.testing.assert_close(a, torch.tensor([0.8, 0.2], dtype=torch.float64))


@every_end
@every_normaliser
def test_attention_weights_are_the_normalised_scaled_products(end: str, normaliser: str) -> None:
    edges = GRAPHS["repeated and loops"].edges()
    query, key = draw(edges.nodes, 2, 4), draw(2 * edges.nodes, 2, 4)[edges.nodes :]
    logits = (query[edges.receiver] * key[edges.sender]).sum(-1) / 2
    found = attention_weights(query, key, edges, normaliser, end)
    torch.testing.assert_close(found, normalised(logits, edges, normaliser, end))


def test_a_nan_of_one_node_reaches_its_own_edges_alone() -> None:
    edges = Edges.from_index(torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]]), 4, torch.tensor([0, 2, 4]))
    logits = torch.tensor([torch.nan, 1.0, 2.0, 3.0])
    for end in ("receiver", "sender"):
        assert normalised(logits, edges, "softmax", end).isnan().sum() == 1


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: normalised(draw(4), EDGES), ShapeError, r"shape \(4,\).* the 5 edges"),
        (lambda: normalised(draw(5).long(), EDGES), ShapeError, "logits of torch.int64"),
        (
            lambda: normalised(draw(5).long(), EDGES, "squareplus"),
            ShapeError,
            "normalised: found logits of torch.int64",
        ),
        (
            lambda: normalised(draw(5), EDGES, "sum"),
            UsageError,
            "normalised: found normaliser='sum', expected 'softmax' or 'squareplus'",
        ),
        (lambda: normalised(draw(5), EDGES, end="both"), UsageError, "end='both'"),
        (lambda: segment_softmax(draw(5), EDGES, "both"), UsageError, "softmax: found end='both'"),
        (
            lambda: attention_weights(draw(3, 2), draw(3, 2), EDGES, end="both"),
            UsageError,
            "attention_weights: found end='both'",
        ),
        (
            lambda: attention_weights(draw(3, 2), draw(3, 2), EDGES, "sum"),
            UsageError,
            "attention_weights: found normaliser='sum'",
        ),
        (
            lambda: attention_weights(draw(3, 2), draw(3, 4), EDGES),
            ShapeError,
            r"query \(3, 2\) and key \(3, 4\), expected",
        ),
        (
            lambda: attention_weights(draw(4, 2), draw(4, 2), EDGES),
            ShapeError,
            "attention_weights: found query .* N = 3",
        ),
        (lambda: attention_weights(draw(3), draw(3), EDGES), ShapeError, "expected"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_which(wrong, error, message: str) -> None:
    with pytest.raises(error, match=message):
        wrong()
