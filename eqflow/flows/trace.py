"""What every way to get a divergence gives, and how it is asked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow.geometry import Segments

Velocity = Callable[[Tensor], Tensor]


class Trace(NamedTuple):
    """Velocity and divergence at one state.

    Attributes:
        velocity: Shape (N, d + K).
        estimates: Independent estimates of `tr J`, shape (B, K).
        jacobian: Estimate of the squared Frobenius norm of `J`, shape (B,), where the method has
            one.
    """

    velocity: Tensor
    estimates: Tensor
    jacobian: Tensor | None = None


class AbstractDivergence(ABC):
    """One way to get `tr ∂v/∂x` for each cloud of a batch.

    Attributes:
        is_exact: Whether the trace has no estimation error.
    """

    is_exact: bool = False

    def probes(
        self, x: Tensor, clouds: Segments, source: torch.Generator, features: int = 0
    ) -> Tensor:
        """What is drawn once per solve, shape (S, N, d + K); S = 0 where nothing is.

        The last K `features` columns of the state are no positions, and are not centred.
        """
        return x.new_zeros(0, *x.shape)

    def estimates(self) -> int:
        """Number K of independent estimates."""
        return 1

    def standard_error(self, estimates: Tensor) -> Tensor:
        """Standard error of the mean of independent estimates (B, K), shape (B,).

        It is 0 of an exact trace, NaN where an integration failed, and NaN of a single estimate,
        which cannot tell.
        """
        if self.is_exact:
            return 0 * estimates[:, 0]  # NaN where the integration failed
        count = estimates.shape[1]
        if count < 2:
            return estimates.new_full((len(estimates),), float("nan"))
        return estimates.std(1) / math.sqrt(count)

    @abstractmethod
    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity and trace at `x`, shape (N, d + K).

        Differentiable by parameters and `x` where gradients are enabled.
        """
