r"""How strongly the two ends of an edge are coupled: diffusivities before they are normalised.

Each gives logits `l_e`, one a head, from the states `z` of receiver `r` and sender `c`; queries
`q = Q z` are read at the receiver, keys `k = K z` at the sender.

=================  ==============================================================================
scaled dot         :math:`\langle q_r, k_c \rangle / \sqrt{d_k}`
cosine             :math:`\langle q_r, k_c \rangle / (\lVert q_r \rVert \lVert k_c \rVert)`
Pearson            the cosine of queries and keys less the mean of their entries
exponential        :math:`\sigma^2 \exp(-\lVert q_r - k_c \rVert^2 / 2 \ell^2)`
distance           the same of positions as they are: their motions leave it alone
additive           :math:`\mathrm{LeakyReLU}(\langle a, U z_r \rangle + \langle b, U z_c \rangle)`
Gaussian mixture   :math:`-\tfrac12 (p_e - \mu)^T \Sigma^{-1} (p_e - \mu)`
=================  ==============================================================================

References: GRAND (Chamberlain et al., 2021), arXiv:2106.10934, eq. 10; Beltrami Flow and Neural
Diffusion on Graphs (Chamberlain et al., 2021), arXiv:2110.09443; Graph Attention Networks
(Veličković et al., 2018), arXiv:1710.10903, eq. 3; Geometric deep learning on graphs and manifolds
using mixture model CNNs (Monti et al., 2017), arXiv:1611.08402, eq. 11.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqflow.edges import (
    Edges,
    attention_weights,
    edge_dot,
    gather,
    normalised,
    squared_distance,
)
from eqflow.edges.primitives import End
from eqflow.edges.weights import Normaliser
from eqflow.errors import UsageError
from eqflow.nn.arguments import require_counts

# Queries and keys start alike and small, so that attention starts as the mean over neighbours.
PROJECTION_SCALE = 1e-2
SMALLEST = 1e-12  # a squared length below which a direction is none


class AbstractDiffusivity(nn.Module, ABC):
    """Logits of edges, shape (E, H), from node states.

    Attributes:
        heads: Number H of them.
    """

    heads: int

    @abstractmethod
    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits.

        Args:
            z: Node states, shape (N, C).
            edges: The graph.

        Returns:
            Shape (E, H).
        """

    def weights(self, z: Tensor, edges: Edges, normaliser: Normaliser, end: End) -> Tensor:
        """Positive weights (E, H) that sum to 1 over the edges at each node's `end`."""
        return normalised(self(z, edges), edges, normaliser, end)


