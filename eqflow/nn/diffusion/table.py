r"""Known graph networks as special cases of one operator.

Table 1 of BLEND lists networks by what evolves, by their diffusivity and by their edges. Each is
here a field whose explicit Euler step of length 1 is the layer, before its nonlinearity:

=============  =====================  ===============================  =================
network        diffusivity            edges                            layer `x + ẋ`
=============  =====================  ===============================  =================
ChebNet, K=1   fixed, symmetric       of the graph                     `x Θ₀ − Ã x Θ₁`
GAT            additive, of features  of the graph, self loops         `‖_h A_h x W_h`
MoNet          Gaussians of degrees   of the graph                     `Σ_h A_h x W_h`
Transformer    scaled dot             all pairs, self loops            `Σ_h A_h x W_h`
DeepSet        none                   none                             `x Λ`
DIGL           fixed, random walk     of personalised PageRank         `A x W`
DGCNN, DGM     distance               nearest neighbours in `x(t)`     `A x W`
=============  =====================  ===============================  =================

(of MoNet the Gaussians are normalised over the neighbours of a node), and CGNN by its rate,
`ẋ = Ã x − x + x (W − I) + x(0)`.

Edges are an argument of a field's call, not a part of it: `Edges.complete`, `ppr_top_k` and the
like make them; `dgcnn` alone makes its own.

Reference: Beltrami Flow and Neural Diffusion on Graphs (Chamberlain et al., 2021),
arXiv:2110.09443, table 1; Continuous Graph Neural Networks (Xhonneux et al., 2020),
arXiv:1912.00967, eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, segment_sum
from eqflow.nn.arguments import require_counts
from eqflow.nn.diffusion.attention import Attention
from eqflow.nn.diffusion.diffusivity import (
    AbstractDiffusivity,
    Additive,
    Distance,
    GaussianMixture,
    ScaledDot,
)
from eqflow.nn.diffusion.grand import Rewire
from eqflow.nn.diffusion.operator import (
    AbstractDiffusion,
    Coefficients,
    free_matrix,
    start_of,
)
from eqflow.nn.graph_convolution import random_walk_weights, symmetric_weights


class FixedDiffusion(AbstractDiffusion):
    """`ẋ = (Ā x) W − x Ω + s` with weights that the graph alone gives.

    Args:
        width: Channels C.
        weights: Of edges, (E,), from the graph and a dtype.
        mixing: `W` (C, C).
        damping: `Ω`: a scalar, a diagonal (C,) or (C, C).
        source: Whether `x(0)` is added.
    """

    is_linear = True

    def __init__(
        self,
        width: int,
        weights: Callable[[Edges, torch.dtype], Tensor],
        mixing: Tensor | None,
        damping: Tensor,
        source: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.weights = weights
        _hold(self, "mixing", mixing)
        _hold(self, "damping", damping)
        self.source = source
        self.context_features = width if source else 0

    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """Arguments as in `AbstractDiffusion`."""
        self.require_state(x, edges, self.width)
        weight = self.weights(edges, x.dtype)
        start = start_of(self, x, context) if self.source else None
        gain = segment_sum(weight, edges)
        return Coefficients(edges, weight, gain, self.mixing, self.damping, start)


class AttentionLayer(AbstractDiffusion):
    """`ẋ = Σ_h (A_h(x) x) W_h − x`: one Euler step of length 1 is a layer of attention.

    Args:
        width: Channels C.
        diffusivity: Logits of each head.
        rewire: Edges used at a state, given it and the edges of the call; those where None.
    """

    def __init__(
        self, width: int, diffusivity: AbstractDiffusivity, rewire: Rewire | None = None
    ) -> None:
        super().__init__()
        require_counts("AttentionLayer", width=width)
        self.width = width
        self.attention = Attention(diffusivity)
        self.mixing = free_matrix(diffusivity.heads * width, width)
        self.register_buffer("damping", torch.ones(()))
        self.rewire = rewire

    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """Arguments as in `AbstractDiffusion`."""
        self.require_state(x, edges, self.width)
        if self.rewire is not None:
            edges = self.rewire(x.detach(), edges)
        weight = self.attention.heads(x, edges)
        # Every row sums to 1, but for that of a node without edges, which is 0.
        gain = (edges.incoming.lengths > 0).to(x.dtype)
        return Coefficients(edges, weight, gain, self.mixing, self.damping)


def chebnet(width: int) -> FixedDiffusion:
    """ChebNet of order 1 with `λ_max = 2`: the layer `x Θ₀ + L̃ x Θ₁`, `L̃ = −Ã`."""
    require_counts("chebnet", width=width)
    damping = nn.Parameter(nn.init.normal_(torch.empty(width, width), std=width**-0.5))
    return FixedDiffusion(width, symmetric_weights, free_matrix(width, width), damping)


def gat(width: int, heads: int = 8) -> AttentionLayer:
    """GAT: additive attention of features; the heads of a block-diagonal `W` stand side by side."""
    return AttentionLayer(width, Additive(width, heads, width))


def monet(width: int, gaussians: int = 3) -> AttentionLayer:
    """MoNet: Gaussians of the degrees at both ends, each with a mixing of its own."""
    return AttentionLayer(width, GaussianMixture(gaussians))


def transformer(width: int, heads: int = 8) -> AttentionLayer:
    """Transformer: scaled dot products; on `Edges.complete` with self loops."""
    return AttentionLayer(width, ScaledDot(width, heads, width))


def deepset(width: int) -> FixedDiffusion:
    """DeepSet and PointNet: no edges count, channels mix by `Λ = I − Ω`."""
    require_counts("deepset", width=width)
    damping = nn.Parameter(nn.init.normal_(torch.empty(width, width), std=width**-0.5))
    return FixedDiffusion(width, _no_weights, None, damping)


def digl(width: int) -> FixedDiffusion:
    """DIGL: a random walk, meant for the edges of `eqflow.graphs.ppr_top_k`."""
    require_counts("digl", width=width)
    return FixedDiffusion(width, random_walk_weights, free_matrix(width, width), torch.ones(()))


def dgcnn(width: int, neighbours: int = 8) -> AttentionLayer:
    """DGCNN and DGM: attention by distance over the nearest neighbours of the state at hand."""

    def nearest(x: Tensor, edges: Edges) -> Edges:
        return Edges.knn(x, neighbours, edges.clouds)

    return AttentionLayer(width, Distance(), nearest)


def cgnn(width: int) -> FixedDiffusion:
    """CGNN: `ẋ = Ã x − x + x (W − I) + x(0)`, with `Ω = 2 I − W` learned."""
    require_counts("cgnn", width=width)
    damping = nn.Parameter(torch.eye(width))
    return FixedDiffusion(width, symmetric_weights, None, damping, source=True)


def _no_weights(edges: Edges, dtype: torch.dtype) -> Tensor:
    return torch.zeros(edges.count, dtype=dtype, device=edges.incoming.ptr.device)


def _hold(module: nn.Module, name: str, value: Tensor | None) -> None:
    """Keep a parameter as one, anything else as a buffer."""
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)
