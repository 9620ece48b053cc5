"""Graphs and options so small that a run of node classification takes a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqflow import rng
from eqflow.cli.compose import composed
from eqflow.cli.main import main
from eqflow.train.tasks import run_of

CLASSES, FEATURES = 3, 6
MODEL = [
    "task=node_classification",
    "model=grand",
    "model.width=8",
    "model.heads=2",
    "model.attention_width=8",
    "solver.method=rk4",
    "solver.steps=2",
]
LOOP = [
    "train.steps=6",
    "train.log_every=1",
    "train.checkpoint_every=2",
    "train.device=cpu",
    "train.tensorboard=false",
]


def arrays(nodes: int = 36, seed: int = 0) -> dict[str, Any]:
    """Communities of one class each, joined rarely; features that show the class; two splits."""
    source = rng.generator(seed, "tiny nodes", nodes)
    like = torch.zeros(())
    y = torch.arange(nodes) % CLASSES
    same = y.unsqueeze(0) == y.unsqueeze(1)
    pairs = rng.uniform((nodes, nodes), like, source) < torch.where(same, 0.3, 0.03)
    x = rng.uniform((nodes, FEATURES), like, source)
    x[torch.arange(nodes), y] += 0.5
    masks = {}
    for name, first, last in (("train", 0, 0.3), ("val", 0.3, 0.6), ("test", 0.6, 1)):
        both = []
        for split in range(2):
            order = rng.permutation(nodes, rng.generator(seed, "split", split))
            mask = torch.zeros(nodes, dtype=torch.bool)
            mask[order[int(first * nodes) : int(last * nodes)]] = True
            both.append(mask)
        masks[f"{name}_mask"] = torch.stack(both, 1).numpy()
    edges = pairs.triu(1).nonzero().t().numpy()
    return {"x": x.numpy(), "y": y.numpy(), "edge_index": edges, **masks}


def graph(path: Path, **changes: Any) -> Path:
    """A file of such a graph, with arrays changed."""
    np.savez(path, **(arrays() | changes))
    return path


def words(data: Path, folder: Path, *more: str) -> list[str]:
    """The words of a tiny training command; later words win."""
    return ["train", f"data.path={data}", f"run.dir={folder}", *MODEL, *LOOP, *more]


def train(data: Path, folder: Path, *more: str) -> int:
    """A tiny training run through the command line."""
    return main(words(data, folder, *more))


def run(data: Path, folder: Path, *more: str) -> Any:
    """The same run, not begun."""
    return run_of(composed("train", words(data, folder, *more)[1:]), lambda line: None)


def train_until(data: Path, folder: Path, step: int, *more: str) -> None:
    """The same run, asked to stop after `step` steps of this call."""
    asked = iter(range(1, 10_000))
    run(data, folder, *more).train(lambda: next(asked) >= step, lambda trainer, figures: None)


def tensors(folder: Path) -> bytes:
    """The weights; the metadata in front of them hold the name of the folder."""
    content = (folder / "weights.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]
