"""`load`: from a run folder, or the weights file alone, back to the flow it holds.

What is stored says itself of which kind it is: `model.name` of its configuration decides.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from eqflow.errors import CheckpointError, UsageError
from eqflow.train.build import MODELS, TrainedFlow
from eqflow.train.checkpoint import WEIGHTS, load_tensors, read_weights
from eqflow.train.config import (
    ExactConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    SolverConfig,
)

Section = TypeVar("Section")
DivergenceConfig = ExactConfig | HutchinsonConfig | HutchPlusPlusConfig

DIVERGENCES: dict[str, type[DivergenceConfig]] = {
    "exact": ExactConfig,
    "hutchinson": HutchinsonConfig,
    "hutch_plus_plus": HutchPlusPlusConfig,
}


def load(path: str | Path) -> TrainedFlow:
    """The trained flow of a run, ready to sample and score.

    Args:
        path: A run folder, or a `weights.safetensors` on its own.

    Raises:
        CheckpointError: If there is no such file, it is damaged, or it is no weights file.
    """
    flow, _ = load_with_config(path)
    return flow


def load_with_config(path: str | Path) -> tuple[TrainedFlow, dict[str, Any]]:
    """The trained flow and the resolved configuration it was trained with."""
    file = weights_path(path)
    tensors, config, statistics = read_weights(file)
    try:
        name = config["model"]["name"]
        if name not in MODELS:
            raise UsageError(f"model.name: found {name!r}, expected {' or '.join(MODELS)}")
        schema, build = MODELS[name]
        model = _section(schema, config["model"])
        solver = _section(SolverConfig, config["solver"])
        flow = build(model, solver, statistics, seed=0)
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        raise CheckpointError(
            f"{file}: its configuration does not describe a flow ({error})."
        ) from error
    load_tensors(flow, tensors, file)
    flow.eval()
    return flow, config


def divergence_of_run(path: str | Path) -> DivergenceConfig:
    """How a run computed the trace for its figures."""
    file = weights_path(path)
    _, config, _ = read_weights(file)
    try:
        plain = config["divergence"]
        return _section(DIVERGENCES[plain["name"]], plain)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: its configuration does not describe a divergence ({error}). "
            "Say divergence=exact or divergence=hutchinson."
        ) from error


def weights_path(path: str | Path) -> Path:
    """The weights file of a run folder, or the file itself."""
    path = Path(path)
    return path / WEIGHTS if path.is_dir() else path


def _section(kind: type[Section], plain: dict[str, Any]) -> Section:
    """A config section from plain values; keys of a newer version are named."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(plain) - known)
    if unknown:
        raise KeyError(f"unknown keys {', '.join(unknown)}; install a newer eqflow")
    return kind(**plain)
