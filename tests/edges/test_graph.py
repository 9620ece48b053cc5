import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from loops import GRAPHS, Graph
from torch import Tensor

from eqflow.edges import (
    EdgeNetwork,
    Edges,
    attention_diffusion,
    egcl_messages,
    gather,
    segment_softmax,
    segment_sum,
    squared_distance,
    weighted_difference,
)
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Segments

every_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def listed(edges: Edges) -> list[tuple[int, int]]:
    return list(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (1, 1), (4,), (3, 3), (2, 0, 5, 1)])
def test_complete_is_every_ordered_pair_of_different_nodes_of_a_cloud(sizes: tuple) -> None:
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    edges = Edges.complete(ptr)
    cloud = [k for k, size in enumerate(sizes) for _ in range(size)]
    expected = [
        (c, r)
        for r in range(len(cloud))
        for c in range(len(cloud))
        if c != r and cloud[c] == cloud[r]
    ]
    assert listed(edges) == expected
    assert (edges.is_complete, edges.count, edges.nodes) == (True, len(expected), len(cloud))


def test_pairs_of_a_complete_graph_are_not_made_before_they_are_asked_for() -> None:
    edges = Edges.complete(torch.tensor([0, 100_000]))
    assert edges.count == 100_000 * 99_999
    assert repr(edges) == "Edges(complete, 9999900000 edges, 100000 nodes, 1 clouds)"


@every_graph
def test_from_index_sorts_by_receiver_and_says_where_each_edge_was(graph: Graph) -> None:
    edges = graph.edges()
    assert listed(edges) == [graph.pairs[e] for e in edges.order.tolist()]
    assert sorted(edges.order.tolist()) == list(range(len(graph.pairs)))
    assert edges.receiver.tolist() == sorted(edges.receiver.tolist())
    assert not edges.is_complete


@every_graph
def test_edges_by_sender_are_consecutive_in_csc_order(graph: Graph) -> None:
    edges = graph.edges()
    in_csc = edges.sender[edges.by_sender]
    assert torch.equal(in_csc, edges.outgoing.ids)
    assert sorted(edges.by_sender.tolist()) == list(range(edges.count))
    assert edges.outgoing.count == edges.nodes
    degrees = [sum(c == node for c, _ in graph.pairs) for node in range(edges.nodes)]
    assert edges.outgoing.lengths.tolist() == degrees


def test_both_orders_of_a_complete_graph_hold_the_same_edges() -> None:
    edges = Edges.complete(torch.tensor([0, 3, 4, 8]))
    assert torch.equal(edges.sender[edges.by_sender], edges.outgoing.ids)
    turned = torch.stack([edges.receiver, edges.sender])[:, edges.by_sender]
    assert [tuple(pair) for pair in turned.t().tolist()] == listed(edges)  # it is symmetric


@every_graph
@pytest.mark.parametrize("copies", [0, 1, 3])
def test_repeat_puts_copies_side_by_side(graph: Graph, copies: int) -> None:
    edges = graph.edges()
    several = edges.repeat(copies)
    n = edges.nodes
    assert listed(several) == [
        (c + k * n, r + k * n) for k in range(copies) for c, r in listed(edges)
    ]
    assert several.clouds.lengths.tolist() == list(graph.sizes) * copies
    assert several.nodes == n * copies


def test_a_repeated_complete_graph_stays_complete() -> None:
    several = Edges.complete(torch.tensor([0, 2, 5])).repeat(2)
    assert several.is_complete
    assert listed(several) == listed(Edges.complete(torch.tensor([0, 2, 5, 7, 10])))


def test_a_graph_without_ptr_is_one_cloud() -> None:
    edges = Edges.from_index(torch.tensor([[0, 3], [3, 0]]), 4)
    assert edges.clouds.ptr.tolist() == [0, 4]


def test_clouds_may_be_given_as_segments() -> None:
    assert listed(Edges.complete(Segments(torch.tensor([0, 2])))) == [(1, 0), (0, 1)]


