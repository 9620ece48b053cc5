"""Classifiers of nodes: from a graph to the logits of each node's class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from eqflow.errors import DataError
from eqflow.graphs.graph import Graph
from eqflow.nn.graph_convolution import with_self_loops


@dataclass(frozen=True)
class Classification:
    """What a classifier says of a graph, and what it took.

    Attributes:
        logits: Of each node's class, shape (N, K).
        penalties: Scalars that training may add to its loss, by name, their weights in them.
        evaluations: How often a right-hand side, or a layer, was evaluated.
    """

    logits: Tensor
    penalties: dict[str, Tensor] = field(default_factory=dict)
    evaluations: int = 0


class AbstractNodeClassifier(nn.Module, ABC):
    """A network that classifies the nodes of a graph.

    Attributes:
        features: Width F of the node features it takes.
        encoding_features: Width P of the positional encodings it takes, 0 for none.
        classes: Number K of classes.
        loops_itself: Whether nodes without a self loop get one first, as those it was trained on.
    """

    features: int
    encoding_features: int
    classes: int
    loops_itself: bool = False

    def forward(self, graph: Graph) -> Tensor:
        """The logits of each node's class, shape (N, K).

        Raises:
            DataError: If the graph has other features or encodings than the classifier takes.
            SolverFailed: If an equation could not be solved.
        """
        return self.classify(graph).logits

    def classify(self, graph: Graph) -> Classification:
        """The logits, and what comes with them; see `forward`."""
        for what, found, expected in (
            ("features", graph.features, self.features),
            (
                "channels of a positional encoding",
                0 if graph.encoding is None else graph.encoding.shape[1],
                self.encoding_features,
            ),
        ):
            if found != expected:
                raise DataError(
                    f"{graph.name}: found {found:,} {what} a node, expected {expected:,}: those "
                    "the classifier was made for. Give data of the same kind as it was trained on."
                )
        return self._classify(self.looped(graph))

    def looped(self, graph: Graph) -> Graph:
        """The graph as the classifier works on it; itself where its self loops are all there."""
        edges = with_self_loops(graph.edges) if self.loops_itself else graph.edges
        return graph if edges.count == graph.edges.count else graph.with_edges(edges)

    @abstractmethod
    def _classify(self, graph: Graph) -> Classification:
        """As `classify`, of a graph whose widths fit."""
