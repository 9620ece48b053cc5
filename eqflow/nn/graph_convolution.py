r"""Graph convolution with fixed weights: GCN, and its residual form.

Each node gets a self loop where it has none, and takes a weighted sum over incoming edges,

.. math::
    x_i \leftarrow \sum_{e \to i} \frac{x_c}{\sqrt{d_c d_i}} W + b ,

with degrees `d` that count incoming edges, self loops and repeated edges among them. What depends
on the graph alone is computed once for each graph.

Reference: Semi-Supervised Classification with Graph Convolutional Networks (Kipf, Welling, 2017),
arXiv:1609.02907, eq. 2 and 8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, gather, weighted_sum
from eqflow.errors import ShapeError
from eqflow.nn.arguments import require_counts, require_edges, require_kind_of
from eqflow.nn.per_graph import degrees, once_per_graph


@once_per_graph
def inverse_square_root_degrees(edges: Edges, dtype: torch.dtype) -> Tensor:
    """`1/√d_i`, shape (N,), with 0 at a node that no edge leads to."""
    degree = degrees(edges, dtype)
    return degree.clamp(min=1).rsqrt() * (degree > 0)


@once_per_graph
def symmetric_weights(edges: Edges, dtype: torch.dtype = torch.float64) -> Tensor:
    """`1/√(d_c d_r)` of each edge: entries of `D^{-1/2} A D^{-1/2}`.

    Args:
        edges: The graph. Degrees count incoming edges at both ends; a sender that no edge leads to,
            which only directed graphs have, sends nothing.
        dtype: Type of the weights; float64 loses nothing before a conversion.

    Returns:
        Shape (E,), a constant.
    """
    scale = inverse_square_root_degrees(edges, dtype)
    return gather(scale, edges) * gather(scale, edges, "receiver")


@once_per_graph
def random_walk_weights(edges: Edges, dtype: torch.dtype = torch.float64) -> Tensor:
    """`1/d_r` of each edge: entries of `D⁻¹ A`, each receiver's add up to 1.

    Args:
        edges: The graph.
        dtype: Type of the weights; float64 loses nothing before a conversion.

    Returns:
        Shape (E,), a constant.
    """
    return gather(1 / degrees(edges, dtype).clamp(min=1), edges, "receiver")


@once_per_graph
def with_self_loops(edges: Edges) -> Edges:
    """`Edges.with_self_loops`, made once."""
    return edges.with_self_loops()


class GraphConvolution(nn.Module):
    """A layer of GCN, `Ã x W + b`, without its activation.

    Args:
        in_features, out_features: Widths F and G.
        bias: Whether there is a `b`.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        require_counts("GraphConvolution", in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """Features of the next layer.

        Args:
            x: Node features, shape (N, F).
            edges: The graph, or a batch of graphs, with or without self loops.

        Returns:
            Shape (N, G).

        Raises:
            ShapeError: If `x` has another width, type or device.
            UsageError: If the edges are no graph.
        """
        require_edges("GraphConvolution", edges)
        require_kind_of("GraphConvolution", self, x)
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ShapeError(
                f"GraphConvolution: found x {tuple(x.shape)}, expected (N, {self.in_features})."
            )
        looped = with_self_loops(edges)
        w = symmetric_weights(looped, x.dtype)
        # Neighbours are summed where features are fewer.
        if self.out_features < self.in_features:
            x = weighted_sum(w, x @ self.weight, looped)
        else:
            x = weighted_sum(w, x, looped) @ self.weight
        return x if self.bias is None else x + self.bias

    def extra_repr(self) -> str:
        """Its widths."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class ResidualGraphConvolution(nn.Module):
    """`x + σ(Ã x W + b)`: an explicit Euler step of `ẋ = σ(Ã x W + b)` of length 1.

    Args:
        features: Width F.
        activation: `σ`; the identity where None.
        bias: Whether there is a `b`.
    """

    def __init__(
        self,
        features: int,
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.convolution = GraphConvolution(features, features, bias=bias)
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """Features of the next layer, shape (N, F) as `x`; arguments as in `GraphConvolution`."""
        return x + self.activation(self.convolution(x, edges))
