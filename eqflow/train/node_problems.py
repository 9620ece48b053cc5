"""Everything wrong with a configuration of node classification, found before anything is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows import Solver
from eqflow.flows.solver import ADAPTIVE, DIFFUSION, FIXED, STIFF
from eqflow.graphs.citations import SETS
from eqflow.train.build import chosen_device
from eqflow.train.build_nodes import build_example
from eqflow.train.node_config import (
    DeepWalkConfig,
    EncodingConfig,
    KnnRewiringConfig,
    NodeConfig,
    NodeDataConfig,
    PprConfig,
    PprRewiringConfig,
    RadiusRewiringConfig,
)
from eqflow.train.node_data import PROTOCOLS, SOURCES, SPLITS
from eqflow.train.node_model_problems import problems_of_model
from eqflow.train.node_models import (
    AttentionModelConfig,
    BlendConfig,
    DiffusionModelConfig,
    EntropicGcnConfig,
    GatedGcnConfig,
    GdeConfig,
    GraffConfig,
    LayeredModelConfig,
    PairNormGcnConfig,
)
from eqflow.train.node_unused import encoding_is_unused
from eqflow.train.optimizers import require_optimizer


def problems_of(config: NodeConfig) -> list[str]:
    """A line for each value out of range and each contradiction; none if all is well."""
    found = [*_ranges(config), *_data(config.data), *_choices(config), *_contradictions(config)]
    return list(dict.fromkeys(found))


def _ranges(config: NodeConfig) -> Iterator[str]:
    train, model = config.train, config.model
    least: list[tuple[str, int | None, int]] = [
        ("train.steps", train.steps, 1),
        ("train.validate_every", train.validate_every, 1),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.log_every", train.log_every, 1),
        ("train.warmup_steps", train.warmup_steps, 0),
        ("train.patience", train.patience, 1),
        ("train.threads", train.threads, 1),
        ("data.split_index", config.data.split_index, 0),
        ("data.train_per_class", config.data.train_per_class, 1),
        ("data.development", config.data.development, 1),
        ("model.width", model.width, 1),
    ]
    positive: list[tuple[str, float | None, float]] = [
        ("train.learning_rate", train.learning_rate, 10.0),
        ("train.clip", train.clip, math.inf),
        ("train.minutes", train.minutes, math.inf),
    ]
    fractions = [
        ("train.ema_decay", train.ema_decay),
        ("model.input_dropout", model.input_dropout),
        ("model.dropout", model.dropout),
    ]
    if isinstance(model, LayeredModelConfig):
        least.append(("model.layers", model.layers, 2))
    if isinstance(model, EntropicGcnConfig):
        positive.append(("model.temperature", model.temperature, math.inf))
    if isinstance(model, PairNormGcnConfig):
        positive.append(("model.scale", model.scale, math.inf))
    if isinstance(model, DiffusionModelConfig):
        least.append(("model.layers", model.layers, 1))
        positive.append(("model.time", model.time, math.inf))
        positive += [("train.stop_times", time, math.inf) for time in train.stop_times]
    if isinstance(model, AttentionModelConfig):
        least += [("model.heads", model.heads, 1)]
        least += [("model.attention_width", model.attention_width, 1)]
    if isinstance(model, BlendConfig):
        least.append(("model.position_width", model.position_width, 1))
        least.append(("model.neighbours", model.neighbours, 1))
    if isinstance(model, GraffConfig):
        least.append(("model.matrices", model.matrices, 1))
    if isinstance(model, GdeConfig):
        least.append(("model.convolutions", model.convolutions, 1))
    if isinstance(config.encoding, DeepWalkConfig):
        least.append(("encoding.window", config.encoding.window, 1))
    if isinstance(config.encoding, EncodingConfig):
        least.append(("encoding.width", config.encoding.width, 1))
    if isinstance(config.rewiring, RadiusRewiringConfig):
        positive.append(("rewiring.radius", config.rewiring.radius, math.inf))
    if isinstance(config.rewiring, KnnRewiringConfig | PprRewiringConfig):
        least.append(("rewiring.neighbours", config.rewiring.neighbours, 1))
    for name, count, smallest in least:
        if count is not None and count < smallest:
            yield f"{name}: found {count}, expected at least {smallest}."
    for name, value, largest in positive:
        if value is not None and not 0 < value <= largest:
            most = "" if largest == math.inf else f" and at most {largest:g}"
            yield f"{name}: found {value}, expected above 0{most}."
        elif value == math.inf:
            yield f"{name}: found {value}, expected a finite number."
    for name, fraction in fractions:
        if not 0 <= fraction < 1:
            yield f"{name}: found {fraction}, expected 0 to below 1."
    for name, weight in (
        ("train.weight_decay", train.weight_decay),
        ("regularisation.kinetic", config.regularisation.kinetic),
        ("regularisation.jacobian", config.regularisation.jacobian),
    ):
        if not 0 <= weight < math.inf:
            yield f"{name}: found {weight}, expected 0 or more."
    if isinstance(model, EntropicGcnConfig) and not math.isfinite(model.weight):
        yield f"model.weight: found {model.weight}, expected a finite number."
    if isinstance(model, GatedGcnConfig) and not 1 <= model.power < math.inf:
        yield f"model.power: found {model.power}, expected a finite number, at least 1."
    for section in ("encoding", "rewiring"):
        part = getattr(config, section)
        if isinstance(part, PprConfig | PprRewiringConfig) and not 0 < part.teleport < 1:
            yield f"{section}.teleport: found {part.teleport}, expected between 0 and 1."


def _data(data: NodeDataConfig) -> Iterator[str]:
    if data.source not in SOURCES:
        yield f"data.source: found {data.source!r}, expected one of {', '.join(SOURCES)}."
    elif data.path is None and data.source not in SETS:
        what = "an .npz of a graph" if data.source == "file" else "its .npz, or the folder it is in"
        yield f"data.path: needed for data.source={data.source}; give {what}."
    if data.path is not None and data.source == "file" and Path(data.path).suffix != ".npz":
        yield f"data.path: found {data.path}, expected an .npz of a graph for data.source=file."
    if data.split not in SPLITS:
        yield f"data.split: found {data.split!r}, expected one of {', '.join(SPLITS)}."
    elif data.split in PROTOCOLS and data.split_index:
        yield (
            f"data.split_index: found {data.split_index} with data.split={data.split}, which is "
            "drawn; expected data.split_seed for another one."
        )
    elif data.split not in PROTOCOLS and data.split_seed is not None:
        yield (
            f"data.split_seed: found {data.split_seed} with data.split={data.split}, which is not "
            "drawn; expected data.split_index for another one."
        )


def _choices(config: NodeConfig) -> Iterator[str]:
    train = config.train
    if train.schedule not in ("cosine", "constant"):
        yield f"train.schedule: found {train.schedule!r}, expected cosine or constant."
    builders: list[tuple[str, Callable[[], object]]] = [
        ("", lambda: require_optimizer(train.optimizer)),
        ("train.", lambda: chosen_device(train.device)),
        ("", lambda: Solver(**asdict(config.solver))),
    ]
    named = list(problems_of_model(config.model))
    yield from named
    ranges = [line for line in _ranges(config) if line.startswith(("model.", "encoding."))]
    if not (named or ranges or _ball_of_another_width(config)):
        # What is not said above by its key.
        builders.append(("model: ", lambda: build_example(config)))
    for section, build in builders:
        try:
            with rng.seeded(0, "check"):
                build()
        except UsageError as error:
            is_named = str(error).startswith("solver.")
            yield str(error) if is_named else f"{section}{error}"


def _ball_of_another_width(config: NodeConfig) -> bool:
    model, encoding = config.model, config.encoding
    return (
        isinstance(model, BlendConfig)
        and encoding.name == "poincare"
        and encoding.width is not None
        and encoding.width != model.position_width
    )


def _contradictions(config: NodeConfig) -> Iterator[str]:
    model, encoding, rewiring = config.model, config.encoding, config.rewiring
    is_encoded = isinstance(encoding, EncodingConfig)
    by_encoding = isinstance(rewiring, KnnRewiringConfig | RadiusRewiringConfig)
    if isinstance(model, BlendConfig) and not is_encoded:
        yield "encoding: found none with model=blend, which evolves positions; expected one."
    if encoding_is_unused(config):
        yield (
            f"encoding: found {encoding.name} with model={model.name}, which has no positions; "
            "expected model=blend, or rewiring=knn, with it."
        )
    if encoding.name == "poincare" and getattr(model, "space", "hyperbolic") != "hyperbolic":
        yield (
            "encoding: found poincare, whose points have distances of the Poincaré ball; expected "
            "model=blend model.diffusivity=position_and_feature model.space=hyperbolic with it."
        )
    if encoding.name == "poincare" and (by_encoding or getattr(model, "neighbours", None)):
        yield (
            "encoding: found poincare with nearest neighbours in it, which would be those of flat "
            "space and not of the ball; expected rewiring=none and no model.neighbours with it."
        )
    if _ball_of_another_width(config):
        yield (
            f"encoding.width: found {encoding.width} with encoding=poincare and "
            f"model.position_width={model.position_width}, expected the same: points of the ball "
            "are positions as they are."
        )
    if isinstance(model, GraffConfig) and model.matrices > 1:
        steps = model.layers or config.solver.steps
        if config.solver.method in ADAPTIVE or model.matrices != steps:
            yield (
                f"model.matrices: found {model.matrices} with {steps} steps of "
                f"solver.method={config.solver.method}, expected a matrix for each step of a "
                "fixed-step method: set model.layers to as many, or model.matrices=1."
            )
    if by_encoding and (not is_encoded or encoding.width is None):
        yield (
            f"rewiring: found {rewiring.name} without an encoding of some channels, expected "
            "encoding=… encoding.width=16: neighbours are those in it."
        )
    if isinstance(encoding, EncodingConfig) and encoding.width is None and encoding.name != "ppr":
        yield f"encoding.width: found null with encoding={encoding.name}, expected a number."
    if isinstance(model, GdeConfig) and config.solver.method in DIFFUSION:
        yield (
            f"solver.method: found {config.solver.method} with model=gde, which is no diffusion, "
            f"expected one of {', '.join((*ADAPTIVE, *FIXED))}."
        )
    if config.solver.method in STIFF and isinstance(model, (DiffusionModelConfig, GdeConfig)):
        yield (
            f"solver.method: found {config.solver.method}, which gives no gradients to train by, "
            f"expected one of {', '.join((*ADAPTIVE, *FIXED))}."
        )
    weights = asdict(config.regularisation)
    if isinstance(model, DiffusionModelConfig):
        if config.solver.method in DIFFUSION and any(weights.values()):
            yield (
                f"regularisation: found it with solver.method={config.solver.method}, expected one "
                f"of {', '.join((*ADAPTIVE, *FIXED))}: it is integrated along the steps."
            )
        return
    given = {f"regularisation.{name}": value for name, value in weights.items()}
    for name, value in (given | {"train.stop_times": config.train.stop_times}).items():
        if value:
            yield f"{name}: found {value} with model={model.name}, expected a diffusion with it."
