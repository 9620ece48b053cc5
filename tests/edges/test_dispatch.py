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


@pytest.mark.parametrize("word", [{"strict": 1}, {"compiled": "yes"}, {"compiled": None}])
def test_a_switch_that_is_neither_true_nor_false_is_refused(word: dict) -> None:
    expected = pytest.raises(UsageError, match=rf"found {next(iter(word))}=.*True or False")
    with expected, use_backend("torch", **word):
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
        (lambda: weighted_sum(PAIRS.long(), NODES, EDGES), "weighted_sum: found w of torch.int64"),
        (lambda: weighted_difference(PAIRS, NODES[:, 0], EDGES), "weighted_difference: found"),
        (
            lambda: weighted_difference(torch.zeros(5, 2), torch.zeros(3, 4, 3), EDGES),
            r"w \(5, 2\) .*x \(3, 4, 3\)",
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


NOT_FLOATING = [torch.int64, torch.int32, torch.uint8, torch.bool]
ON_FLOATS = {
    "edge_dot": (edge_dot, {"p": NODES, "q": NODES}),
    "weighted_sum": (weighted_sum, {"w": PAIRS, "x": NODES}),
    "weighted_difference": (weighted_difference, {"w": PAIRS, "x": NODES}),
    "difference_dot": (difference_dot, {"g": NODES, "x": NODES}),
    "squared_distance": (squared_distance, {"x": NODES}),
    "segment_softmax": (segment_softmax, {"logits": PAIRS}),
    "edge_linear": (
        edge_linear,
        {
            "receiver": NODES,
            "sender": NODES,
            "scalars": torch.zeros(5, 2),
            "weight": torch.zeros(3, 2),
        },
    ),
}
of_every_type = pytest.mark.parametrize("dtype", NOT_FLOATING, ids=str)


@of_every_type
@pytest.mark.parametrize("name", ON_FLOATS)
def test_what_is_no_floating_point_is_refused_by_name(name: str, dtype: torch.dtype) -> None:
    primitive, given = ON_FLOATS[name]
    for wrong in given:
        arguments = given | {wrong: given[wrong].to(dtype)}
        with pytest.raises(
            ShapeError, match=f"{name}: found {wrong} of {dtype}, expected floating"
        ):
            primitive(**arguments, edges=EDGES)


UNEVEN = [[0, 1, 2, 0, 1], [1, 0, 1, 2, 2]]
EVEN = [[0, 1, 2], [1, 2, 0]]


@pytest.mark.parametrize("pairs", [UNEVEN, EVEN], ids=["uneven", "even"])
@pytest.mark.parametrize("end", ["receiver", "sender"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_integers_and_truth_values_are_moved_as_they_are_and_added_up_as_integers(
    dtype: torch.dtype, end: str, pairs: list
) -> None:
    """Of one type whether or not all nodes have as many edges."""
    edges = Edges.from_index(torch.tensor(pairs), 3)
    labels = torch.tensor([[1, 0], [1, 1], [0, 1]]).to(dtype)
    moved = gather(labels, edges, end)
    ends = edges.receiver if end == "receiver" else edges.sender
    assert torch.equal(moved, labels[ends])
    added = segment_sum(moved, edges, end)
    degree = torch.bincount(ends, minlength=3).unsqueeze(1)
    assert torch.equal(added, labels.long() * degree)


@pytest.mark.parametrize("name", ["edge_dot", "weighted_sum", "weighted_difference"])
def test_two_floating_types_give_the_wider_one(name: str) -> None:
    primitive, given = ON_FLOATS[name]
    source = torch.Generator().manual_seed(0)
    given = {k: torch.randn(v.shape, generator=source) for k, v in given.items()}
    exact = primitive(**{k: v.double() for k, v in given.items()}, edges=EDGES)
    for wide in given:
        found = primitive(**given | {wide: given[wide].double()}, edges=EDGES)
        assert found.dtype is torch.float64
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("wide", ["sender", "scalars", "weight"])
def test_a_product_of_matrices_takes_one_type(wide: str) -> None:
    _, given = ON_FLOATS["edge_linear"]
    arguments = given | {wide: given[wide].double()}
    with pytest.raises(ShapeError, match=f"receiver of torch.float32 and {wide} of torch.float64"):
        edge_linear(**arguments, edges=EDGES)


def test_autocast_unites_types_by_itself() -> None:
    _, given = ON_FLOATS["edge_linear"]
    narrow = {name: given[name].bfloat16() for name in ("receiver", "sender")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = edge_linear(**given | narrow, edges=EDGES)
    assert found.dtype is torch.bfloat16
