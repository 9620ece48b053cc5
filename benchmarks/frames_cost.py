"""Cost of frames: batches against FAENet's transform of a graph; one call for all poses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from frames_faenet import faenet_module, graphs_of, transform_of
from harness import race
from torch import Tensor

from eqflow import rng
from eqflow.geometry import Clouds, Segments, centred, random_orthogonal, rotate
from eqflow.geometry.frames import (
    AbstractFrame,
    OrbitFrame,
    PCAFrame,
    Poses,
    StochasticFrame,
    WeightedFrame,
)
from eqflow.geometry.frames.pca import relative_gaps, second_moments
from eqflow.geometry.frames.positions import in_all_poses
from eqflow.nn.averaging.features import types_of
from eqflow.nn.averaging.frame_average import FrameAverage
from eqflow.nn.backbones import TransformerBackbone
from eqflow.testing import clouds

COUNT, ATOMS = 1000, 20
# Clouds of a batch whose weighted frames are made: each has 1,520 poses, or 30,400 points.
WEIGHTED_COUNT = 50
PCA = PCAFrame(on_degenerate="orbit")
# By group: FAENet's method, and the frame that gives as many poses of the same axes.
PAIRS: dict[str, tuple[str, bool, AbstractFrame]] = {
    "O(3), all signs": ("all", False, PCA),
    "SO(3), all signs": ("se3-all", True, PCA),
    "O(3), one drawn": ("stochastic", False, StochasticFrame(PCA)),
    "SO(3), one drawn": ("se3-stochastic", True, StochasticFrame(PCA)),
}
# What FAENet has no counterpart of; elements are told apart here.
OTHERS: dict[str, Callable[[Clouds], tuple[Clouds, AbstractFrame, bool]]] = {
    "pca, O(3), elements told": lambda batch: (batch, PCA, False),
    "orbit, O(3)": lambda batch: (batch, OrbitFrame(), False),
    "orbit, SO(3)": lambda batch: (batch, OrbitFrame(), True),
    "weighted, one drawn, O(3)": lambda batch: (batch, StochasticFrame(WeightedFrame()), False),
    "weighted, O(3)": lambda batch: (batch[:WEIGHTED_COUNT], WeightedFrame(), False),
}
SYMMETRIC = ("methane", "benzene", "sf6", "c60")
COPIES = 32


def random_molecules() -> Clouds:
    """1,000 clouds of 20 normal points, float32, each of one of four types."""
    source = rng.generator(0, "frames", "molecules")
    x = rng.normal((COUNT, ATOMS, 3), torch.zeros(()), source)
    types = rng.uniform((COUNT * ATOMS,), torch.zeros(()), source).mul(4).long()
    batch = Clouds.from_dense(x)
    return Clouds(batch.x, batch.ptr, torch.tensor([1, 6, 7, 8])[types])


def frames_against_faenet(what: str, batch: Clouds, rounds: int) -> dict[str, Any]:
    """Microseconds a cloud of both, in turns.

    Both make poses and all positions in each of them, eqflow of the batch, FAENet of a list of
    graphs that is there already; the poses alone are what eqflow needs where nothing is averaged.
    Types of points are not told apart, as FAENet does not.
    """
    graphs, typed = graphs_of(batch.x, batch.ptr), batch
    batch = replace(batch, numbers=None)
    bare = faenet_module("frame_averaging").frame_averaging_3D
    found: dict[str, Any] = {"clouds": len(batch), "mean_points": len(batch.x) / len(batch)}
    found["largest_difference"] = difference(batch, graphs)
    found["pairs"], found["others"] = {}, {}
    print(f"\n{what}: positions equal to {found['largest_difference']:.0e}; µs a cloud")
    for name, (method, proper, frame) in PAIRS.items():
        transform = transform_of(method)
        cases: dict[str, Callable[[], object]] = {
            "eqflow": lambda f=frame, p=proper: with_positions(batch, f, p),
            "eqflow_poses_alone": lambda f=frame, p=proper: poses_of(batch, f, p),
            "faenet": lambda t=transform: [t(graph) for graph in graphs],
            "faenet_function_alone": lambda m=method: [bare(g.pos, None, m) for g in graphs],
        }
        seconds = race(cases, rounds, steady=True)
        row = {"us": {who: 1e6 * taken / len(batch) for who, taken in seconds.items()}}
        row["ratio"] = {
            "positions": seconds["faenet"] / seconds["eqflow"],
            "positions_function_alone": seconds["faenet_function_alone"] / seconds["eqflow"],
            "poses_alone": seconds["faenet"] / seconds["eqflow_poses_alone"],
        }
        found["pairs"][name] = row
        us, ratio = row["us"], row["ratio"]
        print(
            f"{name:<28}eqflow {us['eqflow']:6.2f}, poses alone {us['eqflow_poses_alone']:5.2f}   "
            f"FAENet {us['faenet']:4.0f}, function alone {us['faenet_function_alone']:4.0f}   "
            f"{ratio['positions']:.0f}×, poses alone {ratio['poses_alone']:.0f}×",
            flush=True,
        )
    others = {name: partial(with_positions, *OTHERS[name](typed)) for name in OTHERS}
    seconds = race(others, rounds, steady=True)
    for name, made in OTHERS.items():
        part, frame, proper = made(typed)
        row = {
            "us": 1e6 * seconds[name] / len(part),
            "mean_poses": poses_of(part, frame, proper)[0].count / len(part),
        }
        found["others"][name] = row
        print(f"{name:<28}eqflow {row['us']:6.2f}   {row['mean_poses']:.1f} poses", flush=True)
    return found


@torch.no_grad()
def poses_of(batch: Clouds, frame: AbstractFrame, proper: bool) -> tuple[Poses, Tensor, Segments]:
    """Poses, centred positions, and the points of each cloud."""
    # Anew, as in a first call: segments keep what is derived of them.
    segments = Segments(batch.ptr)
    x = centred(batch.x, segments)
    types = types_of(batch.h, segments) if batch.numbers is not None and frame.tells_types else None
    return frame(x, segments, types, proper), x, segments


@torch.no_grad()
def with_positions(batch: Clouds, frame: AbstractFrame, proper: bool) -> tuple[Poses, Tensor]:
    """Poses, and the positions of every cloud in each of them."""
    poses, x, segments = poses_of(batch, frame, proper)
    return poses, in_all_poses(x, segments, poses)


def difference(batch: Clouds, graphs: list[Any]) -> float:
    """Largest difference from FAENet's positions, relative; signs are in no common order.

    Over the clouds whose moments are a thousandth apart: axes of float32 are determined there.
    """
    x = centred(batch.x, batch.segments)
    moments = torch.linalg.eigvalsh(second_moments(x, batch.segments))
    clear = (relative_gaps(moments) > 1e-3) & (batch.sizes > 3)
    poses, placed = with_positions(batch, PCA, False)
    rows = Segments.of_lengths(batch.sizes[poses.owners.ids])
    transform = transform_of("all")
    worst = 0.0
    for cloud in clear.nonzero().squeeze(1).tolist():
        theirs = transform(graphs[cloud]).fa_pos[0].abs()
        first = int(poses.owners.ptr[cloud])
        mine = placed[int(rows.ptr[first]) : int(rows.ptr[first + 1])].abs()
        worst = max(worst, float((mine - theirs).abs().max() / theirs.max()))
    return worst


def one_call(rounds: int) -> dict[str, Any]:
    """An orbit average where all poses look alike: rows of the backbone, and time, of both ways."""
    found: dict[str, Any] = {}
    shapes = dict(clouds(dtype=torch.float32))
    with rng.seeded(0, "frames", "one call"):
        backbone = TransformerBackbone(3, features=1, outputs=3)
    print("\norbit frames of symmetric molecules: rows given to the backbone, milliseconds")
    for name in SYMMETRIC:
        batch = copies(shapes[name])
        rows: list[int] = []

        def counted(x: Tensor, ptr: Tensor, h: Tensor | None, rows: list[int] = rows) -> Tensor:
            rows.append(x.shape[0])
            return backbone(x, ptr, h)

        ways = {
            once: FrameAverage(counted, "E(3)", "orbit", backbone_permutes=once)
            for once in (False, True)
        }
        values, given, calls = {}, {}, {}
        with torch.no_grad():
            for once, model in ways.items():
                rows.clear()
                values[once] = model(batch.x, batch.ptr, batch.h)
                given[once], calls[once] = sum(rows), len(rows)
            given_to = (batch.x, batch.ptr, batch.h)
            cases = {str(once): partial(model, *given_to) for once, model in ways.items()}
            cases["backbone"] = partial(backbone, *given_to)
            seconds = race(cases, rounds)
        apart = float((values[True] - values[False]).abs().max() / values[False].abs().max())
        found[name] = {
            "copies": COPIES,
            "poses": given[False] // given[True],
            "rows": {"each pose": given[False], "once": given[True]},
            "calls": {"each pose": calls[False], "once": calls[True]},
            "seconds": {
                "each pose": seconds["False"],
                "once": seconds["True"],
                "backbone alone": seconds["backbone"],
            },
            "ratio": seconds["False"] / seconds["True"],
            "difference": apart,
        }
        print(
            f"{name:<10}{found[name]['poses']:4d} poses   rows {given[False]:>7,} → "
            f"{given[True]:>6,}   {1e3 * seconds['False']:7.1f} → {1e3 * seconds['True']:6.1f} "
            f"(backbone {1e3 * seconds['backbone']:.1f})   {found[name]['ratio']:.1f}×   "
            f"equal to {apart:.0e}",
            flush=True,
        )
    return found


def copies(shape: Clouds) -> Clouds:
    """`COPIES` of one molecule, each turned at random."""
    x = shape.x.unsqueeze(0).expand(COPIES, -1, -1)
    assert shape.numbers is not None
    batch = Clouds.from_dense(x, shape.numbers)
    source = rng.generator(0, "frames", "copies")
    turned = rotate(batch.x, random_orthogonal(COPIES, 3, batch.x, source), batch.ptr)
    return batch.with_positions(turned)
