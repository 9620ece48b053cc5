"""From plain configuration to the objects it names."""

from __future__ import annotations

import math
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
    GaussianDequantiser,
    Hutchinson,
    HutchPlusPlus,
    Independent,
    MaskedMatching,
    MaskedMolecularFlow,
    MaximumLikelihood,
    MinibatchOT,
    MolecularFlow,
    Properties,
    PropertyDropout,
    Sizes,
    Solver,
    UniformDequantiser,
    VariationalDequantiser,
)
from eqflow.flows.solver import ADAPTIVE, DIFFUSION, FIXED
from eqflow.geometry import Clouds
from eqflow.nn import (
    AbstractField,
    CategoricalEGNNField,
    JointEGNNField,
    MaskedEGNNField,
)
from eqflow.train.config import (
    CategoricalModelConfig,
    Config,
    ExactConfig,
    FieldConfig,
    FlowMatchingConfig,
    FrameModelConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    IrrepsModelConfig,
    JointModelConfig,
    MaskedModelConfig,
    MaximumLikelihoodConfig,
    ModelConfig,
    SolverConfig,
)
from eqflow.train.fields import field_of_positions, network_options

# Positions given elements, whole molecules, or whole molecules whose elements are revealed.
TrainedFlow = Flow | MolecularFlow | MaskedMolecularFlow

COUPLINGS: dict[str, type[AbstractCoupling]] = {
    "equivariant_ot": EquivariantOT,
    "minibatch_ot": MinibatchOT,
    "independent": Independent,
}

# Those without a network of their own.
DEQUANTISERS: dict[str, Callable[[int, int], AbstractDequantiser]] = {
    "argmax": ArgmaxDequantiser,
    "uniform": UniformDequantiser,
    "gaussian": GaussianDequantiser,
}


def build_solver(config: SolverConfig) -> Solver:
    """The solver a configuration describes.

    Raises:
        UsageError: If a value is out of range, or the method is one of diffusions on graphs.
    """
    if config.method in DIFFUSION:
        raise UsageError(
            f"solver.method: found {config.method!r}, which solves diffusions on graphs; expected "
            f"one of {', '.join((*ADAPTIVE, *FIXED))} for a flow."
        )
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
    objective = _objective(config)
    if not config.data.properties:
        return objective
    width = 2 * len(config.data.properties)
    return PropertyDropout(objective, width, config.objective.unconditional)


def _objective(config: Config) -> AbstractObjective:
    objective = config.objective
    if isinstance(objective, FlowMatchingConfig):
        if objective.coupling not in COUPLINGS:
            raise UsageError(
                f"objective.coupling: found {objective.coupling!r}, expected one of "
                f"{', '.join(COUPLINGS)}."
            )
        if getattr(config.model, "dequantiser", None) == "variational":
            raise UsageError(
                "model.dequantiser: found variational, which is trained by maximum likelihood "
                "alone; with objective=flow_matching use gaussian, argmax or uniform."
            )
        matching = MaskedMatching if isinstance(config.model, MaskedModelConfig) else FlowMatching
        return matching(
            COUPLINGS[objective.coupling](), objective.feature_weight, objective.time_power
        )
    if isinstance(config.model, MaskedModelConfig):
        raise UsageError(
            "objective: found maximum_likelihood with model=masked_egnn, which has no likelihood; "
            "use objective=flow_matching."
        )
    if isinstance(objective, MaximumLikelihoodConfig):
        if getattr(config.model, "training_draws", None) is not None:
            raise UsageError(
                f"model.training_draws: found {config.model.training_draws} with "
                "objective=maximum_likelihood, whose solver needs one velocity and not a new draw "
                "at every evaluation; pass model.training_draws=null, or use "
                "objective=flow_matching."
            )
        return MaximumLikelihood(
            build_solver(config.solver),
            _training_trace(objective),
            objective.kinetic,
            objective.jacobian,
        )
    raise UsageError(
        f"objective: found {objective!r}, expected flow_matching or maximum_likelihood."
    )


def build_flow(
    model: FieldConfig,
    solver: SolverConfig,
    statistics: Mapping[str, Any],
    seed: int,
) -> Flow:
    """The flow of a configuration and the statistics of its data, its weights a function of `seed`.

    Args:
        model, solver: Configuration.
        statistics: `dimension`, `scale` and `compositions` as plain values; `properties` where it
            is conditioned on any.
        seed: Of the initial weights.

    Raises:
        UsageError: If there is no such field in the dimension of the data.
    """
    compositions = Compositions.from_plain(statistics["compositions"])
    properties, width = _properties(statistics)
    with rng.seeded(seed, "weights"):
        context = len(compositions.elements) + width
        field = field_of_positions(model, context, statistics["dimension"])
    return Flow(
        ContinuousFlow(field),
        statistics["dimension"],
        statistics["scale"],
        compositions,
        build_solver(solver),
        properties,
    )


