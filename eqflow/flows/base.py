"""Base densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqflow import rng
from eqflow.geometry import Segments, centred, degrees_of_freedom, require_centred, split_state


class CenteredNormal:
    r"""Standard normal on clouds whose centre of mass is zero, and on their features.

    The subspace of `n` points in `d` dimensions has :math:`(n-1)d` dimensions, and `K` features of
    each point have no centre to lose, so with :math:`D = (n-1)d + nK`
    :math:`\log p(x, h) = -\tfrac12 (\lVert x \rVert^2 + \lVert h \rVert^2)
    - \tfrac{D}{2} \log 2\pi`.

    Args:
        features: Number K of features in the last columns of a state.

    Reference: Equivariant Flows (Köhler, Klein, Noé, 2020), arXiv:2006.02425, section 5.

    Example:
        >>> one_pair = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
        >>> CenteredNormal().log_prob(one_pair, torch.tensor([0, 2])).round(decimals=4)
        tensor([-1.1689], dtype=torch.float64)
    """

    def __init__(self, features: int = 0) -> None:
        self.features = features

    def log_prob(self, x: Tensor, ptr: Tensor | Segments) -> Tensor:
        """Log-density of each cloud in nats.

        Args:
            x: Centred positions and features, shape (N, d + K), in units of the standard deviation.
            ptr: Start of each cloud, shape (B + 1,).

        Returns:
            Shape (B,); a cloud of one point has only one position to be at, which counts 0.

        Raises:
            NotCentered: If a centre of mass is off by more than the tolerance of the dtype.
        """
        clouds = Segments.of(ptr)
        positions, _ = split_state(x, self.features)
        require_centred(positions, clouds)
        freedom = degrees_of_freedom(clouds, positions.shape[1], self.features).to(x.dtype)
        return -0.5 * clouds.sum(x.square().sum(-1)) - 0.5 * freedom * math.log(2 * math.pi)

    def sample(
        self, ptr: Tensor | Segments, dimension: int, like: Tensor, source: torch.Generator
    ) -> Tensor:
        """One draw for each cloud, (N, dimension + K), with the dtype and device of `like`."""
        clouds = Segments.of(ptr)
        shape = (clouds.rows, dimension + self.features)
        return centred(rng.normal(shape, like, source), clouds, self.features)
