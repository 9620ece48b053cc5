"""Names of a classifier's parts, and what of it does not go together, each said by its key."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import get_args

from eqflow.edges.weights import Normaliser
from eqflow.nn.diffusion.attention import Over
from eqflow.nn.diffusion.blend import Space
from eqflow.nn.diffusion.diffusivity import NAMES as DIFFUSIVITIES
from eqflow.nn.diffusion.symmetric_matrices import FORMS
from eqflow.nn.entropy import Constant
from eqflow.train.node_models import (
    AttentionModelConfig,
    BlendConfig,
    EntropicGcnConfig,
    GraffConfig,
    NodeModelConfig,
)

# Diffusivities without queries and keys, so without a width of them.
WITHOUT_WIDTH = ("distance", "gaussian_mixture")


def problems_of_model(model: NodeModelConfig) -> Iterator[str]:
    """A line for each name that is none, and each pair of settings that does not fit."""
    choices: list[tuple[str, str, Collection[str]]] = []
    if isinstance(model, AttentionModelConfig):
        diffusivities = [*DIFFUSIVITIES]
        if isinstance(model, BlendConfig):
            diffusivities.append("position_and_feature")
            choices.append(("space", model.space, get_args(Space)))
        choices.append(("diffusivity", model.diffusivity, diffusivities))
        choices.append(("normaliser", model.normaliser, get_args(Normaliser)))
        choices.append(("over", model.over, get_args(Over)))
    if isinstance(model, GraffConfig):
        choices += [("mixing", model.mixing, FORMS), ("damping", model.damping, FORMS)]
    if isinstance(model, EntropicGcnConfig):
        choices.append(("constant", model.constant, get_args(Constant)))
    wrong = {name for name, value, known in choices if value not in known}
    for name, value, known in choices:
        if name in wrong:
            yield f"model.{name}: found {value!r}, expected one of {', '.join(known)}."
    if not isinstance(model, AttentionModelConfig):
        return
    heads, width = model.heads, model.attention_width
    if min(heads, width) >= 1 and model.diffusivity not in WITHOUT_WIDTH:
        if width % heads:
            yield (
                f"model.heads: found {heads} with model.attention_width={width}, expected that "
                "width to be a multiple of the heads."
            )
        elif model.diffusivity == "pearson" and width == heads:
            yield (
                f"model.heads: found {heads} with model.attention_width={width} and "
                "model.diffusivity=pearson, expected two or more channels a head."
            )
    if (
        isinstance(model, BlendConfig)
        and not wrong & {"space", "diffusivity"}
        and model.space != "euclidean"
        and model.diffusivity != "position_and_feature"
    ):
        yield (
            f"model.space: found {model.space!r} with model.diffusivity={model.diffusivity}, "
            "expected model.diffusivity=position_and_feature, which alone knows distances of "
            "positions."
        )
