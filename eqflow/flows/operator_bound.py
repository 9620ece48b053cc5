r"""How fast a diffusion can be: a shift and a norm of its operator, from sums of its weights.

What a series of powers needs to know beforehand. Nothing is estimated: every bound is one, and
costs a few passes over the edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow.edges import gather, segment_sum
from eqflow.flows.evaluation import is_finite
from eqflow.nn.diffusion.operator import Coefficients

# Longest step, in units of 1 / m and 1 / |μ|: numbers as large as exp of it have to be held.
LONGEST = 300.0
# A positive shift costs digits of the weights b, a factor exp(μ t).
LONGEST_GROWTH = 4.0
# Norms over nodes that are bounded: the largest row, the sum of rows, the root of their squares.
ORDERS = (math.inf, 1.0, 2.0)


@dataclass(frozen=True)
class Bound:
    r"""Where the operator of a diffusion lies: :math:`\lVert L - \mu \rVert \le m`.

    The norm is the largest over nodes, the sum over nodes or the root of the sum of squares,
    whichever is bounded best, of the Euclidean length of each node's row.

    Attributes:
        shift: `μ`.
        norm: `m`.
        order: Of the norm over nodes: infinity, 1 or 2.
        is_positive: Whether no entry of `L − μ` is negative.
    """

    shift: float
    norm: float
    order: float
    is_positive: bool

    def size(self, v: Tensor) -> float:
        """The norm of `v`, shape (N, C)."""
        rows = torch.linalg.vector_norm(v.detach(), dim=1)
        return float(torch.linalg.vector_norm(rows, self.order)) if len(rows) else 0.0

    def least_growth(self, t: float) -> tuple[float, float]:
        """What a state and a constant source are multiplied by over `t`, where that is a decay."""
        rate = min(self.shift + self.norm, 0.0) * t
        return math.exp(rate), t * (math.expm1(rate) / rate if rate else 1.0)

    def longest_step(self, tolerance: float, precision: float) -> float:
        """The longest time one series may cover."""
        reach = LONGEST
        if not self.is_positive:
            # Terms as large as exp(m t) sum to as little as exp(−m t): the rounding of the ones
            # stays below the tolerance of the other.
            reach = max(0.5 * math.log(max(tolerance / precision, 1.0)), 1.0)
        limits = [reach / self.norm] if self.norm > 0 else []
        if self.shift:
            longest = LONGEST_GROWTH if self.shift > 0 else LONGEST
            limits.append(longest / abs(self.shift))
        return min(limits, default=math.inf)


@torch.no_grad()
def bound(coefficients: Coefficients) -> Bound:
    r"""A shift and a norm of the operator, from sums over rows and columns of its weights.

    By Schur's test the root of the sum of squares is bounded by
    :math:`\sqrt{\max_i (|A| u)_i / u_i \cdot \max_j (|A|^T u)_j / u_j}` for any positive `u`; with
    the roots of degrees it is 1 for the symmetric normalised adjacency.
    """
    weight = coefficients.weight
    if coefficients.mixing is None and (weight >= 0).all():
        damping = coefficients.damping
        if damping is None or damping.dim() < 2:
            return _positive_bound(coefficients)
    return _mixed_bound(coefficients)


def _positive_bound(coefficients: Coefficients) -> Bound:
    diagonal = -segment_sum(coefficients.weight, coefficients.edges)
    if coefficients.gain is not None:
        diagonal = diagonal + coefficients.gain
    least = largest = 0.0
    if coefficients.damping is not None and coefficients.damping.numel():
        least, largest = (float(part) for part in coefficients.damping.aminmax())
    shift = float(diagonal.min()) - largest if len(diagonal) else 0.0
    left = (diagonal - (shift + least)).unsqueeze(1)
    # Where nothing can grow, that is good enough.
    norms = _norms(coefficients, left, enough=-shift * (1 + 1e-6)).squeeze(1)
    best = int(norms.argmin())
    return Bound(shift, float(norms[best]), ORDERS[best], is_positive=True)


def _mixed_bound(coefficients: Coefficients) -> Bound:
    """With `δ_h` the diagonal of head `h`, `X ↦ Σ_h (A_h + δ_h) X W_h − X Ω`."""
    weight = _by_head(coefficients)
    heads = weight.shape[1]
    diagonal = -segment_sum(weight, coefficients.edges)
    if coefficients.gain is not None:
        diagonal = diagonal + coefficients.gain.unsqueeze(1)
    damping, mixing = coefficients.damping, coefficients.mixing
    width = 1
    if mixing is not None:
        width = mixing.shape[1]
    elif damping is not None and damping.dim() > 0:
        width = damping.shape[-1]
    identity = torch.eye(width, dtype=weight.dtype, device=weight.device)
    mixers = identity.unsqueeze(0) if mixing is None else mixing.reshape(heads, width, width)
    middle, spread = diagonal.new_zeros(heads), diagonal.new_zeros(heads)
    if len(diagonal):
        low, high = diagonal.aminmax(dim=0)
        middle, spread = (high + low) / 2, (high - low) / 2
    rest = torch.einsum("h,hab->ab", middle, mixers)
    if damping is not None:
        rest = rest - (damping if damping.dim() == 2 else damping * identity)
    if not (is_finite(rest) and is_finite(spread) and is_finite(mixers)):
        return Bound(math.nan, math.nan, math.inf, is_positive=False)
    levels = torch.linalg.eigvalsh((rest + rest.t()) / 2)
    shift = float(levels[0] + levels[-1]) / 2 if len(levels) else 0.0
    strength = torch.linalg.matrix_norm(mixers, 2) if width else spread
    on_nodes = _norms(coefficients, torch.zeros_like(diagonal)) @ strength
    best = int(on_nodes.argmin())
    on_channels = float(torch.linalg.matrix_norm(rest - shift * identity, 2)) if width else 0.0
    norm = float(on_nodes[best]) + float(spread @ strength) + on_channels
    return Bound(shift, norm, ORDERS[best], is_positive=False)


def _by_head(coefficients: Coefficients) -> Tensor:
    weight = coefficients.weight
    return weight if weight.dim() == 2 else weight.unsqueeze(1)


def _norms(coefficients: Coefficients, diagonal: Tensor, enough: float = -1.0) -> Tensor:
    """Bounds of `|A_h| + diag` in the norms of `ORDERS`, shape (3, H).

    The third is infinite where one of the others is `enough`.
    """
    edges = coefficients.edges
    weight = _by_head(coefficients).abs()
    if not edges.nodes:
        return weight.new_zeros(3, weight.shape[1])
    rows = (segment_sum(weight, edges) + diagonal).amax(0)
    columns = (segment_sum(weight, edges, "sender") + diagonal).amax(0)
    if float(torch.minimum(rows, columns).max()) <= enough:
        return torch.stack([rows, columns, torch.full_like(rows, math.inf)])
    # A node without edges has no row in A; any positive entry serves for it.
    u = edges.incoming.lengths.clamp(min=1).to(weight.dtype).sqrt().unsqueeze(1)
    forth = segment_sum(weight * gather(u, edges), edges)
    back = segment_sum(weight * gather(u, edges, "receiver"), edges, "sender")
    euclidean = (forth / u + diagonal).amax(0) * (back / u + diagonal).amax(0)
    return torch.stack([rows, columns, euclidean.sqrt()])
