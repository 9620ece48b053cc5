"""Random splits: the sizes of each protocol, no node twice, a function of the seed, fair draws."""

import math
from dataclasses import replace

import pytest
import torch

from eqflow.edges import Edges
from eqflow.errors import DataError, EmptyData, UsageError
from eqflow.graphs import (
    Graph,
    development_split,
    fraction_split,
    per_class_split,
    planetoid_split,
    random_split,
)

SIZES = (60, 90, 150)


def graph_of(*sizes: int, unknown: int = 10) -> Graph:
    """Classes of the sizes said, mixed up, and nodes without a label."""
    y = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    y = torch.cat([y, torch.full((unknown,), -1)])
    n = len(y)
    y = y[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    edges = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), n)
    return Graph(torch.ones(n, 1), edges, y, name="made up")


PROTOCOLS = {
    "planetoid": {"train_per_class": 20, "validation": 50, "test": 100},
    "per_class": {"train_per_class": 20, "validation_per_class": 30},
    "development": {"development": 150, "train_per_class": 15},
    "fraction": {"train": 0.5, "validation": 0.3},
}


def counts(graph: Graph, mask: torch.Tensor) -> list[int]:
    return graph.y[mask].bincount(minlength=graph.classes).tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_node_is_in_two_parts_and_none_without_a_label_in_any(protocol):
    graph = graph_of(*SIZES)
    for seed in range(5):
        parts = random_split(graph, seed, protocol, **PROTOCOLS[protocol]).parts.values()
        together = sum(part.int() for part in parts)
        assert int(together.max()) == 1
        assert not together[graph.y < 0].any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_split_is_a_function_of_the_seed_and_the_labels(protocol):
    graph = graph_of(*SIZES)

    def drawn(seed, graph=graph):
        return random_split(graph, seed, protocol, **PROTOCOLS[protocol])

    first, same, other = drawn(0), drawn(0), drawn(1)
    assert first.name == same.name == f"{protocol} split 0"
    for name, mask in first.parts.items():
        assert torch.equal(mask, same.parts[name])
        assert not torch.equal(mask, other.parts[name])
    changed = drawn(0, replace(graph, x=torch.zeros(graph.nodes, 5), name="another"))
    assert torch.equal(first.test, changed.test)


def test_planetoid_has_twenty_of_each_class_and_then_whatever_comes():
    graph = graph_of(*SIZES)
    split = planetoid_split(graph, 0, validation=50, test=100)
    assert counts(graph, split.train) == [20, 20, 20]
    assert int(split.validation.sum()) == 50
    assert int(split.test.sum()) == 100


def test_per_class_has_so_many_of_each_class_and_all_others_to_test_on():
    graph = graph_of(*SIZES)
    split = per_class_split(graph, 0)
    assert counts(graph, split.train) == [20] * 3
    assert counts(graph, split.validation) == [30] * 3
    assert counts(graph, split.test) == [size - 50 for size in SIZES]


def test_development_tests_on_all_outside_the_development_set():
    graph = graph_of(*SIZES)
    split = development_split(graph, 0, development=150, train_per_class=15)
    assert counts(graph, split.train) == [15] * 3
    assert int(split.validation.sum()) == 150 - 45
    assert int(split.test.sum()) == sum(SIZES) - 150


def test_a_development_seed_keeps_the_test_nodes_for_all_seeds():
    graph = graph_of(*SIZES)
    splits = [development_split(graph, seed, 150, 15, development_seed=7) for seed in range(3)]
    assert all(torch.equal(split.test, splits[0].test) for split in splits)
    assert not torch.equal(splits[0].train, splits[1].train)


def test_fractions_are_met_in_each_class():
    graph = graph_of(*SIZES)
    split = fraction_split(graph, 0, 0.48, 0.32)
    assert counts(graph, split.train) == [round(0.48 * size) for size in SIZES]
    assert counts(graph, split.test) == [size - round(0.8 * size) for size in SIZES]


def test_a_class_of_one_node_is_trained_on():
    graph = graph_of(40, 1, 30)
    for seed in range(3):
        split = fraction_split(graph, seed)
        assert [counts(graph, part)[1] for part in split.parts.values()] == [1, 0, 0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_node_of_a_class_is_as_likely_as_the_next(protocol):
    graph = graph_of(*SIZES)
    draws = 400
    parts = {"train": 0, "validation": 0, "test": 0}
    for seed in range(draws):
        split = random_split(graph, seed, protocol, **PROTOCOLS[protocol])
        for name, mask in split.parts.items():
            parts[name] = parts[name] + mask.double()
    for total in parts.values():
        for label in range(3):
            often = total[graph.y == label]
            p = float(often.mean()) / draws
            # Five standard errors of a binomial count, for each node.
            assert (often - draws * p).abs().max() < 5 * math.sqrt(draws * p * (1 - p))


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (
            lambda g: planetoid_split(g, 0, 61, 10, 10),
            "found 60 nodes of class 0, expected at least 61",
        ),
        (
            lambda g: planetoid_split(g, 0),
            "found 240 labelled nodes beyond the 60 .*expected 1,500",
        ),
        (
            lambda g: per_class_split(g, 0, 40, 40),
            "found 60 nodes of class 0, expected at least 80",
        ),
        (lambda g: development_split(g, 0), "found 300 labelled nodes, expected more than .*1,500"),
        (
            lambda g: development_split(g, 0, 40, 20),
            "development set: found .* of class 0, expected",
        ),
        (lambda g: fraction_split(replace(g, y=g.y.clamp(min=1)), 0), "found 0 nodes of class 0"),
        (lambda g: per_class_split(replace(g, y=g.y * 0 - 1), 0), "found no labelled node"),
    ],
)
def test_too_few_nodes_are_named_by_their_class(draw, words):
    with pytest.raises(DataError, match=f"^made up, .* split 0.*{words}"):
        draw(graph_of(*SIZES))


def test_a_class_that_is_used_up_leaves_an_empty_part():
    with pytest.raises(EmptyData, match=r"per_class split 0: .*'test': 0"):
        per_class_split(graph_of(50, 50), 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "stratified"}, "protocol 'stratified', expected one of planetoid, per_class"),
        ({"protocol": "planetoid", "validation_per_class": 3}, "found validation_per_class for"),
        ({"protocol": "planetoid", "test": 0}, "found test=0, expected a whole number from 1"),
        ({"protocol": "per_class", "train_per_class": 2.5}, "found train_per_class=2.5"),
        ({"protocol": "planetoid", "test": 20.0}, "found test=20.0"),
        ({"protocol": "fraction", "train": 0.9}, "expected shares above 0"),
        ({"protocol": "fraction", "validation": 0.0}, "expected shares above 0"),
    ],
)
def test_options_that_make_no_split_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        random_split(graph_of(*SIZES), 0, **options)
