"""Poses drawn from another frame: one call of the backbone for each draw."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.geometry.frames.abstract import AbstractFrame
from eqflow.geometry.frames.poses import Poses
from eqflow.geometry.segments import Segments


class StochasticFrame(AbstractFrame):
    """A few poses of each cloud, drawn by their weights.

    Averages are unbiased: their expectation is the average over the whole frame, which is
    equivariant; a single one is not. Derivatives are those of the drawn poses: that weights depend
    on positions is not in them.

    Args:
        frame: What is drawn from; principal axes would refuse symmetric clouds, so `WeightedFrame`
            or `OrbitFrame` serve best.
        draws: Poses drawn for each cloud, with replacement.
        seed: The draws are a function of it and of the place of the cloud in its batch, the same
            at each call. Fresh ones at each call, from PyTorch's global generator, where None.

    Raises:
        UsageError: If `draws` is not positive.
    """

    in_expectation = True

    def __init__(self, frame: AbstractFrame, draws: int = 1, seed: int | None = None) -> None:
        if draws < 1:
            raise UsageError(f"draws: found {draws}, expected at least 1.")
        self.frame = frame
        self.draws = draws
        self.seed = seed

    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None = None, proper: bool = False
    ) -> Poses:
        """The poses drawn; arguments as in `AbstractFrame`."""
        poses = self.frame(x, clouds, types, proper)
        with torch.no_grad():
            chosen = self._drawn(poses)
        owners = Segments.of_lengths(torch.full_like(poses.rank, self.draws))
        weight = poses.weight.new_full((owners.rows,), 1 / self.draws)
        return Poses(poses.rotation[chosen], weight, owners, poses.rank)

    def _drawn(self, poses: Poses) -> Tensor:
        """Poses by inversion of the cumulative weights of their cloud, shape (B draws,)."""
        count = poses.owners.count
        like = poses.weight.detach().double()
        if self.seed is None:
            u = torch.nn.init.uniform_(like.new_empty(count, self.draws))
        else:
            source = rng.generator(self.seed, "frame", "poses", device=like.device)
            u = rng.uniform((count, self.draws), like, source)
        total = torch.cumsum(like, 0)
        start = torch.cat([total.new_zeros(1), total])[poses.owners.ptr[:-1]]
        height = poses.owners.sum(like)
        found = torch.searchsorted(total, start.unsqueeze(1) + u * height.unsqueeze(1), right=True)
        first, last = poses.owners.ptr[:-1].unsqueeze(1), poses.owners.ptr[1:].unsqueeze(1) - 1
        return torch.minimum(torch.maximum(found, first), last).reshape(-1)
