"""From plain configuration to a classifier of nodes: one builder a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.flows import Solver
from eqflow.flows.graph_diffusion import Measure
from eqflow.graphs.classifier import AbstractNodeClassifier
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.graphs.encoder import NodeDecoder, NodeEncoder
from eqflow.graphs.layered_classifier import (
    entropic_gcn,
    gated_gcn,
    gcn,
    pair_norm_gcn,
    residual_gcn,
)
from eqflow.nn import EntropyAscent, PairNorm
from eqflow.nn.diffusion import BLEND, GRAFF, GRAND, Onsager
from eqflow.nn.diffusion.operator import AbstractDiffusion
from eqflow.train.node_config import NodeConfig, NodeSolverConfig
from eqflow.train.node_models import (
    AttentionModelConfig,
    BlendConfig,
    DiffusionModelConfig,
    EntropicGcnConfig,
    GatedGcnConfig,
    GraffConfig,
    LayeredModelConfig,
    NodeModelConfig,
    PairNormGcnConfig,
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
    time = statistics.get("stop_time", model.time)
    field = FIELDS[model.name](model)
    chosen = build_node_solver(model, solver)
    return DiffusionClassifier(field, encoder, decoder, time, chosen, penalties)


def _attention(model: AttentionModelConfig) -> dict[str, Any]:
    """Options that all diffusions by attention have."""
    names = ("heads", "attention_width", "diffusivity", "normaliser", "over")
    return {name: getattr(model, name) for name in (*names, "nonlinear", "source")}


def _blend(model: BlendConfig) -> AbstractDiffusion:
    rewire = None if model.neighbours is None else _nearest(model.neighbours)
    options = _attention(model) | {"space": model.space, "rewire": rewire}
    return BLEND(model.position_width, model.width, **options)


def _nearest(count: int) -> Callable[[Tensor, Edges], Edges]:
    def rewire(positions: Tensor, edges: Edges) -> Edges:
        return Edges.knn(positions, count, edges.clouds)

    return rewire


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


FIELDS: dict[str, Callable[[Any], AbstractDiffusion]] = {
    "grand": lambda model: GRAND(model.width, **_attention(model)),
    "blend": _blend,
    "graff": _graff,
    "onsager": lambda model: Onsager(model.width, **_attention(model)),
}


def _layered(
    make: Callable[..., AbstractNodeClassifier], options: Callable[[Any], dict[str, Any]]
) -> Callable[..., AbstractNodeClassifier]:
    """A builder of layers: `make` with what is special of the model."""

    def build(
        model: LayeredModelConfig,
        solver: NodeSolverConfig,
        statistics: Statistics,
        penalties: Sequence[Measure],
    ) -> AbstractNodeClassifier:
        return make(
            statistics["features"],
            statistics["classes"],
            model.width,
            model.layers,
            dropout=model.dropout,
            input_dropout=model.input_dropout,
            **options(model),
        )

    return build


def _ascent(model: EntropicGcnConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"normalised": model.normalised, "constant": model.constant}
    return {"ascent": EntropyAscent(model.weight, model.temperature, **options)}


def _pair_norm(model: PairNormGcnConfig) -> dict[str, Any]:
    return {"norm": PairNorm(model.scale)}


def _power(model: GatedGcnConfig) -> dict[str, Any]:
    return {"power": model.power}


def _nothing(model: LayeredModelConfig) -> dict[str, Any]:
    return {}


BUILDERS: dict[str, Callable[..., AbstractNodeClassifier]] = {
    **dict.fromkeys(FIELDS, _diffusion),
    "gcn": _layered(gcn, _nothing),
    "residual_gcn": _layered(residual_gcn, _nothing),
    "entropic_gcn": _layered(entropic_gcn, _ascent),
    "pair_norm_gcn": _layered(pair_norm_gcn, _pair_norm),
    "gated_gcn": _layered(gated_gcn, _power),
}
