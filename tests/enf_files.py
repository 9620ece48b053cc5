"""The published E-NF in tests: its files where they are, and random ones of the same form."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
WIDTH = 4


def network(prefix: str, inputs: int, outputs: int, layers: int, scalars: int, gate: bool) -> dict:
    """Random published tensors of an EGNN by their names."""
    shapes = {
        "embedding.weight": (WIDTH, inputs),
        "embedding.bias": (WIDTH,),
        "embedding_out.weight": (outputs, WIDTH),
        "embedding_out.bias": (outputs,),
    }
    for layer in range(layers):
        shapes |= {
            f"gcl_{layer}.{name}": shape
            for name, shape in {
                "edge_mlp.0.weight": (WIDTH, 2 * WIDTH + scalars),
                "edge_mlp.0.bias": (WIDTH,),
                "edge_mlp.2.weight": (WIDTH, WIDTH),
                "edge_mlp.2.bias": (WIDTH,),
                "node_mlp.0.weight": (WIDTH, 2 * WIDTH),
                "node_mlp.0.bias": (WIDTH,),
                "node_mlp.2.weight": (WIDTH, WIDTH),
                "node_mlp.2.bias": (WIDTH,),
                "coord_mlp.0.weight": (WIDTH, WIDTH),
                "coord_mlp.0.bias": (WIDTH,),
                "coord_mlp.2.weight": (1, WIDTH),
                **({"att_mlp.0.weight": (1, WIDTH), "att_mlp.0.bias": (1,)} if gate else {}),
            }.items()
        }
    source = torch.Generator().manual_seed(0)
    return {prefix + name: torch.randn(*shape, generator=source) for name, shape in shapes.items()}


def published() -> dict[str, Tensor]:
    return {
        "flow.transformations.0.x_log_s": torch.tensor([[0.5]]),
        "flow.transformations.0.h_t": torch.arange(6.0)[None],
        "flow.transformations.0.h_log_s": torch.ones(1, 6),
        "flow.transformations.0.initialized": torch.tensor(1),
        "flow.transformations.1.int_time": torch.tensor([0.0, 1.0]),
        "flow.transformations.1.inv_int_time": torch.tensor([1.0, 0.0]),
        **network("flow.transformations.1.odefunc.dynamics.egnn.", 7, 7, 2, 2, True),
        **network("dequantizer.net_fn.egnn.", 6, 12, 1, 1, False),
    }


def archive(path: Path, arrays: dict, **others: object) -> Path:
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()}, **others)
    return path


def folder(path: Path, arrays: dict) -> Path:
    for name, file in (("flow.", "flow.npy"), ("dequantizer.", "dequantizer.npy")):
        state = {k.removeprefix(name): v for k, v in arrays.items() if k.startswith(name)}
        torch.save(state, path / file)
    return path


def found(variable: str, name: str) -> Path:
    """A file of the fixture, or the one that a variable names; skips where there is none."""
    path = Path(os.environ.get(variable, FIXTURES / name))
    if not path.is_file():
        pytest.skip(f"needs {name}, not found at {path}; set {variable}")
    return path
