r"""DGCNN: convolutions on the edges to the nearest neighbours, found anew for each layer.

.. math::
    m_{ij} = \varphi\big(W_1 h_i + W_2 (h_j - h_i)\big), \qquad
    h_i' = \sum_j \frac{e^{m_{ij}}}{\sum_k e^{m_{ik}}} \, m_{ij} \text{ in each column.}

The published maximum over `j` is here this softmax-weighted mean, which is close to it, smooth, and
the mean where all messages are alike. The first graph is that of the positions, the next ones are
those of the features.

References: Dynamic Graph CNN for Learning on Point Clouds (Wang et al., 2019), arXiv:1801.07829,
eq. 7-8 and section 3.2; DeeperGCN (Li et al., 2020), arXiv:2006.07739, eq. 3, for the aggregation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, gather, segment_softmax, segment_sum
from eqflow.geometry import Segments
from eqflow.nn.arguments import require_counts
from eqflow.nn.backbones.abstract import AbstractBackbone, perceptron


class DGCNNBackbone(AbstractBackbone):
    """Edge convolutions, read out from what all of them found.

    The neighbours are piecewise constant: where another point becomes one the output jumps. Which
    of several equally near points are taken is arbitrary, so that of a symmetric cloud, such as SF₆
    with three neighbours, not even an average over poses is equivariant; take all points there. The
    search runs on the host, and not within `torch.func`.

    Args:
        dimension, features, outputs, pooled: As in `AbstractBackbone`; pooling is the mean over
            points, zero where there are none.
        width: Width of the hidden features.
        layers: Number of edge convolutions.
        neighbours: How many nearest points each one looks at; all of its cloud where None.
        dynamic: Whether later layers find neighbours among features, as published, or keep those of
            the positions.

    Raises:
        UsageError: If a number is out of range.

    >>> backbone = DGCNNBackbone(3, features=0, outputs=5, neighbours=2)
    >>> backbone(torch.zeros(6, 3), torch.tensor([0, 2, 6])).shape
    torch.Size([6, 5])
    """

    def __init__(
        self,
        dimension: int,
        features: int,
        outputs: int,
        width: int = 64,
        layers: int = 3,
        *,
        neighbours: int | None = 20,
        dynamic: bool = True,
        pooled: bool = False,
    ) -> None:
        super().__init__(dimension, features, outputs, pooled=pooled)
        require_counts(type(self).__name__, width=width, layers=layers)
        if neighbours is not None:
            require_counts(type(self).__name__, neighbours=neighbours)
        self.neighbours = neighbours
        self.dynamic = dynamic
        widths = [dimension + features, *[width] * layers]
        self.layers = nn.ModuleList(EdgeConvolution(inputs, width) for inputs in widths[:-1])
        self.head = perceptron(layers * width, width, outputs)

    def of_points(self, x: Tensor, values: Tensor, clouds: Segments) -> Tensor:
        """The network; arguments as in `AbstractBackbone`.

        Raises:
            NumericalError: If what neighbours are sought among is not finite.
        """
        edges, h, found = self._connect(x, clouds), values, []
        for layer in self.layers:
            if found and self.dynamic and self.neighbours is not None:
                edges = self._connect(h, clouds)
            h = layer(h, edges)
            found.append(h)
        h = torch.cat(found, 1)
        return self.head(clouds.mean(h) if self.pooled else h)

    def _connect(self, values: Tensor, clouds: Segments) -> Edges:
        if self.neighbours is None:
            return Edges.complete(clouds)
        return Edges.knn(values.detach(), self.neighbours, clouds)


class EdgeConvolution(nn.Module):
    """One edge convolution; a point without neighbours gets zero.

    Args:
        features: Width of the node features that go in.
        width: Width of the messages, which come out.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(features, width)
        self.difference = nn.Linear(features, width, bias=False)
        self.message = perceptron(width, width)

    def forward(self, h: Tensor, edges: Edges) -> Tensor:
        """Features (N, width) from features (N, features)."""
        # W₁ h_i + W₂ (h_j − h_i), its products once a node and not once an edge.
        other = self.difference(h)
        receiver = gather(self.own(h) - other, edges, "receiver")
        inner = nn.functional.silu(receiver + gather(other, edges))
        message = self.message(inner)
        return segment_sum(segment_softmax(message, edges) * message, edges)
