"""From plain configuration to a classifier of nodes: one builder a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows import Solver
from eqflow.flows.diffusion_arguments import Measure
from eqflow.graphs.classifier import AbstractNodeClassifier
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.graphs.encoder import NodeDecoder, NodeEncoder
from eqflow.graphs.layered_classifier import (
    LayeredClassifier,
    Layers,
    gated,
    remedied,
    residual,
)
from eqflow.nn import EntropyAscent, PairNorm
from eqflow.nn.diffusion import BLEND, GDE, GRAFF, GRAND, Onsager
from eqflow.nn.diffusion.operator import AbstractDiffusion
from eqflow.nn.field import AbstractField
from eqflow.nn.rewired import KNNRewiring
from eqflow.train.node_config import NodeConfig, NodeSolverConfig
from eqflow.train.node_models import (
    AttentionModelConfig,
    BlendConfig,
    DiffusionModelConfig,
    EntropicGcnConfig,
    GraffConfig,
    LayeredModelConfig,
    NodeModelConfig,
)

Statistics = Mapping[str, Any]

EXAMPLE = 3  # layers that show whether those of a network can be built


def build_classifier(
    model: NodeModelConfig,
    solver: NodeSolverConfig,
    statistics: Statistics,
    seed: int,
    penalties: Sequence[Measure] = (),
) -> AbstractNodeClassifier:
    """The classifier of a configuration, its weights a function of `seed`.

    Args:
        model, solver: Configuration.
        statistics: `features`, `classes`, `encoding_features` and the name of the `encoding` as
            plain values; where the state is read earlier or later than trained, `stop_time`.
        seed: Of the initial weights.
        penalties: Names of what training penalises, of a diffusion.

    Raises:
        UsageError: If there is no such model, or a value is out of range.
    """
    if model.name not in BUILDERS:
        raise UsageError(f"model.name: found {model.name!r}, expected one of {', '.join(BUILDERS)}")
    with rng.seeded(seed, "weights"):
        return BUILDERS[model.name](model, solver, statistics, penalties)


def build_node_solver(model: NodeModelConfig, config: NodeSolverConfig) -> Solver:
    """The solver of a configuration, with the steps that `model.layers` asks for."""
    options = asdict(config)
    if isinstance(model, DiffusionModelConfig) and model.layers is not None:
        options["steps"] = model.layers
    return Solver(**options)


def build_example(config: NodeConfig) -> AbstractNodeClassifier:
    """A classifier of the configuration for two features and classes: are its values in range.

    Raises:
        UsageError: If one is not.
    """
    model, width = config.model, getattr(config.encoding, "width", None)
    if isinstance(model, LayeredModelConfig) and model.layers >= 2:
        model = replace(model, layers=EXAMPLE)
    statistics = {
        "features": 2,
        "classes": 2,
        "encoding": config.encoding.name,
        # What is not known before the graph is: one channel a node, or no encoding at all.
        "encoding_features": 2 if width is None else width,
    }
    return build_classifier(model, config.solver, statistics, 0)


def _diffusion(
    model: Any, solver: NodeSolverConfig, statistics: Statistics, penalties: Sequence[Measure]
) -> AbstractNodeClassifier:
    positions = model.position_width if isinstance(model, BlendConfig) else 0
    encoder = NodeEncoder(
        statistics["features"],
        model.width,
        statistics["encoding_features"] if positions else 0,
        positions,
        dropout=model.input_dropout,
        norm=model.norm,
        in_ball=bool(positions) and statistics["encoding"] == "poincare",
    )
    decoder = NodeDecoder(
        positions + model.width,
        statistics["classes"],
        dropout=model.dropout,
        hidden_layer=model.hidden_layer,
    )
    field = FIELDS[model.name](model)
    chosen = build_node_solver(model, solver)
    classifier = DiffusionClassifier(field, encoder, decoder, model.time, chosen, penalties)
    if "stop_time" in statistics:
        classifier.read_at(statistics["stop_time"])
    return classifier


def _attention(model: AttentionModelConfig) -> dict[str, Any]:
    """Options that all diffusions by attention have."""
    names = ("heads", "attention_width", "diffusivity", "normaliser", "over")
    return {name: getattr(model, name) for name in (*names, "nonlinear", "source")}


def _blend(model: BlendConfig) -> AbstractDiffusion:
    rewire = None if model.neighbours is None else KNNRewiring(model.neighbours)
    options = _attention(model) | {"space": model.space, "rewire": rewire}
    return BLEND(model.position_width, model.width, **options)


def _graff(model: GraffConfig) -> AbstractDiffusion:
    return GRAFF(
        model.width,
        mixing=model.mixing,
        damping=model.damping,
        source=model.source,
        nonlinear=model.nonlinear,
        steps=model.matrices,
        time=model.time,
    )


FIELDS: dict[str, Callable[[Any], AbstractField]] = {
    "grand": lambda model: GRAND(model.width, **_attention(model)),
    "blend": _blend,
    "graff": _graff,
    "onsager": lambda model: Onsager(model.width, **_attention(model)),
    "gde": lambda model: GDE(model.width, model.convolutions, source=model.source),
}


def _layered(
    model: LayeredModelConfig,
    solver: NodeSolverConfig,
    statistics: Statistics,
    penalties: Sequence[str],
) -> AbstractNodeClassifier:
    return LayeredClassifier(
        statistics["features"],
        statistics["classes"],
        LAYERS[model.name](model),
        model.width,
        model.layers,
        dropout=model.dropout,
        input_dropout=model.input_dropout,
    )


def _entropic(model: EntropicGcnConfig) -> Layers:
    names = ("normalised", "scaled", "constant")
    options: dict[str, Any] = {name: getattr(model, name) for name in names}
    return remedied(EntropyAscent(model.weight, model.temperature, **options))


LAYERS: dict[str, Callable[[Any], Layers]] = {
    "gcn": lambda model: remedied(),
    "residual_gcn": lambda model: residual(),
    "entropic_gcn": _entropic,
    "pair_norm_gcn": lambda model: remedied(PairNorm(model.scale)),
    "gated_gcn": lambda model: gated(model.power),
}

BUILDERS: dict[str, Callable[..., AbstractNodeClassifier]] = {
    **dict.fromkeys(FIELDS, _diffusion),
    **dict.fromkeys(LAYERS, _layered),
}
