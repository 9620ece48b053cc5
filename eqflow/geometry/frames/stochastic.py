"""Poses drawn from another frame: one call of the backbone for each draw."""

from __future__ import annotations

from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.geometry.frames.abstract import AbstractFrame
from eqflow.geometry.frames.draws import Uniform
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
        UsageError: If `draws` is not positive, or `frame` is no frame.
    """

    in_expectation = True

    def __init__(self, frame: AbstractFrame, draws: int = 1, seed: int | None = None) -> None:
        if not isinstance(frame, AbstractFrame):
            raise UsageError(
                f"StochasticFrame: found {frame!r}, expected a frame, such as WeightedFrame()."
            )
        if draws < 1:
            raise UsageError(f"draws: found {draws}, expected at least 1.")
        self.frame = frame
        self.tells_types = frame.tells_types
        self.draws = draws
        self.seed = seed

    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None = None, proper: bool = False
    ) -> Poses:
        """The poses drawn; arguments as in `AbstractFrame`."""
        return self.frame.drawn(x, clouds, types, proper, self.draws, self._uniform(x))

    def _uniform(self, x: Tensor) -> Uniform:
        if self.seed is None:
            return lambda shape: rng.uniform_within_seeded(shape, x.detach())
        source = rng.generator(self.seed, "frame", "poses", device=x.device)
        return lambda shape: rng.uniform(shape, x, source)