class _Projected(AbstractDiffusivity):
    """Queries and keys of every head.

    Args:
        width: Channels C of a node's state.
        heads: Number H of heads.
        attention_width: Channels of queries and keys, of all heads together.

    Raises:
        UsageError: If the heads do not divide the width of attention.
    """

    def __init__(self, width: int, heads: int = 1, attention_width: int = 64) -> None:
        super().__init__()
        require_counts(type(self).__name__, width=width)
        require_heads(heads, attention_width)
        self.heads = heads
        self.query = nn.Linear(width, attention_width)
        self.key = nn.Linear(width, attention_width)
        for projection in (self.query, self.key):
            nn.init.normal_(projection.weight, std=PROJECTION_SCALE)
            nn.init.zeros_(projection.bias)

    def queries_and_keys(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Shape (N, H, C / H) each."""
        query, key = (
            projection(z).unflatten(-1, (self.heads, -1)) for projection in (self.query, self.key)
        )
        return query, key


class ScaledDot(_Projected):
    """`⟨q_r, k_c⟩ / √d_k`."""

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits, shape (E, H)."""
        query, key = self.queries_and_keys(z)
        return edge_dot(query, key, edges) / math.sqrt(query.shape[-1])

    def weights(self, z: Tensor, edges: Edges, normaliser: Normaliser, end: End) -> Tensor:
        """As of any diffusivity, in one pass."""
        query, key = self.queries_and_keys(z)
        return attention_weights(query, key, edges, normaliser, end)


class Cosine(_Projected):
    """`⟨q_r, k_c⟩ / ‖q_r‖ ‖k_c‖`; 0 where one of them is."""

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits, shape (E, H)."""
        query, key = (_direction(part) for part in self.queries_and_keys(z))
        return edge_dot(query, key, edges)


class Pearson(_Projected):
    """The correlation of the entries of query and key.

    Raises:
        UsageError: If a head has one channel, which correlates with nothing.
    """

    def __init__(self, width: int, heads: int = 1, attention_width: int = 64) -> None:
        super().__init__(width, heads, attention_width)
        if attention_width == heads:
            raise UsageError(
                f"pearson: found {heads} heads of one channel, expected two or more channels a "
                "head. Raise attention_width or lower heads."
            )

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits, shape (E, H)."""
        query, key = (
            _direction(part - part.mean(-1, keepdim=True)) for part in self.queries_and_keys(z)
        )
        return edge_dot(query, key, edges)


class Exponential(_Projected):
    """`σ² exp(−‖q_r − k_c‖² / 2ℓ²)`, with `σ` and `ℓ` learned."""

    def __init__(self, width: int, heads: int = 1, attention_width: int = 64) -> None:
        super().__init__(width, heads, attention_width)
        self.output_scale = nn.Parameter(torch.ones(heads))
        self.length_scale = nn.Parameter(torch.ones(heads))

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits, shape (E, H)."""
        query, key = self.queries_and_keys(z)
        # Distances do not change, and squares far from the origin would lose their digits.
        centre = edges.clouds.expand(edges.clouds.mean(query.detach()))
        query, key = query - centre, key - centre
        ends = gather(query.square().sum(-1), edges, "receiver") + gather(
            key.square().sum(-1), edges, "sender"
        )
        squared = (ends - 2 * edge_dot(query, key, edges)).clamp(min=0)
        return self.output_scale**2 * torch.exp(-squared / (2 * self.length_scale**2))


class Distance(AbstractDiffusivity):
    """`σ² exp(−‖z_r − z_c‖² / 2ℓ²)` of positions as they are: invariant under their motions.

    Args:
        heads: Number of pairs `σ, ℓ`.
    """

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        require_counts("Distance", heads=heads)
        self.heads = heads
        self.output_scale = nn.Parameter(torch.ones(heads))
        self.length_scale = nn.Parameter(torch.logspace(0, 1, heads, base=2))

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits, shape (E, H)."""
        return self.of_squared(squared_distance(z, edges))

    def of_squared(self, squared: Tensor) -> Tensor:
        """The logits of squared distances (E,), shape (E, H)."""
        return self.output_scale**2 * torch.exp(-squared.unsqueeze(1) / (2 * self.length_scale**2))


class Additive(AbstractDiffusivity):
    """`LeakyReLU(⟨a, U z_r⟩ + ⟨b, U z_c⟩)`, the attention of GAT, without ever pairing `U z`.

    Args:
        width, heads, attention_width: As of the others.
        slope: Of LeakyReLU below zero; 0.2 is the published one.
    """

    def __init__(
        self, width: int, heads: int = 1, attention_width: int = 64, slope: float = 0.2
    ) -> None:
        super().__init__()
        require_counts("Additive", width=width)
        require_heads(heads, attention_width)
        self.heads = heads
        self.slope = slope
        channels = attention_width // heads
        self.projection = nn.Linear(width, attention_width, bias=False)
        self.receiver = nn.Parameter(nn.init.normal_(torch.empty(heads, channels), std=0.1))
        self.sender = nn.Parameter(nn.init.normal_(torch.empty(heads, channels), std=0.1))

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits, shape (E, H)."""
        u = self.projection(z).unflatten(-1, (self.heads, -1))
        logits = gather((u * self.receiver).sum(-1), edges, "receiver") + gather(
            (u * self.sender).sum(-1), edges, "sender"
        )
        return F.leaky_relu(logits, self.slope)


class GaussianMixture(AbstractDiffusivity):
    r"""`−½ (p − μ)ᵀ Σ⁻¹ (p − μ)` of pseudo-coordinates, `H` Gaussians with diagonal `Σ`.

    :math:`p_e = \tanh(A u_e + b)` of :math:`u_e = (d_r^{-1/2}, d_c^{-1/2})`, the degrees at both
    ends, as published for graphs; or of the first `position_width` channels of the state at both
    ends, where that is given.

    Args:
        heads: Number of Gaussians.
        pseudo_width: Width of `p`.
        position_width: Width of the node positions that `u` is taken from; 0 for degrees.
    """

    def __init__(self, heads: int = 1, pseudo_width: int = 2, position_width: int = 0) -> None:
        super().__init__()
        require_counts("GaussianMixture", heads=heads, pseudo_width=pseudo_width)
        self.heads = heads
        self.position_width = position_width
        inputs = 2 * position_width or 2
        self.pseudo = nn.Linear(inputs, pseudo_width)
        self.mean = nn.Parameter(nn.init.normal_(torch.empty(heads, pseudo_width), std=0.5))
        self.log_width = nn.Parameter(torch.zeros(heads, pseudo_width))

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """The logits, shape (E, H)."""
        if self.position_width:
            at_receiver = at_sender = z[:, : self.position_width]
        else:
            at_receiver, at_sender = (
                degrees.to(z.dtype).clamp(min=1).rsqrt().unsqueeze(1)
                for degrees in (edges.incoming.lengths, edges.outgoing.lengths)
            )
        ends = [gather(at_receiver, edges, "receiver"), gather(at_sender, edges, "sender")]
        p = self.pseudo(torch.cat(ends, 1)).tanh()
        off = (p.unsqueeze(1) - self.mean) * torch.exp(-self.log_width)
        return -off.square().sum(-1) / 2


DIFFUSIVITIES: dict[str, type[_Projected] | type[Additive]] = {
    "scaled_dot": ScaledDot,
    "cosine": Cosine,
    "pearson": Pearson,
    "exponential": Exponential,
    "additive": Additive,
}


NAMES = (*DIFFUSIVITIES, "distance", "gaussian_mixture")


def diffusivity_by_name(
    name: str, width: int, heads: int, attention_width: int
) -> AbstractDiffusivity:
    """A diffusivity of states of `width` channels.

    Raises:
        UsageError: If there is none of that name, or its heads do not fit.
    """
    if name == "distance":
        return Distance(heads)
    if name == "gaussian_mixture":
        return GaussianMixture(heads)
    if name not in DIFFUSIVITIES:
        raise UsageError(f"diffusivity: found {name!r}, expected one of {', '.join(NAMES)}.")
    return DIFFUSIVITIES[name](width, heads, attention_width)


def require_heads(heads: int, attention_width: int) -> None:
    """Refuse heads that do not divide the channels.

    Raises:
        UsageError: That says so.
    """
    require_counts("attention", heads=heads, attention_width=attention_width)
    if attention_width % heads:
        raise UsageError(
            f"attention: found heads={heads} and attention_width={attention_width}, expected the "
            "width to be a multiple of the heads."
        )


def _direction(vectors: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis; 0 where they are 0, with a finite gradient."""
    return vectors * (vectors.square().sum(-1, keepdim=True) + SMALLEST).rsqrt()
