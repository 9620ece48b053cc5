"""A function along random rays from every cloud, and the jumps that halving finds on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from eqflow import rng
from eqflow.geometry import Clouds
from eqflow.geometry.representations import Representation
from eqflow.testing.outputs import CloudFunction, Output, evaluate

# What is continuous falls with the step at least as the step to this power.
LEAST_ORDER = 0.25
# A stretch is halved to this length, in units of the width, where the dtype resolves it.
SHORTEST = 1e-12
# The last halvings, over which the change must fall; with fewer than half of them none can tell.
LAST = 10


def random_directions(batch: Clouds, width: Tensor, draws: int, seed: int) -> Tensor:
    """Random directions of all points, shape (draws, N, d), as long as each cloud is wide."""
    source = rng.generator(seed, "testing", "perturbations", device=batch.x.device)
    unit = batch.segments.expand(width).unsqueeze(-1)
    return rng.normal((draws, *batch.x.shape), width, source) * unit


@dataclass(frozen=True, eq=False)
class Rays:
    """A function along the rays `x + s δ_a` of every cloud."""

    fn: CloudFunction
    still: Output
    kind: Representation
    size: Tensor
    directions: Tensor

    def at(self, s: Tensor, draw: Tensor) -> Tensor:
        """The output where each cloud is at its own distance and draw, (B,) each; shape (M, k)."""
        batch = self.still.batch
        points = torch.arange(len(batch.x), device=batch.x.device)
        direction = self.directions[batch.segments.expand(draw), points]
        x = batch.x.double() + batch.segments.expand(s).unsqueeze(-1) * direction
        moved = evaluate(self.fn, batch.with_positions(x.to(batch.x.dtype)), self.kind)
        return moved.values

    def at_all(self, epsilon: float) -> list[Tensor]:
        """The output at one distance on every ray."""
        every = torch.full_like(self.size, epsilon)
        draws = range(len(self.directions))
        return [self.at(every, torch.full_like(every, a, dtype=torch.int64)) for a in draws]

    def change(self, one: Tensor, other: Tensor) -> Tensor:
        """Largest relative difference in each cloud, (B,)."""
        return self.still.largest(one - other) / self.size

    def largest_change(self, values: list[Tensor]) -> Tensor:
        """Between the cloud where it is and all draws, and between two of them, (B,)."""
        pairs = combinations([self.still.values, *values], 2)
        return torch.stack([self.change(*pair) for pair in pairs]).amax(0)

    def halved(
        self,
        sizes: tuple[float, ...],
        values: list[list[Tensor]],
        shortest: float,
        tolerance: float,
    ) -> tuple[Tensor, Tensor]:
        """The jump on each cloud's steepest stretch, 0 for none, and where it is; (B,) each."""
        ends = [0.0, *sizes]
        outputs = [[self.still.values] * len(values[0]), *values]
        stretches = [(k, a) for k in range(len(sizes)) for a in range(len(values[0]))]
        slopes = torch.stack(
            [
                self.change(outputs[k + 1][a], outputs[k][a]) / (ends[k + 1] - ends[k])
                for k, a in stretches
            ]
        )
        chosen = slopes.argmax(0)
        place = self.size.new_tensor(stretches, dtype=torch.int64)[chosen]
        scale_of = self.size.new_tensor(ends)
        low, high, draw = scale_of[place[:, 0]], scale_of[place[:, 0] + 1], place[:, 1]
        f_low, f_high = self.at(low, draw), self.at(high, draw)
        halvings = ((high - low) / shortest).log2().floor().clamp(min=0).long()
        history = [self.change(f_low, f_high)]
        rows = self.still.cloud
        for turn in range(int(halvings.max())):
            middle = (low + high) / 2
            f_middle = self.at(middle, draw)
            first = self.change(f_middle, f_low) >= self.change(f_high, f_middle)
            active = turn < halvings
            to_low, to_high = active & first, active & ~first
            high, low = torch.where(to_low, middle, high), torch.where(to_high, middle, low)
            f_high = torch.where(to_low[rows].unsqueeze(-1), f_middle, f_high)
            f_low = torch.where(to_high[rows].unsqueeze(-1), f_middle, f_low)
            history.append(self.change(f_low, f_high))
        changes = torch.stack(history)
        back = halvings.clamp(max=LAST)
        left = changes.gather(0, halvings[None])[0]
        before = changes.gather(0, (halvings - back)[None])[0]
        stays = (before / left).log2() < LEAST_ORDER * back
        jumps = (left > tolerance) & left.isfinite() & stays & (2 * back >= LAST)
        return torch.where(jumps, left, torch.zeros_like(left)), high
