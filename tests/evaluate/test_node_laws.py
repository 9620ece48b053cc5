"""The laws of classifiers of nodes hold for every model, and fail for broken ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eqflow.cli.compose import composed
from eqflow.evaluate.node_laws import node_laws, random_graph
from eqflow.graphs import Graph
from eqflow.graphs.classifier import AbstractNodeClassifier, Classification
from eqflow.train.build_nodes import build_example
from eqflow.train.node_models import NODE_MODELS


def broken_laws(classifier: AbstractNodeClassifier) -> list[str]:
    return [law.name.split(": ")[1] for law in node_laws(classifier) if not law.holds]


@pytest.mark.parametrize("name", sorted(NODE_MODELS))
def test_every_model_obeys_them(name: str) -> None:
    words = [f"model={name}", "model.width=8"]
    words += ["encoding=laplacian", "encoding.width=3"] if name == "blend" else []
    classifier = build_example(composed("train", words))
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.1)
    assert broken_laws(classifier) == []


@pytest.mark.parametrize(
    "solver",
    [
        ["solver.method=exponential"],
        ["solver.method=implicit", "solver.steps=3"],
        ["solver.method=rk4", "solver.steps=3"],
        ["solver.method=dopri5"],
    ],
)
def test_they_hold_for_every_way_to_solve(solver: list[str]) -> None:
    words = ["model=grand", "model.width=8", *solver]
    assert broken_laws(build_example(composed("train", words))) == []


class Broken(AbstractNodeClassifier):
    """A linear classifier with something wrong."""

    features, encoding_features, classes = 4, 0, 3

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)
        self.how = how

    def wrong(self, logits: Tensor) -> Tensor:
        match self.how:
            case "place":
                return logits + torch.arange(len(logits)).unsqueeze(1)
            case "others":
                return logits - logits.mean(0)
            case "dropout":
                return nn.functional.dropout(logits, 0.5)
        return logits

    def _classify(self, graph: Graph) -> Classification:
        return Classification(self.wrong(self.linear(graph.x)))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("place", "logits permute with them"),
        ("others", "logits are those without a graph beside"),
        ("dropout", "nothing is drawn, dropout is off"),
    ],
)
def test_a_broken_classifier_is_found(how: str, expected: str) -> None:
    assert expected in broken_laws(Broken(how))
    assert broken_laws(Broken("nothing")) == []


def test_a_random_graph_is_undirected_with_an_isolated_node_and_a_function_of_the_seed() -> None:
    graph, again = (random_graph(Broken(""), 16, 3) for _ in range(2))
    pairs = set(zip(graph.edges.sender.tolist(), graph.edges.receiver.tolist(), strict=True))
    assert pairs == {(b, a) for a, b in pairs}
    assert not any(15 in pair for pair in pairs)
    assert pairs
    assert torch.equal(graph.x, again.x)
    assert not torch.equal(graph.x, random_graph(Broken(""), 16, 4).x)
