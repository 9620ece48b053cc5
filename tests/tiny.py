"""Data and options so small that a whole run takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from eqflow import rng
from eqflow.cli.compose import composed
from eqflow.cli.main import main
from eqflow.flows import FlowMatching, Independent, Sizes
from eqflow.geometry import Clouds
from eqflow.train import Run
from eqflow.train.build import build_flow, build_molecular_flow
from eqflow.train.checkpoint import WEIGHTS, save_weights
from eqflow.train.config import JointModelConfig, ModelConfig, SolverConfig, TrainConfig
from eqflow.train.datasets import spread
from eqflow.train.loop import Trainer

MODEL = ["model.layers=1", "model.width=8", "solver.method=rk4", "solver.steps=2"]
LOOP = [
    "train.steps=6",
    "train.batch_size=8",
    "train.log_every=1",
    "train.validate_every=3",
    "train.checkpoint_every=2",
    "train.warmup_steps=2",
    "train.final_structures=0",
    "train.device=cpu",
]
# Whole molecules: words of a run on bundled ones.
WHOLE = [
    "data.source=g2",
    "data.elements=[H,C,O]",
    "data.validation=0.2",
    "data.test=0.2",
    "model.layers=1",
    "model.width=8",
    "solver.method=rk4",
    "solver.steps=3",
    "train.steps=6",
    "train.batch_size=4",
    "train.validate_every=3",
    "train.checkpoint_every=2",
    "train.final_structures=3",
    "train.tensorboard=false",
]
MOLECULES = """\
3
water
O 0.000 0.000 0.119
H 0.000 0.763 -0.477
H 0.000 -0.763 -0.477
"""


def particles(path: Path, count: int = 40, points: int = 3, dimension: int = 2) -> Path:
    """A file of random clouds, (B, n, d)."""
    source = rng.generator(0, "tiny", count, points)
    x = torch.randn(count, points, dimension, generator=source)
    np.save(path, x.numpy())
    return path


def molecules(path: Path, count: int = 30) -> Path:
    """An xyz file of slightly different waters and of hydrogen fluoride."""
    source = rng.generator(0, "molecules")
    lines = []
    for index in range(count):
        shift = 0.02 * torch.randn(3, 3, generator=source)
        water = torch.tensor([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])
        rows = list(zip("OHH", (water + shift).tolist(), strict=True))
        rows = (
            rows if index % 3 else [("F", [0.0, 0.0, 0.0]), ("H", [*shift[0, :2].tolist(), 0.92])]
        )
        lines += [str(len(rows)), f"molecule {index}"]
        lines += [f"{symbol} {x:.6f} {y:.6f} {z:.6f}" for symbol, (x, y, z) in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def words(data: Path, folder: Path, *more: str) -> list[str]:
    """The words of a tiny training command on planar clouds; later words win."""
    return [
        "train",
        f"data.path={data}",
        "data.dimension=2",
        f"run.dir={folder}",
        *MODEL,
        *LOOP,
        *more,
    ]


def train(data: Path, folder: Path, *more: str) -> int:
    """A tiny training run through the command line."""
    return main(words(data, folder, *more))


def train_until(data: Path, folder: Path, step: int, *more: str) -> None:
    """The same run, asked to stop after `step` steps of this call."""
    asked = iter(range(1, 10_000))
    run = Run(composed("train", words(data, folder, *more)[1:]), lambda line: None)
    run.train(lambda: next(asked) >= step, lambda trainer, figures: None)


def joint_run(folder: Path) -> Path:
    """A run folder with a joint flow of random weights: H, C, O in molecules of 1, 3 or 5 atoms."""
    model = JointModelConfig(layers=1, width=6, dequantiser_layers=1, dequantiser_width=6)
    solver = SolverConfig(method="rk4", steps=2)
    sizes = Sizes(torch.tensor([1, 3, 5]), torch.tensor([0.2, 0.5, 0.3]).double().log())
    statistics = {
        "dimension": 3,
        "elements": [1, 6, 8],
        "integer_features": ["atomic_number"],
        "sizes": sizes.to_plain(),
    }
    flow = build_molecular_flow(model, solver, statistics, seed=0)
    source = rng.generator(0, "joint")
    for parameter in flow.parameters():
        parameter.data = 0.12 * torch.randn(tuple(parameter.shape), generator=source)
    config = {"model": asdict(model), "solver": asdict(solver), "divergence": {"name": "exact"}}
    save_weights(folder / WEIGHTS, flow, config, statistics)
    return folder


def trainer(
    seed: int = 0, clouds: Clouds | None = None, width: int = 8, **settings: object
) -> Trainer:
    """A trainer on random triangles."""
    if clouds is None:
        x = torch.randn(24, 3, 2, generator=rng.generator(1, "triangles"))
        clouds = Clouds.from_dense(x)
    statistics = {
        "dimension": clouds.dimension,
        "scale": spread(clouds),
        "compositions": {"elements": [], "counts": [[3]], "weights": [1]},
    }
    defaults = {"steps": 10, "batch_size": 4, "validate_every": 5, "warmup_steps": 0}
    config = TrainConfig(**{**defaults, **settings})  # type: ignore[arg-type]
    flow = build_flow(ModelConfig(layers=1, width=width), SolverConfig(), statistics, seed)
    objective = FlowMatching(Independent())
    return Trainer(flow, objective, clouds[:16], clouds[16:], config, seed)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_seconds(csv: str) -> list[Sequence[str]]:
    """Rows of metrics.csv but for the column that no run repeats."""
    rows = [line.split(",") for line in csv.splitlines()]
    place = rows[0].index("seconds")
    return [row[:place] + row[place + 1 :] for row in rows]