def build_molecular_flow(
    model: JointModelConfig | CategoricalModelConfig,
    solver: SolverConfig,
    statistics: Mapping[str, Any],
    seed: int,
) -> MolecularFlow:
    """The joint flow of a configuration and the statistics of its data; see `build_flow`.

    Args:
        model, solver: Configuration.
        statistics: `dimension`, `elements`, `integer_features` and `sizes` as plain values; where
            known, `charges`, `scale` and `properties`.
        seed: Of the initial weights.
    """
    elements, integers = statistics["elements"], statistics["integer_features"]
    properties, width = _properties(statistics)
    with rng.seeded(seed, "weights"):
        dequantiser, field = _joint_parts(model, len(elements), len(integers), width)
    actnorm = ActNorm(dequantiser.width)
    with torch.no_grad():
        actnorm.position_log_scale.fill_(math.log(statistics.get("scale", 1.0)))
    if isinstance(model, CategoricalModelConfig):
        # The field knows where features are, so their scale is no parameter.
        actnorm.feature_shift.requires_grad_(False)
        actnorm.feature_log_scale.requires_grad_(False).fill_(-math.log(model.feature_scale))
    return MolecularFlow(
        ContinuousFlow(field),
        dequantiser,
        actnorm,
        Sizes.from_plain(statistics["sizes"]),
        elements,
        integers,
        statistics["dimension"],
        build_solver(solver),
        isinstance(model, JointModelConfig) and model.published_actnorm,
        statistics.get("charges"),
        properties,
    )


def build_masked_flow(
    model: MaskedModelConfig,
    solver: SolverConfig,
    statistics: Mapping[str, Any],
    seed: int,
) -> MaskedMolecularFlow:
    """The flow of molecules with masked types; statistics as in `build_molecular_flow`."""
    elements = statistics["elements"]
    properties, width = _properties(statistics)
    with rng.seeded(seed, "weights"):
        field = MaskedEGNNField(len(elements), width, **network_options(model))
    return MaskedMolecularFlow(
        ContinuousFlow(field),
        Sizes.from_plain(statistics["sizes"]),
        elements,
        statistics["scale"],
        statistics["dimension"],
        build_solver(solver),
        statistics.get("charges"),
        properties,
    )


# Schema and builder of each kind of model.
MODELS: dict[str, tuple[type[FieldConfig], Callable[..., TrainedFlow]]] = {
    "egnn": (ModelConfig, build_flow),
    "joint_egnn": (JointModelConfig, build_molecular_flow),
    "categorical_egnn": (CategoricalModelConfig, build_molecular_flow),
    "masked_egnn": (MaskedModelConfig, build_masked_flow),
    "e3nn": (IrrepsModelConfig, build_flow),
    "frame_transformer": (FrameModelConfig, build_flow),
}


def build_model(
    model: FieldConfig, solver: SolverConfig, statistics: Mapping[str, Any], seed: int
) -> TrainedFlow:
    """The flow of a configuration, of whichever kind it is; see `build_flow`.

    Raises:
        UsageError: If there is no such model, or a value is out of range.
    """
    if model.name not in MODELS:
        raise UsageError(f"model.name: found {model.name!r}, expected {' or '.join(MODELS)}.")
    return MODELS[model.name][1](model, solver, statistics, seed)


def integer_features(model: FieldConfig) -> list[str] | None:
    """Integers beside an atom's type where sizes and types are part of the density, else None."""
    if isinstance(model, JointModelConfig):
        return list(model.integers)
    return [] if isinstance(model, CategoricalModelConfig | MaskedModelConfig) else None


def build_example(model: FieldConfig, dimension: int = 3) -> TrainedFlow:
    """A flow of the configuration for hydrogen molecules: whether its values are in range.

    Raises:
        UsageError: If one is not, or there is no such model in that dimension.
    """
    pairs = Clouds(torch.zeros(2, dimension), torch.tensor([0, 2]), torch.tensor([1, 1]))
    statistics = {
        "dimension": dimension,
        "scale": 1.0,
        "compositions": Compositions.of(pairs).to_plain(),
        "sizes": Sizes.of(pairs).to_plain(),
        "elements": [1],
        "integer_features": integer_features(model) or [],
    }
    return build_model(model, SolverConfig(), statistics, seed=0)


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


def _properties(statistics: Mapping[str, Any]) -> tuple[Properties | None, int]:
    """What a model is conditioned on, and how many features of context that takes."""
    if "properties" not in statistics:
        return None, 0
    properties = Properties.from_plain(statistics["properties"])
    return properties, properties.width


def _joint_parts(
    model: JointModelConfig | CategoricalModelConfig, kinds: int, integers: int, context: int
) -> tuple[AbstractDequantiser, AbstractField]:
    if isinstance(model, CategoricalModelConfig):
        for name in ("feature_scale", "feature_spread"):
            if not 0 < getattr(model, name) < math.inf:
                raise UsageError(f"model.{name}: found {getattr(model, name)}, expected above 0.")
        if integers:
            raise UsageError("model: categorical_egnn has no integer features; use joint_egnn.")
        a, spread = model.feature_scale, model.feature_spread
        field = CategoricalEGNNField(kinds, a, a * spread, context, **network_options(model))
        return GaussianDequantiser(kinds, 0, spread), field
    dequantiser = _dequantiser(model, kinds, integers)
    return dequantiser, JointEGNNField(dequantiser.width, context, **network_options(model))


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
