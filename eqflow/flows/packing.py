"""The state of a batch as one vector: what steppers do arithmetic on.

A state is a tensor of node rows and any number of tensors with one row a cloud. Steppers see them
end to end, so that a linear combination is one operation however many parts there are; which
entries belong to which cloud is known here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqflow.flows.solver import State
from eqflow.geometry import Segments


class Packing:
    """The shapes of a state's parts, and the clouds they belong to.

    Args:
        state: Node rows (N, …), then any number of tensors with one row a cloud (B, …).
        clouds: Which node rows belong to which cloud.
    """

    def __init__(self, state: State, clouds: Segments) -> None:
        self.clouds = clouds
        self._shapes = [part.shape for part in state]
        self._sizes = [part.numel() for part in state]

    def pack(self, state: State) -> Tensor:
        """All parts end to end, shape (M,)."""
        if len(state) == 1:
            return state[0].reshape(-1)
        return torch.cat([part.reshape(-1) for part in state])

    def unpack(self, y: Tensor) -> State:
        """The parts of `y`, whose last axis holds them end to end, (…, M) to (…, N, …)."""
        parts = y.split(self._sizes, dim=-1) if len(self._sizes) > 1 else (y,)
        return tuple(
            part.reshape(*y.shape[:-1], *shape)
            for part, shape in zip(parts, self._shapes, strict=True)
        )

    @torch.no_grad()
    def norm(self, y: Tensor) -> Tensor:
        """The largest root mean square over clouds and parts of `y`: the error that steps obey.

        Step sizes are constants to the derivative, or its direct form would differ from the
        adjoint's.
        """
        nodes, *others = self.unpack(y)
        squares = nodes.square().flatten(1).mean(1) if nodes.dim() > 1 else nodes.square()
        worst = [self.clouds.mean(squares).max()] if self.clouds.rows else []
        worst += [part.square().max() for part in others if part.numel()]
        return torch.stack(worst).max().sqrt() if worst else y.new_zeros(())

    def clouds_at_fault(self, y: Tensor) -> Tensor:
        """Clouds that hold an entry of `y` (M,) that is not finite, shape (K,), int64."""
        rows, *others = self.unpack(~torch.isfinite(y.detach()))
        broken = self.clouds.sum(_any_in_row(rows).to(torch.int64)) > 0
        for part in others:
            broken |= _any_in_row(part)
        return broken.nonzero().squeeze(1)


def _any_in_row(flags: Tensor) -> Tensor:
    return flags.reshape(len(flags), math.prod(flags.shape[1:])).any(1)
