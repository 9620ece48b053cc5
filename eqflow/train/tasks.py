"""What can be trained: the run of each kind of configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eqflow.errors import UsageError
from eqflow.train import node_unused, problems
from eqflow.train.abstract_run import AbstractRun, Report
from eqflow.train.config import Config
from eqflow.train.node_config import NodeConfig
from eqflow.train.node_run import NodeRun
from eqflow.train.run import Run

TrainingConfig = Config | NodeConfig

RUNS: dict[type, Callable[[Any, Report], AbstractRun[Any, Any]]] = {
    Config: Run,
    NodeConfig: NodeRun,
}


def run_of(config: TrainingConfig, report: Report) -> AbstractRun[Any, Any]:
    """The run that a configuration describes.

    Args:
        config: The whole configuration, of any task.
        report: Called with each line meant for people.

    Raises:
        UsageError: If the configuration contradicts itself.
    """
    return RUNS[type(config)](config, report)


def problems_of(config: TrainingConfig) -> list[str]:
    """Everything wrong with a configuration, a line each, without an error."""
    try:
        run_of(config, lambda line: None)
    except UsageError as error:
        return str(error).splitlines()
    return []


def ineffective(config: TrainingConfig) -> dict[str, str]:
    """Keys that have no effect beside the others, and why."""
    if isinstance(config, NodeConfig):
        return node_unused.without_effect(config)
    return problems.without_effect(config)


def unused_from_preset(config: TrainingConfig) -> set[str]:
    """What of a preset has no effect any more once another model is chosen."""
    return node_unused.unused_of_preset(config) if isinstance(config, NodeConfig) else set()
