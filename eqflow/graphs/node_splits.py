"""Random splits of labelled nodes, each by the protocol of a paper and a function of the seed.

Accuracies on random splits are comparable only within one protocol: how many nodes of each class
are trained on, how many choose the weights, and which are left for the last figure. Several papers
take the largest component first; `largest_component` does so. Nodes without a label are in no part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import DataError, UsageError
from eqflow.graphs.graph import Graph, Split


def planetoid_split(
    graph: Graph, seed: int, train_per_class: int = 20, validation: int = 500, test: int = 1000
) -> Split:
    """A random split with the sizes of Planetoid's public one.

    `train_per_class` nodes of each class; of the others, `validation` and `test` drawn regardless
    of their class. Further nodes are in no part.

    Reference: Revisiting Semi-Supervised Learning with Graph Embeddings (Yang, Cohen,
    Salakhutdinov, 2016), arXiv:1603.08861; drawn at random in Pitfalls of Graph Neural Network
    Evaluation (Shchur et al., 2018), arXiv:1811.05868.

    Raises:
        UsageError: If a size is below 1.
        DataError: If a class has too few nodes, or the graph has.
    """
    where = _named("planetoid", graph, seed)
    _require_sizes(where, train_per_class=train_per_class, validation=validation, test=test)
    order = _shuffled(graph, seed, "planetoid")
    train = _of_each_class(graph, order, train_per_class, where)
    rest = order[~torch.isin(order, train)]
    if len(rest) < validation + test:
        raise DataError(
            f"{where}: found {len(rest):,} labelled nodes beyond the {len(train):,} to train on, "
            f"expected {validation + test:,} for validation and test. Ask for fewer."
        )
    return _split(graph, train, rest[:validation], rest[validation : validation + test], where)


def per_class_split(
    graph: Graph, seed: int, train_per_class: int = 20, validation_per_class: int = 30
) -> Split:
    """`train_per_class` nodes of each class, `validation_per_class` others, and all that are left.

    Reference: Pitfalls of Graph Neural Network Evaluation (Shchur et al., 2018), arXiv:1811.05868.

    Raises:
        UsageError: If a size is below 1.
        DataError: If a class has too few nodes.
    """
    where = _named("per_class", graph, seed)
    _require_sizes(
        where, train_per_class=train_per_class, validation_per_class=validation_per_class
    )
    order = _shuffled(graph, seed, "per_class")
    both = _of_each_class(graph, order, train_per_class + validation_per_class, where)
    each = both.reshape(-1, train_per_class + validation_per_class)
    train, validation = each[:, :train_per_class], each[:, train_per_class:]
    test = order[~torch.isin(order, both)]
    return _split(graph, train.flatten(), validation.flatten(), test, where)


def development_split(
    graph: Graph,
    seed: int,
    development: int = 1500,
    train_per_class: int = 20,
    development_seed: int | None = None,
) -> Split:
    """Train and validation within a development set, test on all other nodes.

    `development` nodes are drawn regardless of their class; of these, `train_per_class` of each
    class are trained on and the others are for validation. GRAND and BLEND use 1,500 nodes of the
    largest component, and 5,000 on Coauthor CS.

    Args:
        graph: With labels.
        seed: Of the draw.
        development: Size of the development set.
        train_per_class: Nodes of each class to train on.
        development_seed: Seed of the development set alone: with a fixed one the test nodes are
            the same for all seeds, as the first of the references has it. Where None, `seed`.

    Reference: Diffusion Improves Graph Learning (Gasteiger, Weißenberger, Günnemann, 2019),
    arXiv:1911.05485; GRAND: Graph Neural Diffusion (Chamberlain et al., 2021),
    arXiv:2106.10934.

    Raises:
        UsageError: If a size is below 1.
        DataError: If the graph, or a class within the development set, has too few nodes.
    """
    where = _named("development", graph, seed)
    _require_sizes(where, development=development, train_per_class=train_per_class)
    chosen = seed if development_seed is None else development_seed
    order = _shuffled(graph, chosen, "development", "nodes")
    if development >= len(order):
        raise DataError(
            f"{where}: found {len(order):,} labelled nodes, expected more than "
            f"development={development:,}, to have some left to test on. Ask for fewer."
        )
    within, test = order[:development], order[development:]
    source = rng.generator(seed, "graphs", "development", "train")
    within = within[rng.permutation(development, source)]
    train = _of_each_class(graph, within, train_per_class, f"{where}, development set")
    return _split(graph, train, within[~torch.isin(within, train)], test, where)


def fraction_split(graph: Graph, seed: int, train: float = 0.6, validation: float = 0.2) -> Split:
    """Shares of the nodes of each class, rounded; all that are left for the last figure.

    A class always has a node to train on; one of one or two nodes may be in fewer parts.

    Reference: Geom-GCN (Pei et al., 2020), arXiv:2002.05287: 60 %, 20 % and 20 % as printed;
    the splits it published have 48 %, 32 % and 20 %.

    Raises:
        UsageError: If the shares leave nothing to test on.
        DataError: If a class has no nodes.
        EmptyData: If a part has no node.
    """
    where = _named("fraction", graph, seed)
    if not (0 < train < 1 and 0 < validation < 1 and train + validation < 1):
        raise UsageError(
            f"{where}: found train={train}, validation={validation}, expected shares above 0 "
            "that add up to less than 1, to have nodes left to test on."
        )
    order = _shuffled(graph, seed, "fraction")
    parts: list[list[Tensor]] = [[], [], []]
    for label in range(graph.classes):
        members = _members(graph, order, label, 1, where)
        first = max(round(train * len(members)), 1)
        second = min(max(round((train + validation) * len(members)), first), len(members))
        for part, drawn in zip(
            parts, (members[:first], members[first:second], members[second:]), strict=True
        ):
            part.append(drawn)
    return _split(graph, *(torch.cat(part) for part in parts), where)


PROTOCOLS: dict[str, Callable[..., Split]] = {
    "planetoid": planetoid_split,
    "per_class": per_class_split,
    "development": development_split,
    "fraction": fraction_split,
}


def random_split(graph: Graph, seed: int, protocol: str = "planetoid", **sizes: float) -> Split:
    """A random split by the name of its protocol: the function `…_split` of that name.

    Args:
        graph: With labels.
        seed: The only randomness.
        protocol: `planetoid`, `per_class`, `development` or `fraction`.
        sizes: Options of that function.

    Raises:
        UsageError: If there is no such protocol, or it has no such option.
        DataError: If a class, or the graph, has too few nodes.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(
            f"random_split: found the protocol {protocol!r}, expected one of "
            f"{', '.join(PROTOCOLS)}."
        )
    function = PROTOCOLS[protocol]
    names = list(inspect.signature(function).parameters)[2:]
    unknown = sorted(set(sizes) - set(names))
    if unknown:
        raise UsageError(
            f"random_split: found {', '.join(unknown)} for the protocol {protocol}, expected "
            f"options among {', '.join(names)}."
        )
    return function(graph, seed, **sizes)


