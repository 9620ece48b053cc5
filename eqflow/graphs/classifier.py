"""Classifiers of nodes: from a graph to the logits of each node's class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from eqflow.errors import DataError, NoDensity, UsageError
from eqflow.graphs.graph import Graph
from eqflow.nn.graph_convolution import with_self_loops

# What flows can do and classifiers cannot.
OF_DENSITIES = ("sample", "score", "log_prob", "trajectory", "transport")


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
        if not isinstance(graph, Graph):
            raise UsageError(
                f"{type(self).__name__}: found a graph of type {type(graph).__name__}, expected "
                "eqflow.graphs.Graph. Take one from read_graph, load_graph or from_pyg."
            )
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

    def __getattr__(self, name: str) -> Any:
        if name in OF_DENSITIES:
            raise NoDensity(
                f"{type(self).__name__}: found .{name} of a classifier of nodes, which has no "
                "density. Call it with a graph for its logits, model(graph), or use eqflow score."
            )
        return super().__getattr__(name)

    def looped(self, graph: Graph) -> Graph:
        """The graph as the classifier works on it; itself where its self loops are all there."""
        edges = with_self_loops(graph.edges) if self.loops_itself else graph.edges
        return graph if edges.count == graph.edges.count else graph.with_edges(edges)

    @abstractmethod
    def _classify(self, graph: Graph) -> Classification:
        """As `classify`, of a graph whose widths fit."""
