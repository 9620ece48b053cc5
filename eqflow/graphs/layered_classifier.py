"""Classifiers of a fixed number of graph convolutions, with remedies against oversmoothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from eqflow.edges import Edges, weighted_sum
from eqflow.errors import UsageError
from eqflow.graphs.classifier import AbstractNodeClassifier, Classification
from eqflow.graphs.encoder import RowEncoder
from eqflow.graphs.graph import Graph
from eqflow.nn import GradientGating, GraphConvolution, ResidualGraphConvolution
from eqflow.nn.graph_convolution import symmetric_weights, with_self_loops


class Activated(nn.Module):
    """A layer, what is done to its result, and ReLU; either part before it may be None.

    Args:
        layer: Takes node features and edges.
        remedy: As `layer`.
    """

    def __init__(self, layer: nn.Module | None, remedy: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.remedy = remedy

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """Features of the next layer, shape (N, C)."""
        for part in (self.layer, self.remedy):
            if part is not None:
                x = part(x, edges)
        return x.relu()


class Layers(NamedTuple):
    """What convolutional networks differ in.

    Attributes:
        first: What follows the first convolution, ReLU in it.
        hidden: Makes a hidden layer of a width.
    """

    first: nn.Module
    hidden: Callable[[int], nn.Module]


def remedied(remedy: nn.Module | None = None) -> Layers:
    """GCN, each of its convolutions followed by a remedy: entropy ascent, PairNorm, or none."""
    return Layers(
        Activated(None, remedy), lambda width: Activated(GraphConvolution(width, width), remedy)
    )


def residual() -> Layers:
    """Hidden layers add what they compute to what they were given."""
    return Layers(Activated(None), lambda width: ResidualGraphConvolution(width, activation=F.relu))


def gated(power: float = 2.0) -> Layers:
    """Hidden layers under gradient gating (G2), each with a gate of its own."""

    def hidden(width: int) -> nn.Module:
        convolution, gate = (GraphConvolution(width, width) for _ in range(2))
        return GradientGating(convolution, gate, power=power)

    return Layers(Activated(None), hidden)


class LayeredClassifier(AbstractNodeClassifier):
    """Graph convolutions from features to logits.

    The first takes the features, the last gives the logits; those between keep the width and are
    what the remedies differ in.

    Args:
        features: Width F of the node features.
        classes: Number of classes.
        kind: Of layers: `remedied()` for GCN, `residual()`, `gated()`.
        width: Channels of the hidden layers.
        layers: Number of convolutions, at least 2.
        dropout, input_dropout: Probabilities that a channel, or a feature, is left out in training.

    Raises:
        UsageError: If there are fewer than two layers.
    """

    encoding_features = 0

    def __init__(
        self,
        features: int,
        classes: int,
        kind: Layers,
        width: int = 64,
        layers: int = 2,
        *,
        dropout: float = 0.5,
        input_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if layers < 2:
            raise UsageError(
                f"layers: found {layers}, expected at least 2: one from features, one to classes."
            )
        self.features = features
        self.classes = classes
        self.dropout = dropout
        self.encoder = RowEncoder(features, width, input_dropout)
        self.first = kind.first
        self.hidden = nn.ModuleList(kind.hidden(width) for _ in range(layers - 2))
        self.out = GraphConvolution(width, classes)

    def hidden_states(self, graph: Graph) -> list[Tensor]:
        """The state after each convolution but the last, shape (N, C) each."""
        edges = with_self_loops(graph.edges)
        x = self.encoder(graph.feature_rows)
        x = self.first(weighted_sum(symmetric_weights(edges, x.dtype), x, edges), edges)
        states = [x]
        for layer in self.hidden:
            x = layer(F.dropout(x, self.dropout, self.training), edges)
            states.append(x)
        return states

    def _classify(self, graph: Graph) -> Classification:
        edges = with_self_loops(graph.edges)
        x = F.dropout(self.hidden_states(graph)[-1], self.dropout, self.training)
        return Classification(self.out(x, edges), evaluations=len(self.hidden) + 2)
