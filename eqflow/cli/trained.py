"""What the verbs on a trained run share: load it, override its solver, check where to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from eqflow import rng
from eqflow.cli.schemas import SolverOverride
from eqflow.errors import UsageError
from eqflow.flows import Solver
from eqflow.graphs.classifier import AbstractNodeClassifier
from eqflow.train.build import TrainedFlow, chosen_device
from eqflow.train.solver_unused import without_effect
from eqflow.train.weights import load, statistics_of


def load_run(run: str | None, device: str = "cpu", threads: int | None = None) -> TrainedFlow:
    """The flow of `run=`, on a device.

    Raises:
        UsageError: If the run is no density of structures.
    """
    model = _loaded(run, device, threads)
    if isinstance(model, AbstractNodeClassifier):
        raise UsageError(
            f"run: found {run}, which classifies nodes: it has no density to draw from. Its verbs "
            "are eqflow score and eqflow check."
        )
    return model


def load_classifier(
    run: str | None, device: str = "cpu", threads: int | None = None
) -> tuple[AbstractNodeClassifier, dict[str, Any]]:
    """The classifier of `run=`, on a device, and what it was told of its graph."""
    return _loaded(run, device, threads), statistics_of(run)


def _loaded(run: str | None, device: str, threads: int | None) -> Any:
    if run is None:
        raise UsageError("run: needed; give a run folder or a weights.safetensors.")
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads: found {threads}, expected at least 1.")
        torch.set_num_threads(threads)
    return load(run).to(chosen_device(device))


def seed_of(seed: int, place: int) -> int:
    """The seed of structures that are drawn or scored together, by the place of the first.

    So what is drawn depends on which structures are together, and not on what was done before.
    """
    return seed if place == 0 else rng.derived_seed(seed, "batch", place)


def overridden(
    solver: Solver,
    override: SolverOverride,
    *,
    is_linear: bool = False,
    is_revealing: bool = False,
) -> Solver:
    """The run's solver with the keys that were given.

    Args:
        solver: Of the run.
        override: What was given.
        is_linear, is_revealing: What is solved, see `eqflow.train.solver_unused`.

    Raises:
        UsageError: If a value is out of range, or a key given has no effect with the method.
    """
    given = {key: value for key, value in asdict(override).items() if value is not None}
    changed = replace(solver, **given)
    unused = without_effect(changed.method, is_linear=is_linear, is_revealing=is_revealing)
    if problems := [
        f"{key}: {unused[key]}" for name in given if (key := f"solver.{name}") in unused
    ]:
        raise UsageError("\n".join(problems))
    return changed


def required_output(out: str | None, endings: Sequence[str], example: str) -> Path:
    """The file to write, by its name; nothing is made yet.

    Raises:
        UsageError: If there is none, it is a folder, or its ending is another.
    """
    if out is None:
        raise UsageError(f"out: needed; give the file to write, such as {example}.")
    path = Path(out)
    if path.is_dir():
        raise UsageError(f"out: {path} is a folder; expected a file, such as {path / example}.")
    if path.suffix.lower() not in endings:
        raise UsageError(
            f"out: {path} ends in {path.suffix!r}, expected {' '.join(endings)}, such as {example}."
        )
    return path
