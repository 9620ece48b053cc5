"""From plain configuration to the objects it names, with every contradiction in one message."""

from __future__ import annotations

from collections.abc import Mapping
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
    if config.gradient not in ("direct", "adjoint"):
        raise UsageError(f"solver.gradient: found {config.gradient!r}, expected direct or adjoint.")
    return Solver(
        method=config.method,
        rtol=config.rtol,
        atol=config.atol,
        steps=config.steps,
        step_limit=config.step_limit,
        gradient="adjoint" if config.gradient == "adjoint" else "direct",
    )


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
            build_divergence(config.divergence),
            objective.kinetic,
            objective.jacobian,
        )
    raise UsageError(
        f"objective: found {objective!r}, expected flow_matching or maximum_likelihood."
    )


def build_field(config: ModelConfig, context_features: int) -> EGNNField:
    """The velocity field a configuration describes, with weights drawn from the global generator."""
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


def problems_of(config: Config) -> list[str]:
    """Everything wrong with a configuration, before anything is built or written."""
    problems = []
    for build in (
        lambda: build_solver(config.solver),
        lambda: build_divergence(config.divergence),
        lambda: build_objective(config),
        lambda: build_field(config.model, 0),
        lambda: chosen_device(config.train.device),
    ):
        try:
            with rng.seeded(0, "check"):
                build()
        except UsageError as error:
            problems.append(str(error))
    train, data = config.train, config.data
    for name, value, least in (
        ("train.steps", train.steps, 1),
        ("train.batch_size", train.batch_size, 1),
        ("train.validate_every", train.validate_every, 1),
        ("train.validation_structures", train.validation_structures, 1),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.log_every", train.log_every, 1),
        ("train.final_structures", train.final_structures, 0),
        ("train.warmup_steps", train.warmup_steps, 0),
        ("train.weight_decay", train.weight_decay, 0),
        ("train.pairs", train.pairs, 1),
        ("train.threads", train.threads, 1),
        ("data.structures", data.structures, 1),
        ("data.dimension", data.dimension, 1),
        ("data.points", data.points, 1),
    ):
        if value is not None and value < least:
            problems.append(f"{name}: found {value}, expected at least {least}.")
    for name, positive in (
        ("train.learning_rate", train.learning_rate),
        ("train.clip", train.clip),
        ("train.minutes", train.minutes),
    ):
        if positive is not None and not positive > 0:
            problems.append(f"{name}: found {positive}, expected above 0.")
    if not 0 <= train.ema_decay < 1:
        problems.append(f"train.ema_decay: found {train.ema_decay}, expected 0 to below 1.")
    if train.schedule not in ("cosine", "constant"):
        problems.append(f"train.schedule: found {train.schedule!r}, expected cosine or constant.")
    if data.on_problem not in ("stop", "skip"):
        problems.append(f"data.on_problem: found {data.on_problem!r}, expected stop or skip.")
    for name, fraction in (("data.validation", data.validation), ("data.test", data.test)):
        if not 0 < fraction < 1:
            problems.append(f"{name}: found {fraction}, expected a fraction between 0 and 1.")
    if data.validation + data.test >= 1:
        problems.append(
            f"data.validation + data.test: found {data.validation + data.test:g}, expected below 1."
        )
    return list(dict.fromkeys(problems))


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
