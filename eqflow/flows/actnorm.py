r"""One scale for positions, a shift and a scale for each feature, before a flow of states.

.. math::
    z_x = x \, e^{-s}, \qquad z_h = (h - m) \odot e^{-\ell}, \qquad
    \log \left| \frac{\partial z}{\partial (x, h)} \right| = -(n - 1) d \, s - n \sum_k \ell_k

as centred positions have `(n − 1) d` degrees of freedom. A single scale keeps the map equivariant.

References: Glow (Kingma, Dhariwal, 2018), arXiv:1807.03039, section 3.1; E(n) Equivariant
Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016, whose code counts `n d s` instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqflow.geometry import Segments, centred, degrees_of_freedom, split_state


class ActNorm(nn.Module):
    """Affine map of states `[x, h]`, shape (N, d + K), with centred positions.

    Args:
        features: Number K of features in the last columns.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.position_log_scale = nn.Parameter(torch.zeros(()))
        self.feature_shift = nn.Parameter(torch.zeros(features))
        self.feature_log_scale = nn.Parameter(torch.zeros(features))

    def forward(self, state: Tensor) -> Tensor:
        """A state in the data's units as one in those of the flow."""
        x, h = split_state(state, self.features)
        x = x * torch.exp(-self.position_log_scale)
        h = (h - self.feature_shift) * torch.exp(-self.feature_log_scale)
        return torch.cat([x, h], -1)

    def inverse(self, state: Tensor) -> Tensor:
        """The inverse of `forward`."""
        x, h = split_state(state, self.features)
        x = x * torch.exp(self.position_log_scale)
        h = h * torch.exp(self.feature_log_scale) + self.feature_shift
        return torch.cat([x, h], -1)

    def log_det(self, clouds: Segments, dimension: int, *, published: bool = False) -> Tensor:
        """Log-determinant of `forward` on the zero-mean subspace, shape (B,).

        Args:
            clouds: Points of each cloud.
            dimension: Coordinates of a point.
            published: Count `n d` degrees of freedom, as the published code does, though centred
                positions have `(n − 1) d`; for comparing with its figures.
        """
        s, ell = self.position_log_scale, self.feature_log_scale
        lengths = clouds.lengths.to(s.dtype)
        freedom = degrees_of_freedom(clouds, dimension).to(s.dtype)
        counted = lengths * dimension if published else freedom
        return -counted * s - lengths * ell.sum()

    @torch.no_grad()
    def fit(self, state: Tensor, clouds: Segments) -> None:
        """Choose scales and shifts by which a batch has unit variance and features mean zero.

        A feature that is the same everywhere keeps its scale.
        """
        x, h = split_state(state, self.features)
        freedom = degrees_of_freedom(clouds, x.shape[1]).sum().clamp(min=1)
        variance = centred(x, clouds).square().sum() / freedom
        spread = h.var(0, correction=0)
        self.position_log_scale.copy_(_half_log(variance))
        self.feature_shift.copy_(h.mean(0))
        self.feature_log_scale.copy_(_half_log(spread))


def _half_log(variance: Tensor) -> Tensor:
    return 0.5 * torch.where(variance > 0, variance, torch.ones_like(variance)).log()
