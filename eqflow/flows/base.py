"""Base densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqflow import rng
from eqflow.geometry import Segments, centred, degrees_of_freedom, require_centred


class CenteredNormal:
    r"""Standard normal on clouds whose centre of mass is zero.

    The subspace of `n` points in `d` dimensions has :math:`(n-1)d` dimensions, so
    :math:`\log p(x) = -\tfrac12 \lVert x \rVert^2 - \tfrac{(n-1)d}{2} \log 2\pi`.

    Reference: Equivariant Flows (Köhler, Klein, Noé, 2020), arXiv:2006.02425, section 5.

    Example:
        >>> one_pair = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
        >>> CenteredNormal().log_prob(one_pair, torch.tensor([0, 2])).round(decimals=4)
        tensor([-1.1689], dtype=torch.float64)
    """

    def log_prob(self, x: Tensor, ptr: Tensor | Segments) -> Tensor:
        """Log-density of each cloud in nats.

        Args:
            x: Centred positions, shape (N, d), in units of the standard deviation.
            ptr: Start of each cloud, shape (B + 1,).

        Returns:
            Shape (B,); 0 for a cloud of one point, whose subspace is a single point.

        Raises:
            NotCentered: If a centre of mass is off by more than the tolerance of the dtype.
        """
        clouds = Segments.of(ptr)
        require_centred(x, clouds)
        freedom = degrees_of_freedom(clouds, x.shape[1]).to(x.dtype)
        return -0.5 * clouds.sum(x.square().sum(-1)) - 0.5 * freedom * math.log(2 * math.pi)

    def sample(
        self, ptr: Tensor | Segments, dimension: int, like: Tensor, source: torch.Generator
    ) -> Tensor:
        """One draw for each cloud, centred, shape (N, d), with the dtype and device of `like`."""
        clouds = Segments.of(ptr)
        return centred(rng.normal((clouds.rows, dimension), like, source), clouds)
