"""Settings of node classification that have no effect beside the others."""

from __future__ import annotations

from dataclasses import fields

from eqflow.flows.diffusion_arguments import EXACT
from eqflow.flows.solver import ADAPTIVE, DIFFUSION
from eqflow.train.node_config import (
    EncodingConfig,
    KnnRewiringConfig,
    NodeConfig,
    RadiusRewiringConfig,
    RegularisationConfig,
)
from eqflow.train.node_data import PROTOCOLS, SPLITS
from eqflow.train.node_models import (
    BlendConfig,
    DiffusionModelConfig,
    GdeConfig,
    GraffConfig,
    LayeredModelConfig,
)
from eqflow.train.solver_unused import without_effect as unused_of_solver


def without_effect(config: NodeConfig) -> dict[str, str]:
    """Why a key has no effect, by its name; a line for who typed it."""
    found: dict[str, str] = {}
    model, data, method = config.model, config.data, config.solver.method
    if isinstance(model, LayeredModelConfig):
        for item in fields(config.solver):
            found[f"solver.{item.name}"] = (
                f"found with model={model.name}, a network of layers, which has no solver. Leave "
                "it out."
            )
    for key, having in _PROTOCOLS_OF.items():
        if data.split in SPLITS and data.split not in having:
            found[f"data.{key}"] = (
                f"found with data.split={data.split}, which does not take it, expected "
                f"data.split={' or '.join(having)} with it."
            )
    if isinstance(model, DiffusionModelConfig):
        found |= unused_of_solver(method, is_linear=_is_linear(model))
        if model.layers is not None and "solver.steps" not in found:
            found["solver.steps"] = (
                f"found with model.layers={model.layers}, which are the steps. Set model.layers to "
                "as many, or model.layers=null."
            )
        if method in ADAPTIVE or (method in EXACT and _is_linear(model)):
            why = "chooses its own steps" if method in ADAPTIVE else "is exact here, without steps"
            found["model.layers"] = (
                f"found with solver.method={method}, which {why}. Set solver.method=euler for a "
                "step a layer, or leave it out."
            )
    return found


def unused_of_preset(config: NodeConfig) -> set[str]:
    """What a preset of another model may say without effect: keys, and `encoding` as a whole."""
    found: set[str] = set()
    if isinstance(config.model, LayeredModelConfig):
        found |= {f"solver.{item.name}" for item in fields(config.solver)}
        found |= {f"regularisation.{item.name}" for item in fields(RegularisationConfig)}
        found.add("train.stop_times")
    if isinstance(config.model, GdeConfig) and config.solver.method in DIFFUSION:
        found.add("solver.method")  # of another kind of equation
    if encoding_is_unused(config):
        found |= {"encoding", *(f"encoding.{item.name}" for item in fields(config.encoding))}
    return found


def encoding_is_unused(config: NodeConfig) -> bool:
    """Whether nodes are encoded, but neither model nor edges depend on it."""
    by_encoding = isinstance(config.rewiring, KnnRewiringConfig | RadiusRewiringConfig)
    is_encoded = isinstance(config.encoding, EncodingConfig)
    return is_encoded and not isinstance(config.model, BlendConfig) and not by_encoding


def _is_linear(model: DiffusionModelConfig) -> bool:
    """Whether the equation of a model is linear, so that a solution in closed form is one."""
    if isinstance(model, GraffConfig):
        return not model.nonlinear and model.matrices == 1
    if isinstance(model, GdeConfig):
        return False
    rewired = isinstance(model, BlendConfig) and model.neighbours is not None
    return not getattr(model, "nonlinear", False) and not rewired


_PROTOCOLS_OF = {
    key: [name for name, keys in PROTOCOLS.items() if key in keys]
    for key in ("train_per_class", "development")
}
