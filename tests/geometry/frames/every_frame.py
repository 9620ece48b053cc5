"""The frames that all laws of frames are tried on, and clouds at the point they turn about."""

from __future__ import annotations

from eqflow.geometry import Clouds, centred
from eqflow.geometry.frames import (
    AbstractFrame,
    OrbitFrame,
    PCAFrame,
    Poses,
    StochasticFrame,
    WeightedFrame,
)
from eqflow.nn.averaging.features import types_of
from eqflow.testing import clouds

FRAMES: dict[str, AbstractFrame] = {
    "orbit": OrbitFrame(),
    "pca": PCAFrame(on_degenerate="orbit"),
    "weighted": WeightedFrame(),
    "thinned": WeightedFrame(power=3.0, threshold=0.4),
    "drawn": StochasticFrame(WeightedFrame(), draws=3, seed=0),
    "drawn of few": StochasticFrame(OrbitFrame(), draws=2, seed=0),
}


def shapes(dimension: int = 3) -> dict[str, Clouds]:
    return {
        name: batch.with_positions(centred(batch.x, batch.ptr))
        for name, batch in clouds(dimension)
        if name not in ("large", "far")
    }


def poses_of(frame: AbstractFrame, batch: Clouds, proper: bool = False) -> Poses:
    return frame(batch.x, batch.segments, types_of(batch.h, batch.segments), proper)