@pytest.mark.parametrize(
    ("index", "n", "ptr", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), 4, None, r"found \(3, 2\)"),
        (torch.zeros(2, dtype=torch.int64), 4, None, r"found \(2,\)"),
        (torch.zeros(2, 3), 4, None, "torch.float32"),
        (torch.zeros(2, 3, dtype=torch.int32), 4, None, "torch.int32"),
        (torch.tensor([[0, 4], [1, 2]]), 4, None, "from 0 to 4, expected 0 to 3"),
        (torch.tensor([[0, -1], [1, 2]]), 4, None, "from -1 to 2"),
        (torch.tensor([[0], [1]]), 4, torch.tensor([0, 3]), "ends at 3, expected n = 4"),
        (torch.tensor([[0], [1]]), 4, torch.tensor([1, 4]), "start at 0"),
        (
            torch.tensor([[0, 3], [1, 1]]),
            4,
            torch.tensor([0, 2, 4]),
            "edge 1, 3 → 1, joins two graphs",
        ),
    ],
)
def test_an_index_that_does_not_fit_is_an_error(index, n: int, ptr, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Edges.from_index(index, n, ptr)


@every_graph
def test_the_transposed_graph_has_every_edge_turned_round(graph: Graph) -> None:
    edges = graph.edges()
    back = edges.transposed()
    assert edges.transposed() is back
    turned = [(r, c) for c, r in listed(edges)]
    assert listed(back) == [turned[e] for e in back.order.tolist()]
    assert back.receiver.tolist() == sorted(back.receiver.tolist())
    assert torch.equal(back.clouds.ptr, edges.clouds.ptr)
    values = torch.arange(edges.count)
    assert torch.equal(values[back.order][edges.from_sender_order], values)
    assert listed(back.transposed()) == listed(edges)
    assert torch.equal(back.sender[back.by_sender], back.outgoing.ids)


def test_a_complete_graph_is_its_own_transpose() -> None:
    edges = Edges.complete(torch.tensor([0, 3, 4, 8]))
    assert edges.transposed().is_complete
    assert listed(edges.transposed()) == listed(edges)


@every_graph
def test_sums_on_the_transposed_graph_are_those_of_senders(graph: Graph) -> None:
    edges = graph.edges()
    back, m = edges.transposed(), torch.randn(edges.count, dtype=torch.float64)
    torch.testing.assert_close(segment_sum(m[back.order], back), segment_sum(m, edges, "sender"))


@every_graph
def test_self_loops_are_added_where_there_are_none_and_values_can_follow(graph: Graph) -> None:
    edges = graph.edges()
    looped = edges.with_self_loops()
    loops = {c for c, r in graph.pairs if c == r}
    missing = [(i, i) for i in range(edges.nodes) if i not in loops]
    assert listed(looped) == [(listed(edges) + missing)[e] for e in looped.order.tolist()]
    assert sorted(listed(looped)) == sorted(listed(edges) + missing)
    assert looped.receiver.tolist() == sorted(looped.receiver.tolist())
    assert torch.equal(looped.clouds.ptr, edges.clouds.ptr)
    kept = looped.order[looped.order < edges.count]
    assert kept.tolist() == list(range(edges.count))  # in the order they were
    again = looped.with_self_loops()
    assert listed(again) == listed(looped)
    assert again.order.tolist() == list(range(looped.count))


@every_graph
def test_an_undirected_graph_has_both_directions_once_and_values_can_follow(graph: Graph) -> None:
    edges = graph.edges()
    both = edges.undirected()
    expected = {(r, c) for c, r in {*graph.pairs, *((r, c) for c, r in graph.pairs)}}
    assert [(r, c) for c, r in listed(both)] == sorted(expected)
    every = listed(edges) + [(r, c) for c, r in listed(edges)]
    assert listed(both) == [every[e] for e in both.order.tolist()]
    assert both.order.tolist() == [every.index(pair) for pair in listed(both)]
    assert both.is_symmetric
    assert torch.equal(both.clouds.ptr, edges.clouds.ptr)
    assert listed(both.undirected()) == listed(both)


@every_graph
def test_a_graph_is_symmetric_if_its_matrix_is(graph: Graph) -> None:
    matrix = torch.zeros(sum(graph.sizes), sum(graph.sizes))
    for c, r in graph.pairs:
        matrix[r, c] += 1
    assert graph.edges().is_symmetric == torch.equal(matrix, matrix.t())


def test_a_complete_graph_is_symmetric_without_its_pairs() -> None:
    assert Edges.complete(torch.tensor([0, 100_000])).is_symmetric


def test_an_edge_there_twice_one_way_and_once_the_other_is_not_symmetric() -> None:
    assert not Edges.from_index(torch.tensor([[0, 0, 1], [1, 1, 0]]), 2).is_symmetric


def test_a_graph_is_itself_on_the_device_where_it_is() -> None:
    edges = Edges.complete(torch.tensor([0, 3]))
    assert edges.to("cpu") is edges
    assert edges.to(torch.device("cpu")) is edges


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_graph
def test_a_graph_goes_to_a_gpu_and_back(graph: Graph) -> None:
    edges = graph.edges()
    there = edges.to("cuda")
    assert there.to("cuda") is there
    assert there.sender.is_cuda
    assert there.clouds.ptr.is_cuda
    back = there.to("cpu")
    assert listed(back) == listed(edges)
    assert torch.equal(back.order, edges.order)
    assert torch.equal(back.clouds.ptr, edges.clouds.ptr)
    assert Edges.complete(torch.tensor([0, 3])).to("cuda").is_complete


# What is made on the way and kept.

MAKERS = {
    "complete": lambda: Edges.complete(torch.tensor([0, 3, 6])),
    "complete, ragged": lambda: Edges.complete(torch.tensor([0, 3, 4, 6])),
    "from_index": lambda: Edges.from_index(torch.tensor([[0, 1, 2, 0, 1], [1, 0, 1, 2, 2]]), 3),
    "radius": lambda: Edges.radius(torch.arange(6.0)[:, None], 2.5, torch.tensor([0, 4, 6])),
    "knn": lambda: Edges.knn(torch.arange(6.0)[:, None] ** 2, 2, torch.tensor([0, 4, 6])),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def messages(edges: Edges) -> Tensor:
    shapes = (4, 1), (4, 4), (4,), (4, 4), (4,), (1, 4)
    network = EdgeNetwork(*(draw(*shape) for shape in shapes), None, None, 1.0, stabilized=True)
    n = edges.nodes
    return egcl_messages(draw(n, 2), draw(n, 4), draw(n, 4), None, network, edges)[0]


USES: dict[str, Callable[[Edges], Tensor]] = {
    "gather": lambda edges: gather(draw(edges.nodes), edges),
    "gather at receivers": lambda edges: gather(draw(edges.nodes), edges, "receiver"),
    "segment_sum": lambda edges: segment_sum(draw(edges.count), edges),
    "segment_sum at senders": lambda edges: segment_sum(draw(edges.count), edges, "sender"),
    "segment_softmax": lambda edges: segment_softmax(draw(edges.count), edges),
    "weighted_difference": lambda edges: weighted_difference(
        draw(edges.count), draw(edges.nodes, 2), edges
    ),
    "attention_diffusion": lambda edges: attention_diffusion(
        *(draw(edges.nodes, 2) for _ in range(3)), edges
    ),
    "egcl_messages": messages,
    "clouds": lambda edges: edges.clouds.expand(draw(edges.clouds.count)),
    "blocks": lambda edges: draw(edges.nodes)[edges.blocks(4)[0].sender],
    "by_sender": lambda edges: draw(edges.count)[edges.by_sender],
    "outgoing": lambda edges: edges.outgoing.sum(draw(edges.count)),
    "transposed": lambda edges: segment_sum(draw(edges.count), edges.transposed()),
    "from_sender_order": lambda edges: draw(edges.count)[edges.from_sender_order],
    "by_heads": lambda edges: edges.by_heads(2).split(draw(edges.count, 2)),
    "without_incoming": lambda edges: draw(edges.nodes).index_fill(0, edges.without_incoming, 0.0),
    "with_self_loops": lambda edges: draw(3 * edges.count)[edges.with_self_loops().order],
    "undirected": lambda edges: draw(2 * edges.count)[edges.undirected().order],
    "repeat": lambda edges: segment_sum(draw(2 * edges.count), edges.repeat(2)),
}


@pytest.mark.parametrize("made_there", [False, True])
@pytest.mark.parametrize("first", USES)
@every_maker
def test_a_graph_first_used_in_inference_mode_can_be_trained_on(
    make: Callable[[], Edges], first: str, made_there: bool
) -> None:
    with torch.inference_mode(made_there):
        edges = make()
    with torch.inference_mode():
        assert USES[first](edges).is_inference()
    for use in USES.values():
        use(edges).square().sum().backward()


@every_maker
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda edges: pickle.loads(pickle.dumps(edges))],  # noqa: S301
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_is_the_same_graph_without_what_was_derived_from_it(
    make: Callable[[], Edges], copied: Callable[[Edges], Edges]
) -> None:
    edges = make()
    fresh = set(vars(edges)), len(pickle.dumps(edges))
    for use in USES.values():
        use(edges)
    assert set(vars(edges)) > fresh[0]  # or this would test nothing
    other = copied(edges)
    assert set(vars(other)) == fresh[0]
    assert other._blocks == other._heads == {}
    if copied is not copy.copy:  # which shares its parts
        assert "ids" not in vars(other.incoming)
    assert len(pickle.dumps(edges)) == fresh[1]
    assert listed(other) == listed(edges)
    assert other.is_complete == edges.is_complete
    assert torch.equal(other.clouds.ptr, edges.clouds.ptr)
    assert torch.equal(other.by_sender, edges.by_sender)
    assert (other.order is None) == (edges.order is None)
    if other.order is not None:
        assert torch.equal(other.order, edges.order)


def test_a_copy_keeps_what_was_added_to_a_graph() -> None:
    class Named(Edges):
        """A graph of one's own."""

    edges = Named(Segments(torch.tensor([0, 0, 0])), Segments(torch.tensor([0, 1, 2])))
    edges.name = "two"
    other = copy.deepcopy(edges)
    assert type(other) is Named
    assert other.name == "two"


def test_a_graph_is_made_without_gradients() -> None:
    x = torch.rand(5, 3, requires_grad=True)
    with torch.no_grad():
        assert not Edges.radius(x, 1.0).sender.requires_grad
        assert not torch.is_grad_enabled()


def test_a_complete_graph_is_pickled_without_its_pairs() -> None:
    edges = Edges.complete(torch.tensor([0, 1000]))
    assert len(edges.sender) == 999_000
    assert len(pickle.dumps(edges)) < 20_000


@pytest.mark.parametrize(
    ("use", "names"),
    [
        (lambda x, edges: gather(x, edges, "middle"), "end='middle'"),
        (lambda x, edges: segment_sum(edges.sender, edges, "middle"), "end='middle'"),
        (lambda x, edges: squared_distance(x[:, 0], edges), r"\(N, d\)"),
        (lambda x, edges: Edges.knn(x, 2.5), "k = 2.5"),
        (lambda x, edges: Edges.radius(x[:, 0], 1.0), r"\(N, d\)"),
    ],
)
def test_ends_neighbours_and_positions_that_make_no_sense_are_refused_by_name(use, names) -> None:
    x = torch.rand(3, 2)
    with pytest.raises((ShapeError, UsageError), match=names):
        use(x, Edges.complete(torch.tensor([0, 3])))


NODES = Segments(torch.tensor([0, 2, 4]))
INCOMING = Segments.of_lengths(torch.tensor([1, 1, 0, 1]))


@pytest.mark.parametrize(
    ("incoming", "sender", "found"),
    [
        (INCOMING, torch.tensor([1, 9, 2]), "indices from 1 to 9, expected 0 to 3"),
        (INCOMING, torch.tensor([1, -1, 2]), "indices from -1 to 2"),
        (INCOMING, torch.tensor([1]), "sender is (1,)"),
        (INCOMING, torch.tensor([1, 0, 2], dtype=torch.int32), "of torch.int32"),
        (INCOMING, torch.tensor([1, 2, 2]), "edge 1, 2 → 1, joins two graphs"),
        (Segments.of_lengths(torch.tensor([1, 2])), torch.tensor([1, 0, 0]), "2 segments of edges"),
        (INCOMING, None, "not those of all pairs"),
    ],
)
def test_parts_that_make_no_graph_are_refused(incoming, sender, found) -> None:
    with pytest.raises(ShapeError) as caught:
        Edges(incoming, NODES, sender)
    assert found in str(caught.value)


def test_parts_that_fit_make_the_graph_they_describe() -> None:
    edges = Edges(INCOMING, NODES, torch.tensor([1, 0, 2]))
    assert listed(edges) == [(1, 0), (0, 1), (2, 3)]
    whole = Edges(Edges.complete(NODES).incoming, NODES)
    assert listed(whole) == listed(Edges.complete(NODES))
