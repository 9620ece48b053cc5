import networkx as nx
import pytest
import torch
from odd_graphs import batched, counts, edges_of, every_graph, random_edges, single
from tolerances import TOLERANCE

from eqflow.edges import Edges, weighted_sum
from eqflow.errors import NumericalError, ShapeError, UsageError
from eqflow.graphs.ppr import personalised_pagerank
from eqflow.graphs.rewiring import diffused_graph, ppr_top_k, prune, two_hop, union
from eqflow.graphs.sparsification import LargestPerRow


def listed(edges: Edges) -> list[tuple[int, int]]:
    return list(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))


def in_batch(parts: list[Edges], starts: list[int]) -> list[tuple[int, int]]:
    return [
        (c + start, r + start)
        for edges, start in zip(parts, starts, strict=True)
        for c, r in listed(edges)
    ]


REWIRINGS = {
    "ppr_top_k": lambda edges: ppr_top_k(edges, 2),
    "diffused_graph": lambda edges: diffused_graph(edges, LargestPerRow(3))[0],
    "two_hop": two_hop,
    "union with itself": lambda edges: union(edges, edges),
    "prune by graph": lambda edges: prune(edges, edges.sender % 3 * 1.0, 0.5),
    "prune by receiver": lambda edges: prune(edges, edges.sender * 1.0, 0.5, "receiver"),
}


@pytest.mark.parametrize("name", sorted(REWIRINGS.keys() - {"prune by graph"}))
def test_graphs_of_a_batch_do_not_see_each_other(name):
    batch, alone = batched()
    starts = batch.clouds.ptr[:-1][batch.clouds.lengths > 0].tolist()
    rewired = REWIRINGS[name](batch)
    assert torch.equal(rewired.clouds.ptr, batch.clouds.ptr)
    expected = in_batch([REWIRINGS[name](edges) for edges in alone], starts)
    assert listed(rewired) == expected


def test_pruned_graphs_of_a_batch_do_not_see_each_other():
    batch, alone = batched()
    starts = batch.clouds.ptr[:-1][batch.clouds.lengths > 0].tolist()
    weights = [torch.linspace(0, 1 + k, edges.count).sin() for k, edges in enumerate(alone)]
    rewired = prune(batch, torch.cat(weights), 0.5)
    parts = [prune(edges, w, 0.5) for edges, w in zip(alone, weights, strict=True)]
    assert listed(rewired) == in_batch(parts, starts)
    assert rewired.clouds.count == batch.clouds.count


@pytest.mark.parametrize("rewiring", REWIRINGS.values(), ids=REWIRINGS)
@every_graph
def test_receivers_rise_and_every_node_is_still_there(name, rewiring):
    edges = single(name)
    rewired = rewiring(edges)
    assert rewired.nodes == edges.nodes
    assert rewired.receiver.tolist() == sorted(rewired.receiver.tolist())
    assert rewired.incoming.rows == rewired.sender.numel() == rewired.count


@every_graph
def test_two_hops_are_pairs_within_two_steps(name):
    edges = single(name)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(edges.nodes))
    graph.add_edges_from(listed(edges))
    expected = {
        (c, r)
        for c in graph
        for r, steps in nx.single_source_shortest_path_length(graph, c, cutoff=2).items()
        if steps
    }
    expected |= {pair for pair in listed(edges) if pair[0] == pair[1]}
    found = listed(two_hop(edges))
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_the_union_is_of_sets_of_pairs():
    a = edges_of([(0, 1), (0, 1), (2, 2)], 4)
    b = edges_of([(0, 1), (3, 0)], 4)
    assert listed(union(a, b)) == [(3, 0), (0, 1), (2, 2)]
    assert listed(union(b, a)) == listed(union(a, b))
    with pytest.raises(ShapeError, match="over the same nodes"):
        union(a, edges_of([(0, 1)], 3))
    with pytest.raises(ShapeError, match="over the same nodes"):
        union(a, edges_of([(0, 1)], 4, torch.tensor([0, 2, 4])))


@pytest.mark.parametrize("k", [1, 3])
def test_the_largest_pagerank_but_ones_own_is_kept(k):
    edges = random_edges(40, 50)
    U = personalised_pagerank(edges).fill_diagonal_(0)
    expected = torch.zeros(40, 40).scatter(1, U.topk(k, dim=1).indices, 1.0)
    found = ppr_top_k(edges, k, tolerance=1e-12)
    assert torch.equal(counts(found), expected.double())


