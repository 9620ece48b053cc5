"""From plain configuration to the objects it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows import (
    AbstractCoupling,
    AbstractDivergence,
    AbstractObjective,
    Compositions,
    ContinuousFlow,
    EquivariantOT,
    Exact,
    Flow,
    FlowMatching,
    Hutchinson,
    HutchPlusPlus,
    Independent,
    MaximumLikelihood,
    MinibatchOT,
    Solver,
)
from eqflow.nn import EGNNField
from eqflow.train.config import (
    Config,
    ExactConfig,
    FlowMatchingConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    MaximumLikelihoodConfig,
    ModelConfig,
    SolverConfig,
)

COUPLINGS: dict[str, type[AbstractCoupling]] = {
    "equivariant_ot": EquivariantOT,
    "minibatch_ot": MinibatchOT,
    "independent": Independent,
}


def build_solver(config: SolverConfig) -> Solver:
    """The solver a configuration describes."""
    return Solver(**asdict(config))


def build_divergence(
    config: ExactConfig | HutchinsonConfig | HutchPlusPlusConfig,
) -> AbstractDivergence:
    """The divergence a configuration describes."""
    match config:
        case ExactConfig():
            return Exact()
        case HutchinsonConfig(probes=probes, distribution="gaussian"):
            return Hutchinson(probes, "gaussian")
        case HutchinsonConfig(probes=probes, distribution="rademacher"):
            return Hutchinson(probes)
        case HutchPlusPlusConfig(probes=probes, sketch=sketch):
            return HutchPlusPlus(probes, sketch)
    raise UsageError(
        f"divergence.distribution: found {config.distribution!r}, expected rademacher or gaussian."
    )


def build_objective(config: Config) -> AbstractObjective:
    """The objective a configuration describes."""
    objective = config.objective
    if isinstance(objective, FlowMatchingConfig):
        if objective.coupling not in COUPLINGS:
            raise UsageError(
                f"objective.coupling: found {objective.coupling!r}, expected one of "
                f"{', '.join(COUPLINGS)}."
            )
        return FlowMatching(COUPLINGS[objective.coupling]())
    if isinstance(objective, MaximumLikelihoodConfig):
        return MaximumLikelihood(
            build_solver(config.solver),
            _training_trace(objective),
            objective.kinetic,
            objective.jacobian,
        )
    raise UsageError(
        f"objective: found {objective!r}, expected flow_matching or maximum_likelihood."
    )


def build_field(config: ModelConfig, context_features: int) -> EGNNField:
    """The velocity field a configuration describes; its weights come from the global generator."""
    if config.name != "egnn":
        raise UsageError(f"model.name: found {config.name!r}, expected egnn.")
    if config.coordinate_update not in ("stabilized", "mean"):
        raise UsageError(
            f"model.coordinate_update: found {config.coordinate_update!r}, "
            "expected stabilized or mean."
        )
    return EGNNField(
        context_features,
        config.width,
        config.layers,
        attention=config.attention,
        coordinate_update="mean" if config.coordinate_update == "mean" else "stabilized",
        coordinate_range=config.coordinate_range,
        time_frequencies=config.time_frequencies,
        cutoff=config.cutoff,
    )


def build_flow(
    model: ModelConfig,
    solver: SolverConfig,
    statistics: Mapping[str, Any],
    seed: int,
) -> Flow:
    """The flow of a configuration and the statistics of its data, its weights a function of `seed`.

    Args:
        model, solver: Configuration.
        statistics: `dimension`, `scale` and `compositions` as plain values.
        seed: Of the initial weights.
    """
    compositions = Compositions.from_plain(statistics["compositions"])
    with rng.seeded(seed, "weights"):
        field = build_field(model, len(compositions.elements))
    return Flow(
        ContinuousFlow(field),
        statistics["dimension"],
        statistics["scale"],
        compositions,
        build_solver(solver),
    )


def chosen_device(name: str) -> torch.device:
    """The device a name stands for.

    Raises:
        UsageError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") and not name.startswith("cuda:"):
        raise UsageError(f"device: found {name!r}, expected auto, cpu or cuda.")
    if name != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"device: found {name!r}, but PyTorch sees no GPU here; use cpu.")
    return torch.device(name)


def _training_trace(objective: MaximumLikelihoodConfig) -> AbstractDivergence:
    if objective.trace not in ("hutchinson", "exact"):
        raise UsageError(
            f"objective.trace: found {objective.trace!r}, expected hutchinson or exact."
        )
    return Exact() if objective.trace == "exact" else Hutchinson(objective.probes)