def _named(protocol: str, graph: Graph, seed: int) -> str:
    return f"{graph.name}, {protocol} split {seed}"


def _shuffled(graph: Graph, seed: int, *purpose: str) -> Tensor:
    """All labelled nodes in random order."""
    labelled = (graph.y.cpu() >= 0).nonzero().squeeze(1)
    return labelled[rng.permutation(len(labelled), rng.generator(seed, "graphs", *purpose))]


def _members(graph: Graph, order: Tensor, label: int, count: int, where: str) -> Tensor:
    members = order[graph.y.cpu()[order] == label]
    if len(members) < count:
        raise DataError(
            f"{where}: found {len(members)} nodes of class {label}, expected at least {count}. "
            "Ask for fewer nodes of each class, or merge or drop the class."
        )
    return members


def _of_each_class(graph: Graph, order: Tensor, count: int, where: str) -> Tensor:
    """The first `count` nodes of each class, class by class."""
    if not graph.classes:
        raise DataError(f"{where}: found no labelled node, expected some of each class.")
    drawn = [_members(graph, order, label, count, where)[:count] for label in range(graph.classes)]
    return torch.cat(drawn)


def _split(graph: Graph, train: Tensor, validation: Tensor, test: Tensor, where: str) -> Split:
    masks = []
    for nodes in (train, validation, test):
        mask = torch.zeros(graph.nodes, dtype=torch.bool)
        mask[nodes] = True
        masks.append(mask.to(graph.y.device))
    return Split(*masks, where.rpartition(", ")[2])


def _require_sizes(where: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UsageError(f"{where}: found {name}={size}, expected a whole number from 1.")
