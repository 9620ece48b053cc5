"""The laws a classifier of nodes claims to obey, measured on random graphs in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.evaluate.laws import Law
from eqflow.graphs import Graph
from eqflow.graphs.classifier import AbstractNodeClassifier
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.testing import TOLERANCE

DEGREE = 4  # mean number of neighbours in a random graph
SOLVED = 1e-8  # tolerance of the solver, well below that of a law
STEPS = 100_000
# Another batch takes other steps, whose errors a field can magnify.
SOLVED_TOLERANCE = 1e-5


def node_laws(classifier: AbstractNodeClassifier, nodes: int = 16, seed: int = 0) -> Iterator[Law]:
    """Measure every law on random graphs with an isolated node, each given as soon as it is known.

    Args:
        classifier: A trained classifier; a copy of it is used, on the CPU.
        nodes: Of a graph, at least 4.
        seed: Graphs and permutations are functions of it.
    """
    classifier = copy.deepcopy(classifier).double().cpu().eval()
    tolerance = TOLERANCE[torch.float64]
    beside = tolerance
    if isinstance(classifier, DiffusionClassifier):
        solver = replace(classifier.solver, rtol=SOLVED, atol=SOLVED, step_limit=STEPS)
        classifier.solver = solver
        tolerance = max(tolerance, SOLVED)
        beside = SOLVED_TOLERANCE if solver.is_adaptive else tolerance
    graph = random_graph(classifier, nodes, seed)
    other = random_graph(classifier, nodes // 2 + 1, seed + 1)
    with torch.no_grad():
        logits = classifier(graph)
        source = rng.generator(seed, "check", "permutation")
        order = rng.permutation(nodes, source)
        permuted = classifier(_permuted(graph, order, source))
        yield Law("nodes: logits permute with them", _error(permuted, logits[order]), tolerance)
        both = classifier(_joined(other, graph))[other.nodes :]
        yield Law("nodes: logits are those without a graph beside", _error(both, logits), beside)
        with rng.seeded(seed, "check", "first"):
            first = classifier(graph)
        with rng.seeded(seed, "check", "second"):
            second = classifier(graph)
        error = _error(first, second)
        yield Law("nodes: nothing is drawn, dropout is off", error, 0.0)


def random_graph(classifier: AbstractNodeClassifier, nodes: int, seed: int) -> Graph:
    """A graph that the classifier takes: both directions of every edge, the last node alone.

    Encodings are points within the unit ball, where hyperbolic ones are.
    """
    source = rng.generator(seed, "check", "graph")
    like = torch.zeros((), dtype=torch.float64)
    x = rng.normal((nodes, classifier.features), like, source)
    pairs = rng.uniform((nodes, nodes), like, source) < DEGREE / nodes
    pairs = (pairs | pairs.t()).fill_diagonal_(False)
    pairs[-1] = False
    pairs[:, -1] = False
    encoding = None
    if classifier.encoding_features:
        encoding = rng.normal((nodes, classifier.encoding_features), like, source)
        encoding = encoding / (1 + encoding.norm(dim=1, keepdim=True))
    y = torch.full((nodes,), -1)
    return Graph(x, Edges.from_index(pairs.nonzero().t(), nodes), y, encoding)


def _permuted(graph: Graph, order: Tensor, source: torch.Generator) -> Graph:
    """The graph whose node `i` is node `order[i]` of this one, its edges in another order."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    pairs = place[torch.stack([graph.edges.sender, graph.edges.receiver])]
    encoding = None if graph.encoding is None else graph.encoding[order]
    shuffled = rng.permutation(pairs.shape[1], source)
    edges = Edges.from_index(pairs[:, shuffled], graph.nodes)
    return Graph(graph.x[order], edges, graph.y[order], encoding)


def _joined(a: Graph, b: Graph) -> Graph:
    """Two graphs side by side."""
    pairs = [torch.stack([part.edges.sender, part.edges.receiver]) for part in (a, b)]
    n = a.nodes + b.nodes
    ptr = torch.tensor([0, a.nodes, n])
    edges = Edges.from_index(torch.cat([pairs[0], pairs[1] + a.nodes], 1), n, ptr)
    encoding = None
    if a.encoding is not None and b.encoding is not None:
        encoding = torch.cat([a.encoding, b.encoding])
    return Graph(torch.cat([a.x, b.x]), edges, torch.cat([a.y, b.y]), encoding)


def _error(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value; NaN where one is not finite."""
    scale = expected.abs().max().clamp(min=1e-30)
    return float((found - expected).abs().max() / scale)
