"""From plain configuration to the objects it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows import (
    AbstractCoupling,
    AbstractDequantiser,
    AbstractDivergence,
    AbstractObjective,
    ActNorm,
    ArgmaxDequantiser,
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
    MolecularFlow,
    Sizes,
    Solver,
    UniformDequantiser,
    VariationalDequantiser,
)
from eqflow.nn import EGNNField, JointEGNNField
from eqflow.train.config import (
    Config,
    ExactConfig,
    FlowMatchingConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    JointModelConfig,
    MaximumLikelihoodConfig,
    ModelConfig,
    SolverConfig,
)

COUPLINGS: dict[str, type[AbstractCoupling]] = {
    "equivariant_ot": EquivariantOT,
    "minibatch_ot": MinibatchOT,
    "independent": Independent,
}

# Those without a network of their own.
DEQUANTISERS: dict[str, Callable[[int, int], AbstractDequantiser]] = {
    "argmax": ArgmaxDequantiser,
    "uniform": UniformDequantiser,
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
    return EGNNField(context_features, **_network(config))


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


def build_molecular_flow(
    model: JointModelConfig,
    solver: SolverConfig,
    statistics: Mapping[str, Any],
    seed: int,
) -> MolecularFlow:
    """The joint flow of a configuration and the statistics of its data; see `build_flow`.

    Args:
        model, solver: Configuration.
        statistics: `dimension`, `elements`, `integer_features` and `sizes` as plain values.
        seed: Of the initial weights.
    """
    elements, integers = statistics["elements"], statistics["integer_features"]
    with rng.seeded(seed, "weights"):
        dequantiser = _dequantiser(model, len(elements), len(integers))
        field = JointEGNNField(dequantiser.width, **_network(model))
    return MolecularFlow(
        ContinuousFlow(field),
        dequantiser,
        ActNorm(dequantiser.width),
        Sizes.from_plain(statistics["sizes"]),
        elements,
        integers,
        statistics["dimension"],
        build_solver(solver),
        model.published_actnorm,
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


def _network(config: ModelConfig) -> dict[str, Any]:
    """Options of a field that are the same whatever evolves."""
    if config.coordinate_update not in ("stabilized", "mean"):
        raise UsageError(
            f"model.coordinate_update: found {config.coordinate_update!r}, "
            "expected stabilized or mean."
        )
    names = ("width", "layers", "attention", "coordinate_update", "coordinate_range")
    return {name: getattr(config, name) for name in (*names, "time_frequencies", "cutoff")}


def _dequantiser(config: JointModelConfig, kinds: int, integers: int) -> AbstractDequantiser:
    if config.dequantiser == "variational":
        return VariationalDequantiser(
            kinds, integers, config.dequantiser_width, config.dequantiser_layers
        )
    if config.dequantiser not in DEQUANTISERS:
        raise UsageError(
            f"model.dequantiser: found {config.dequantiser!r}, expected variational, "
            f"{' or '.join(DEQUANTISERS)}."
        )
    return DEQUANTISERS[config.dequantiser](kinds, integers)
