"""`load`: from a run folder, or the weights file alone, back to the model it holds.

What is stored says itself of which kind it is: `task` of its configuration, none in those of
structures, and `model.name` decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from eqflow.errors import CheckpointError, DataError, UsageError
from eqflow.train.build import MODELS, TrainedFlow
from eqflow.train.checkpoint import WEIGHTS, load_tensors, read_weights
from eqflow.train.config import (
    ExactConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    SolverConfig,
)
from eqflow.train.node_config import (
    ENCODINGS,
    NODE_CLASSIFICATION,
    REWIRINGS,
    NodeConfig,
    NodeDataConfig,
    NodeSolverConfig,
)
from eqflow.train.node_models import NODE_MODELS

if TYPE_CHECKING:
    from eqflow.graphs.classifier import AbstractNodeClassifier

PLAUSIBLE = 1000  # of anything a model has, whatever the weights

Section = TypeVar("Section")
DivergenceConfig = ExactConfig | HutchinsonConfig | HutchPlusPlusConfig

DIVERGENCES: dict[str, type[DivergenceConfig]] = {
    "exact": ExactConfig,
    "hutchinson": HutchinsonConfig,
    "hutch_plus_plus": HutchPlusPlusConfig,
}


def load(path: str | Path) -> TrainedFlow | AbstractNodeClassifier:
    """The trained model of a run: a flow ready to sample and score, or a classifier of nodes.

    Args:
        path: A run folder, or a `weights.safetensors` on its own.

    Raises:
        CheckpointError: If there is no such file, it is damaged, or it is no weights file.
    """
    model, _ = load_with_config(path)
    return model


def load_with_config(
    path: str | Path,
) -> tuple[TrainedFlow | AbstractNodeClassifier, dict[str, Any]]:
    """The trained model and the resolved configuration it was trained with."""
    file = weights_path(path)
    tensors, config, statistics = read_weights(file)
    build = _classifier if _task(config) == NODE_CLASSIFICATION else _flow
    try:
        _require_plausible(config, tensors)
        model = build(config, statistics)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        UsageError,
        DataError,
    ) as error:
        raise CheckpointError(
            f"{file}: its configuration does not describe a model ({error})."
        ) from error
    load_tensors(model, tensors, file)
    model.eval()
    return model, config


def classifies_nodes(path: str | Path) -> bool:
    """Whether a run is a classifier of nodes; False where nothing can be read."""
    try:
        _, config, _ = read_weights(weights_path(path))
    except CheckpointError:
        return False
    return _task(config) == NODE_CLASSIFICATION


def node_config_of(path: str | Path) -> NodeConfig:
    """The configuration of a run that classifies nodes.

    Raises:
        CheckpointError: If it is no such run.
    """
    file = weights_path(path)
    _, config, _ = read_weights(file)
    try:
        parts: dict[str, Any] = {
            "encoding": section(ENCODINGS[config["encoding"]["name"]], config["encoding"]),
            "rewiring": section(REWIRINGS[config["rewiring"]["name"]], config["rewiring"]),
            "model": section(NODE_MODELS[config["model"]["name"]], config["model"]),
            "data": section(NodeDataConfig, config["data"]),
            "solver": section(NodeSolverConfig, config["solver"]),
        }
        return NodeConfig(seed=int(config["seed"]), **parts)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: its configuration does not describe a classifier of nodes ({error})."
        ) from error


def statistics_of(path: str | Path) -> dict[str, Any]:
    """What the model of a run was told of its data."""
    return read_weights(weights_path(path))[2]


def _require_plausible(config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a model with more layers, or larger ones, than the file has weights for.

    A number changed in its configuration would otherwise build for hours, or until memory ends.
    """
    widest = max((length for value in tensors.values() for length in value.shape), default=0)
    for key, value in config["model"].items():
        if isinstance(value, int) and not isinstance(value, bool):
            most = max(len(tensors) if key.endswith("layers") else widest, PLAUSIBLE)
            if value > most:
                raise ValueError(
                    f"model.{key} is {value}, but the weights are of at most {most} of them"
                )


def _task(config: Any) -> str:
    """What a configuration says it is of; nothing in those of structures."""
    return str(config.get("task", "")) if isinstance(config, dict) else ""


def _flow(config: dict[str, Any], statistics: dict[str, Any]) -> TrainedFlow:
    name = config["model"]["name"]
    if name not in MODELS:
        raise UsageError(f"model.name: found {name!r}, expected {' or '.join(MODELS)}")
    schema, build = MODELS[name]
    model = section(schema, config["model"])
    solver = section(SolverConfig, config["solver"])
    return build(model, solver, statistics, seed=0)


def _classifier(config: dict[str, Any], statistics: dict[str, Any]) -> AbstractNodeClassifier:
    from eqflow.train.build_nodes import build_classifier

    name = config["model"]["name"]
    if name not in NODE_MODELS:
        raise UsageError(f"model.name: found {name!r}, expected {' or '.join(NODE_MODELS)}")
    model = section(NODE_MODELS[name], config["model"])
    solver = section(NodeSolverConfig, config["solver"])
    classifier = build_classifier(model, solver, statistics, seed=0)
    # Its run gave every node a self loop; whoever loads it need not.
    classifier.loops_itself = bool(config["data"]["self_loops"])
    return classifier


def divergence_of_run(path: str | Path) -> DivergenceConfig:
    """How a run computed the trace for its figures."""
    file = weights_path(path)
    _, config, _ = read_weights(file)
    try:
        plain = config["divergence"]
        return section(DIVERGENCES[plain["name"]], plain)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: its configuration does not describe a divergence ({error}). "
            "Say divergence=exact or divergence=hutchinson."
        ) from error


def weights_path(path: str | Path) -> Path:
    """The weights file of a run folder, or the file itself."""
    path = Path(path)
    return path / WEIGHTS if path.is_dir() else path


def section(kind: type[Section], plain: dict[str, Any]) -> Section:
    """A config section from plain values; keys of a newer version are named."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(plain) - known)
    if unknown:
        raise KeyError(f"unknown keys {', '.join(unknown)}; install a newer eqflow")
    return kind(**plain)
