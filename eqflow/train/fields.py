"""From plain configuration to the velocity field it names."""

from __future__ import annotations

from typing import Any

from eqflow.errors import UsageError
from eqflow.geometry.frames import WeightedFrame
from eqflow.nn import AbstractField, EGNNField, FrameField, IrrepsField
from eqflow.nn.backbones import TransformerBackbone
from eqflow.train.config import FieldConfig, FrameModelConfig, ModelConfig, RadialModelConfig


def field_of_positions(model: FieldConfig, context: int, dimension: int) -> AbstractField:
    """The velocity field of positions alone that a configuration describes.

    Args:
        model: Configuration.
        context: Width of the conditioning node features.
        dimension: Coordinates of a point.

    Raises:
        UsageError: If a value is out of range, or there is no such field in that dimension.
    """
    if isinstance(model, ModelConfig):
        return EGNNField(context, **network_options(model))
    if isinstance(model, FrameModelConfig):
        return frame_field(model, context, dimension)
    if dimension not in (2, 3):
        raise UsageError(
            f"model: e3nn moves points in space or in the plane, found data of {dimension} "
            "dimensions. Use model=egnn, which moves points in any."
        )
    names = ("width", "layers", "lmax", "radial", "time_frequencies", "cutoff")
    return IrrepsField(context, **{name: getattr(model, name) for name in names})


def frame_field(model: FrameModelConfig, context: int, dimension: int) -> FrameField:
    """The transformer averaged over frames; arguments as in `field_of_positions`.

    Raises:
        UsageError: If a value is out of range.
    """
    if model.frame not in ("weighted", "pca"):
        raise UsageError(f"model.frame: found {model.frame!r}, expected weighted or pca.")
    if not 0 <= model.threshold < 1:
        raise UsageError(
            f"model.threshold: found {model.threshold}, expected at least 0 and below 1."
        )
    if model.width % model.heads:
        raise UsageError(
            f"model.heads: found {model.heads} with model.width={model.width}, expected a divisor."
        )

    def backbone(features: int) -> TransformerBackbone:
        return TransformerBackbone(
            dimension, features, dimension, model.width, model.layers, model.heads
        )

    return FrameField(
        backbone,
        context,
        frame=WeightedFrame(threshold=model.threshold) if model.frame == "weighted" else "pca",
        reflections=model.reflections,
        training_draws=model.training_draws,
        time_frequencies=model.time_frequencies,
    )


def network_options(config: ModelConfig) -> dict[str, Any]:
    """Options of a field of messages that are the same whatever evolves.

    Raises:
        UsageError: If there is no such update of coordinates.
    """
    if config.coordinate_update not in ("stabilized", "mean"):
        raise UsageError(
            f"model.coordinate_update: found {config.coordinate_update!r}, "
            "expected stabilized or mean."
        )
    names = ["width", "layers", "attention", "coordinate_update", "coordinate_range"]
    names += ["time_frequencies", "cutoff"]
    if isinstance(config, RadialModelConfig):
        names.append("radial")
    return {name: getattr(config, name) for name in names}