def test_a_node_that_reaches_fewer_gets_fewer_and_an_isolated_one_none():
    found = ppr_top_k(single("two components and a node alone"), 10)
    assert found.incoming.lengths.tolist() == [2, 2, 2, 0, 1, 1]
    assert all(c != r for c, r in listed(found))
    assert ppr_top_k(single("no edges"), 3).count == 0
    assert ppr_top_k(edges_of([], 0), 3).count == 0


def test_a_node_that_hears_more_from_others_than_itself_still_gets_k():
    # Node 0 restarts rarely and listens to one that listens to itself.
    edges = edges_of([(1, 0), (1, 1), (1, 1), (2, 1), (0, 2)], 3)
    U = personalised_pagerank(edges)
    assert U[0].argmax() == 1
    assert [pair for pair in listed(ppr_top_k(edges, 1)) if pair[1] == 0] == [(1, 0)]


def test_the_diffused_graph_diffuses():
    edges = random_edges(30, 40)
    U = personalised_pagerank(edges, 0.1)
    x = torch.linspace(-1, 1, 60).reshape(30, 2)
    everything = LargestPerRow(30)
    diffused, weight = diffused_graph(edges, everything, 0.1, "rows", tolerance=1e-9)
    near = {"rtol": TOLERANCE[torch.float32], "atol": TOLERANCE[torch.float32]}
    torch.testing.assert_close(weighted_sum(weight, x, diffused), U.float() @ x, **near)
    diffused, weight = diffused_graph(edges, LargestPerRow(5))
    columns = torch.zeros(30).index_add(0, diffused.sender, weight)
    assert ((columns - 1).abs() < 1e-5).logical_or(columns == 0).all()


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 1.0])
@every_graph
def test_pruning_keeps_the_largest_of_each_receiver(name, keep):
    edges = single(name)
    weight = torch.arange(edges.count).mul(7).remainder(5).double()
    pruned = prune(edges, weight, keep, "receiver")
    for node in range(edges.nodes):
        own = (edges.receiver == node).nonzero().squeeze(1).tolist()
        own.sort(key=lambda e: (-weight[e].item(), e))
        expected = sorted(own[: -(-len(own) * int(keep * 100) // 100)])
        assert pruned.order[pruned.receiver == node].tolist() == expected
    assert torch.equal(edges.sender[pruned.order], pruned.sender)
    assert torch.equal(edges.receiver[pruned.order], pruned.receiver)


def test_pruning_keeps_the_largest_of_the_graph_and_the_first_of_equal_ones():
    edges = single("ring with chords")
    assert prune(edges, torch.zeros(18), 0.5).order.tolist() == list(range(9))
    weight = torch.linspace(0, 1, 18)
    assert prune(edges, weight, 0.1).order.tolist() == [16, 17]
    assert prune(edges, weight, 1.0).order.tolist() == list(range(18))


def test_a_fraction_that_rounding_moved_is_the_fraction_meant():
    edges = edges_of([(0, 1)] * 100, 2)
    assert 100 * 0.07 > 7  # in floating point
    assert prune(edges, torch.arange(100.0), 0.07).count == 7


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda e: prune(e, torch.ones(e.count, 2), 0.5), ShapeError, "Average over heads"),
        (lambda e: prune(e, torch.ones(3), 0.5), ShapeError, "one an edge"),
        (lambda e: prune(e, torch.ones(e.count), 0.0), UsageError, "found keep = 0.0"),
        (lambda e: prune(e, torch.ones(e.count), 1.5), UsageError, "found keep = 1.5"),
        (lambda e: prune(e, torch.ones(e.count), 0.5, "node"), UsageError, "within='node'"),
        (lambda e: prune(e, torch.full((e.count,), torch.nan), 0.5), NumericalError, "NaN"),
        (lambda e: ppr_top_k(e, 0), UsageError, "found k = 0"),
        (lambda e: ppr_top_k(e, 2, teleport=2.0), UsageError, "teleport: found"),
        (lambda e: diffused_graph(e, normalise="all"), UsageError, "normalise: found"),
    ],
)
def test_what_cannot_be_rewired_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong(single("path"))
