"""Relative equivariance error of each frame on every cloud of `eqflow.testing`, and its poses."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from frames_faenet import averaged
from torch import Tensor

from eqflow import rng
from eqflow.errors import DegenerateFrame
from eqflow.geometry import Clouds, centred
from eqflow.geometry.frames import AbstractFrame, OrbitFrame, PCAFrame, WeightedFrame
from eqflow.nn.averaging.frame_average import FrameAverage
from eqflow.nn.backbones import PointNetBackbone
from eqflow.testing import clouds, equivariance_error

GROUPS = ("E(3)", "SE(3)")
FRAMES: dict[str, AbstractFrame] = {
    # With equal moments the axes are what the eigensolver returns: the textbook's frame.
    "pca": PCAFrame(on_degenerate="warn"),
    "orbit": OrbitFrame(),
    "weighted": WeightedFrame(),
}
METHODS = {"faenet all": "all", "faenet det": "det"}
# A cloud whose poses have more points than this together is left out: minutes for each call.
MOST_ROWS = 2_000_000


class Backbone(PointNetBackbone):
    """A network that only permutations leave alone, its weights drawn once, in float64."""

    def __init__(self) -> None:
        with rng.seeded(0, "frames", "backbone"):
            super().__init__(3, features=1, outputs=3, width=16, pool="mean")
        self.double()

    def forward(self, x: Tensor, ptr: Tensor, h: Tensor | None = None) -> Tensor:
        """Its vectors; `h` atomic numbers."""
        return super().forward(x, ptr, None if h is None else h.to(x) / 10)


def errors() -> list[dict[str, Any]]:
    """A row a cloud and group: errors under the group times S(n), and numbers of poses."""
    backbone = Backbone()
    table = []
    for group in GROUPS:
        proper = group == "SE(3)"
        print(f"\n{group} × S(n){'':<7}" + "".join(f"{n:>20}" for n in (*FRAMES, *METHODS)))
        for name, batch in clouds():
            row: dict[str, Any] = {"cloud": name, "group": group, "error": {}, "poses": {}}
            row["equal_moments"] = is_refused(batch)
            for frame_name, frame in FRAMES.items():
                model = FrameAverage(backbone, group, frame, "vector")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    row["poses"][frame_name] = poses_of(model, batch)
                    most = row["poses"][frame_name] * int(batch.sizes.max())
                    row["error"][frame_name] = (
                        error_of(model, batch, group) if most <= MOST_ROWS else None
                    )
            for shown, method in METHODS.items():
                peer = averaged(backbone, f"se3-{method}" if proper else method)
                row["error"][shown] = error_of(peer, batch, group)
            table.append(row)
            report(row)
    return table


@torch.no_grad()
def error_of(model: Any, batch: Clouds, group: str) -> float | None:
    """Relative error of vectors; None where it is not finite."""
    found = equivariance_error(model, batch, f"{group}×S(n)", "vector")
    return found if found < float("inf") else None


def poses_of(model: FrameAverage, batch: Clouds) -> int:
    """Poses of the cloud of the batch that has the most."""
    x = centred(batch.x, batch.ptr)
    return int(model.poses(x, batch.segments, batch.h).owners.lengths.max())


def is_refused(batch: Clouds) -> bool:
    """Whether the principal moments of a cloud are equal, which the frame says by an error."""
    try:
        PCAFrame()(centred(batch.x, batch.ptr), batch.segments)
    except DegenerateFrame:
        return True
    return False


def report(row: dict[str, Any]) -> None:
    """A line of the table."""
    cells = []
    for name, error in row["error"].items():
        poses = f" ({row['poses'][name]:,})" if name in row["poses"] else ""
        cells.append(f"{'—' if error is None else f'{error:.0e}'}{poses}")
    note = "   equal moments" if row["equal_moments"] else ""
    print(f"{row['cloud']:<18}" + "".join(f"{cell:>20}" for cell in cells) + note, flush=True)
