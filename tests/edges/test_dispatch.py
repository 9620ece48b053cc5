import pytest
import torch

from eqflow.edges import (
    Edges,
    active_backend,
    difference_dot,
    edge_dot,
    edge_linear,
    gather,
    segment_softmax,
    segment_sum,
    squared_distance,
    use_backend,
    weighted_difference,
    weighted_sum,
)
from eqflow.errors import ShapeError, UsageError

EDGES = Edges.from_index(torch.tensor([[0, 1, 2, 0, 1], [1, 0, 1, 2, 2]]), 3)
WIDE = torch.zeros(4, 3)
NODES = torch.zeros(3, 3)
PAIRS = torch.zeros(5)


def test_the_backend_is_torch_unless_said() -> None:
    assert active_backend() == "torch"


def test_an_unknown_backend_is_an_error_that_names_those_there_are() -> None:
    with (
        pytest.raises(UsageError, match=r"found 'cuda', expected one of .*torch"),
        use_backend("cuda"),
    ):
        pass


def test_leaving_the_block_restores_the_backend_also_after_an_error() -> None:
    with pytest.raises(KeyError), use_backend("torch"):
        raise KeyError
    assert active_backend() == "torch"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: gather(WIDE, EDGES), r"gather: x has shape \(4, 3\).* the 3 nodes"),
        (lambda: gather(WIDE, EDGES, "receiver"), "gather: x"),
        (lambda: segment_sum(NODES, EDGES), r"segment_sum: m has shape \(3, 3\).* the 5 edges"),
        (lambda: segment_sum(torch.tensor(1.0), EDGES), "segment_sum: m"),
        (lambda: edge_dot(NODES, NODES[:, :2], EDGES), r"edge_dot: found p \(3, 3\) and q"),
        (lambda: edge_dot(NODES, WIDE, EDGES), "edge_dot: q"),
        (lambda: edge_dot(NODES[:, 0], NODES[:, 0], EDGES), "edge_dot: found"),
        (lambda: weighted_sum(PAIRS[:4], NODES, EDGES), "weighted_sum: w"),
        (lambda: weighted_sum(PAIRS, WIDE, EDGES), "weighted_sum: x"),
        (lambda: weighted_sum(PAIRS.long(), NODES, EDGES), r"w \(5,\) of torch.int64"),
        (lambda: weighted_difference(PAIRS, NODES[:, 0], EDGES), "weighted_difference: found"),
        (
            lambda: weighted_difference(torch.zeros(5, 2), torch.zeros(3, 4, 3), EDGES),
            r"w \(5, 2\) .* x \(3, 4, 3\)",
        ),
        (lambda: difference_dot(WIDE, NODES, EDGES), "difference_dot: g"),
        (lambda: difference_dot(NODES, NODES[:, :2], EDGES), "difference_dot: found"),
        (lambda: difference_dot(NODES, torch.zeros(3, 3, 3), EDGES), "difference_dot: found"),
        (lambda: squared_distance(WIDE, EDGES), "squared_distance: x"),
        (lambda: segment_softmax(NODES, EDGES), "segment_softmax: logits"),
        (
            lambda: edge_linear(NODES, NODES, torch.zeros(5, 2), torch.zeros(3, 1), EDGES),
            r"weight has shape \(3, 1\), expected \(F, K\) = \(3, 2\)",
        ),
        (
            lambda: edge_linear(NODES, NODES, NODES, torch.zeros(3, 3), EDGES),
            "edge_linear: scalars",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error_that_says_which(wrong, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        wrong()
