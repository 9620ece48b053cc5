"""What can be trained: the run of each kind of configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
