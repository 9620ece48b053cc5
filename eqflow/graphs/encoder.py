"""From features and positional encodings of nodes to the state that a network starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqflow.errors import UsageError
from eqflow.graphs.graph import Graph
from eqflow.graphs.rows import Rows


class RowEncoder(nn.Module):
    """A linear layer on rows that may be sparse, with dropout of its input.

    Args:
        features: Columns F of the rows.
        width: Columns C of the result.
        dropout: Probability that an entry is left out in training.
    """

    def __init__(self, features: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(torch.empty(width, features))
        self.bias = nn.Parameter(torch.empty(width))
        bound = 1 / math.sqrt(max(features, 1))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, rows: Rows) -> Tensor:
        """Shape (N, C)."""
        product = rows.times(self.weight.t(), self.dropout if self.training else 0.0)
        return product + self.bias


class NodeEncoder(nn.Module):
    """The state `(u, x)` of each node: positions of its encoding, then features.

    Args:
        features: Width of the features of the data.
        width: Channels of `x`.
        encoding_features: Width of the positional encodings; 0 for none.
        position_width: Channels of `u`; 0 for none.
        dropout: Probability that an entry of either is left out in training.
        norm: Whether `x` is normalised over the nodes, by batch normalisation.
        in_ball: Whether encodings are points of a ball and are positions as they are.

    Raises:
        UsageError: If there are positions without encodings, or points of a ball of another width.
    """

    def __init__(
        self,
        features: int,
        width: int,
        encoding_features: int = 0,
        position_width: int = 0,
        *,
        dropout: float = 0.0,
        norm: bool = False,
        in_ball: bool = False,
    ) -> None:
        super().__init__()
        if (position_width > 0) != (encoding_features > 0):
            raise UsageError(
                f"encoder: found positions of {position_width} channels and encodings of "
                f"{encoding_features}, expected both or neither. A model with positions needs an "
                "encoding of the nodes, and only such a model has a use for one."
            )
        if in_ball and position_width != encoding_features:
            raise UsageError(
                f"encoder: found positions of {position_width} channels and points of a ball in "
                f"{encoding_features} dimensions, expected the same: distances there would change."
            )
        self.features = features
        self.encoding_features = encoding_features
        self.of_features = RowEncoder(features, width, dropout)
        self.of_positions = (
            RowEncoder(encoding_features, position_width, dropout)
            if position_width and not in_ball
            else None
        )
        self.norm = nn.BatchNorm1d(width) if norm else None
        self.has_positions = position_width > 0

    def forward(self, graph: Graph) -> Tensor:
        """The state of each node, shape (N, P + C)."""
        x = self.of_features(graph.feature_rows)
        if self.norm is not None:
            x = self.norm(x)
        encoding = graph.encoding_rows
        if not self.has_positions or encoding is None:
            return x
        u = encoding.matrix if self.of_positions is None else self.of_positions(encoding)
        return torch.cat([u.to(x.dtype), x], 1)


class NodeDecoder(nn.Module):
    """From the last state to logits: ReLU, dropout, and one or two linear layers.

    Args:
        width: Channels of the state.
        classes: Number of classes.
        dropout: Probability that a channel is left out in training.
        hidden_layer: Whether a layer of the same width comes before the last.
    """

    def __init__(
        self, width: int, classes: int, *, dropout: float = 0.0, hidden_layer: bool = False
    ) -> None:
        super().__init__()
        self.classes = classes
        self.dropout = dropout
        self.hidden = nn.Linear(width, width) if hidden_layer else None
        self.out = nn.Linear(width, classes)

    def forward(self, z: Tensor) -> Tensor:
        """The logits, shape (N, K), of states (N, C)."""
        z = z.relu()
        if self.hidden is not None:
            z = self.hidden(z).relu()
        return self.out(F.dropout(z, self.dropout, self.training))
