r"""A velocity field of spherical tensors, equivariant by construction like `EGNNField`.

Where EGNN's messages are scalars and move points along their differences, here features are irreps
up to `lmax`, multiplied by spherical harmonics of the edges (see `eqflow.nn.irreps`). A node so
learns of the directions of its neighbours, and not of their distances alone.

Everything is smooth where points coincide. Harmonics are the polynomials :math:`Y^l(u)` of
:math:`u = (x_j - x_i) / \sqrt{1 + d^2}`, and functions of the length are those of
:math:`r = \sqrt{d^2 + s^2} - s`: Gaussians at equal distances up to a range, and
:math:`\log(1 + d^2)`, which tells apart what is farther.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from eqflow.edges import DISTANCE_EPSILON, Edges, gather, segment_sum, smooth_cutoff
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import centred
from eqflow.nn.arguments import require_counts
from eqflow.nn.conditioning import Conditioning
from eqflow.nn.field import AbstractField
from eqflow.nn.irreps import IrrepsConvolution, block, solid_harmonics

# Lengths well below it, in the unit of `x`, are as good as none.
SOFTENING = 0.1
# Where the Gaussians end without a cutoff, in the unit of `x`: points of a cloud of spread 1 are
# seldom farther apart.
REACH = 4.0
LARGEST_ORDER = 6
# Xavier gain of the last layer: a new field moves points by almost nothing.
VELOCITY_GAIN = 1e-3


class IrrepsField(AbstractField):
    r"""A field of tensor-product messages, its mean removed.

    Time and context are scalars of the nodes, see `Conditioning`; the velocity is the vector that
    the last layer puts out. The sum of messages is divided by the square root of
    :math:`1 + \sum_j s_{ij}`, with `s` the envelope of a cutoff, 1 without one: that is `√n` on
    complete graphs, and does not jump as neighbours come and go.

    Points in the plane are taken as points in space with `z = 0`, where the mirror image in the
    plane keeps the velocity within it; so it is equivariant under O(2).

    Args:
        context_features: Width of the conditioning node features.
        width: Channels of each irrep.
        layers: Number of convolutions.
        lmax: Highest order of the irreps and harmonics, 1 to 6.
        radial: Number of Gaussians of the length.
        time_frequencies: Number K of cosine-sine pairs of time beside `t`.
        cutoff: Connect points within this distance (in the unit of `x`), their messages ending
            smoothly; complete graphs where None.

    Raises:
        UsageError: If an option is out of range.

    References: Tensor Field Networks (Thomas et al., 2018), arXiv:1802.08219; NequIP (Batzner et
    al., 2022), arXiv:2101.03164.

    >>> field = IrrepsField(width=4, layers=1)
    >>> edges = Edges.complete(torch.tensor([0, 3, 7]))
    >>> field(torch.tensor(0.5), torch.ones(7, 3), edges).shape
    torch.Size([7, 3])
    """

    is_equivariant = True

    def __init__(
        self,
        context_features: int = 0,
        width: int = 32,
        layers: int = 3,
        *,
        lmax: int = 2,
        radial: int = 16,
        time_frequencies: int = 0,
        cutoff: float | None = None,
    ) -> None:
        super().__init__()
        require_counts("IrrepsField", width=width, layers=layers)
        require_counts("IrrepsField", 2, radial=radial)
        if not isinstance(lmax, int) or not 1 <= lmax <= LARGEST_ORDER:
            raise UsageError(
                f"IrrepsField: found lmax={lmax!r}, expected 1 (vectors) to {LARGEST_ORDER}."
            )
        if cutoff is not None and not 0 < cutoff < math.inf:
            raise UsageError(f"cutoff: found {cutoff}, expected a positive number or None.")
        self.conditioning = Conditioning(context_features, time_frequencies)
        self.context_features = context_features
        self.cutoff = cutoff
        self.lmax = lmax
        self.radial = radial
        self.message_width = width * (lmax + 1) ** 2
        self.embed = nn.Linear(self.conditioning.width, width)
        # Scalars come in, and of the last layer no more than scalars and vectors are read.
        orders = [0, *[lmax] * (layers - 1), 1]
        self.layers = nn.ModuleList(
            IrrepsConvolution(width, radial + 1, lmax, inputs, outputs)
            for inputs, outputs in pairwise(orders)
        )
        self.readout = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width, bias=False)
        )
        nn.init.xavier_uniform_(self.readout[-1].weight, gain=VELOCITY_GAIN)

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity; arguments as in `AbstractField`.

        Raises:
            ShapeError: If the points are neither in space nor in the plane, or a shape does not
                fit.
        """
        dimension = self._dimension(x, edges)
        clouds = edges.clouds
        h = self.embed(self.conditioning(t, clouds, context)).unsqueeze(1)
        x = centred(x, clouds)  # far from the origin differences would lose digits
        if dimension == 2:
            x = nn.functional.pad(x, (0, 1))
        harmonics, scalars, envelope = self._of_edges(x, edges)
        scale = _scale(edges, envelope, x)
        for layer in self.layers:
            h = layer(h, harmonics, scalars, edges, scale, envelope)
        weight = self.readout(h[:, 0]) / h.shape[2] ** 0.5
        velocity = (h[:, block(1)] * weight.unsqueeze(1)).sum(2)
        return centred(velocity[:, :dimension], clouds)

    def _of_edges(self, x: Tensor, edges: Edges) -> tuple[Tensor, Tensor, Tensor | None]:
        """Harmonics (E, (lmax + 1)²), functions of the length (E, radial + 1), and envelope."""
        difference = gather(x, edges) - gather(x, edges, "receiver")
        d2 = difference.square().sum(1, keepdim=True)
        harmonics = solid_harmonics(difference * (1 + d2).rsqrt(), self.lmax)
        reach = REACH if self.cutoff is None else self.cutoff
        r = (d2 + SOFTENING**2).sqrt() - SOFTENING
        place = torch.linspace(0, reach, self.radial, dtype=x.dtype, device=x.device)
        spacing = reach / (self.radial - 1)
        gaussians = (-0.5 * ((r - place) / spacing).square()).exp()
        envelope = None
        if self.cutoff is not None:
            envelope = smooth_cutoff((d2.squeeze(1) + DISTANCE_EPSILON).sqrt(), self.cutoff)
        return harmonics, torch.cat([gaussians, d2.log1p()], 1), envelope

    def _dimension(self, x: Tensor, edges: Edges) -> int:
        if x.dim() != 2 or x.shape[0] != edges.nodes or x.shape[1] not in (2, 3):
            raise ShapeError(
                f"IrrepsField: x has shape {tuple(x.shape)}, expected ({edges.nodes}, 3), or "
                f"({edges.nodes}, 2) in the plane: irreps are those of O(3). EGNNField takes "
                "points of any dimension."
            )
        return x.shape[1]


def _scale(edges: Edges, envelope: Tensor | None, x: Tensor) -> Tensor:
    """`(1 + Σ_j s_ij)^(−1/2)` of each node, (N,)."""
    if envelope is None:
        return (1 + edges.incoming.lengths).to(x.dtype).rsqrt()
    return (1 + segment_sum(envelope, edges)).rsqrt()
