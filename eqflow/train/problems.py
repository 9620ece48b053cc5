"""Everything wrong with a configuration, found before anything is read, built or written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from eqflow import rng
from eqflow.chem.elements import atomic_number
from eqflow.errors import UnknownElement, UsageError
from eqflow.flows.solver import ADAPTIVE, FIXED, STIFF
from eqflow.nn.irreps_field import LARGEST_ORDER
from eqflow.targets import target_by_name
from eqflow.targets.names import TARGETS
from eqflow.train.build import (
    build_divergence,
    build_example,
    build_objective,
    build_solver,
    chosen_device,
)
from eqflow.train.config import (
    Config,
    DataConfig,
    FieldConfig,
    FrameModelConfig,
    IrrepsModelConfig,
    MaskedModelConfig,
    MaximumLikelihoodConfig,
    RadialModelConfig,
)
from eqflow.train.datasets import SOURCES, TOGETHER
from eqflow.train.optimizers import require_optimizer
from eqflow.train.solver_unused import without_effect as unused_of_solver

NEEDS_PATH = ("file", "images", "voxels")
DIMENSION = {"images": 2, "voxels": 3, "qm9": 3, "g2": 3, "shapes": 3}


def problems_of(config: Config) -> list[str]:
    """A line for each value out of range and each contradiction; none if all is well."""
    return list(dict.fromkeys([*_ranges(config), *_choices(config), *_data(config.data)]))


def without_effect(config: Config) -> dict[str, str]:
    """Why a key has no effect, by its name; a line for who typed it."""
    model = config.model
    is_revealing = isinstance(model, MaskedModelConfig)
    found = unused_of_solver(config.solver.method, is_revealing=is_revealing)
    if isinstance(model, FrameModelConfig) and model.frame == "pca":
        found["model.threshold"] = (
            "found with model.frame=pca, which has no threshold, as weighted frames have. Set "
            "model.frame=weighted, or leave it out."
        )
    if config.train.compile and (why := _not_compiled(config)):
        found["train.compile"] = why
    return found


def _not_compiled(config: Config) -> str | None:
    """Why there is nothing for a C++ compiler to do."""
    if isinstance(config.model, FrameModelConfig | IrrepsModelConfig):
        return (
            "found true with a model that has no message passes of EGNN, which are all that is "
            "compiled. Set model=egnn, or leave it out."
        )
    device = config.train.device
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return (
            "found true on a GPU, and only message passes on a CPU are compiled so. Set "
            "train.device=cpu, or leave it out."
        )
    return None


def _ranges(config: Config) -> Iterator[str]:
    train, data, model = config.train, config.data, config.model
    for name, value, least in (
        ("train.steps", train.steps, 1),
        ("train.batch_size", train.batch_size, 1),
        ("train.validate_every", train.validate_every, 1),
        ("train.validation_structures", train.validation_structures, 1),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.log_every", train.log_every, 1),
        ("train.final_structures", train.final_structures, 0),
        ("train.warmup_steps", train.warmup_steps, 0),
        ("train.pairs", train.pairs, 1),
        ("train.threads", train.threads, 1),
        ("data.structures", data.structures, 1),
        ("data.dimension", data.dimension, 1),
        ("data.points", data.points, 1),
        ("model.layers", model.layers, 1),
        ("model.width", model.width, 1),
        ("model.time_frequencies", model.time_frequencies, 0),
        ("model.radial", _radial(model), 2),
        ("model.heads", getattr(model, "heads", None), 1),
        ("model.training_draws", getattr(model, "training_draws", None), 1),
    ):
        if value is not None and value < least:
            yield f"{name}: found {value}, expected at least {least}."
    order = getattr(model, "lmax", None)
    if order is not None and not 1 <= order <= LARGEST_ORDER:
        yield f"model.lmax: found {order}, expected 1 (vectors) to {LARGEST_ORDER}."
    for name, positive, largest in (
        ("train.learning_rate", train.learning_rate, 10.0),  # Adam's steps are as large as it
        ("train.clip", train.clip, math.inf),
        ("train.minutes", train.minutes, math.inf),
        ("train.wait_minutes", train.wait_minutes, 24 * 60.0),
        ("model.coordinate_range", getattr(model, "coordinate_range", None), math.inf),
        ("model.cutoff", getattr(model, "cutoff", None), math.inf),
    ):
        if positive is not None and not 0 < positive <= largest:
            most = "" if largest == math.inf else f" and at most {largest:g}"
            yield f"{name}: found {positive}, expected above 0{most}."
    weights = [("train.weight_decay", train.weight_decay)]
    if isinstance(config.objective, MaximumLikelihoodConfig):
        weights.append(("objective.kinetic", config.objective.kinetic))
        weights.append(("objective.jacobian", config.objective.jacobian))
    for name, weight in weights:
        if not 0 <= weight < math.inf:
            yield f"{name}: found {weight}, expected 0 or more."
    if not 0 <= config.objective.unconditional <= 1:
        yield (
            f"objective.unconditional: found {config.objective.unconditional}, expected a "
            "probability, 0 to 1."
        )
    if not 0 <= train.ema_decay < 1:
        yield f"train.ema_decay: found {train.ema_decay}, expected 0 to below 1."
    for name, fraction in (("data.validation", data.validation), ("data.test", data.test)):
        if not 0 < fraction < 1:
            yield f"{name}: found {fraction}, expected a fraction between 0 and 1."
    if max(data.validation, data.test) < 1 <= data.validation + data.test:
        yield (
            f"data.validation + data.test: found {data.validation + data.test:g}, expected below 1."
        )


def _radial(model: FieldConfig) -> int | None:
    """How many Gaussians of the distance, None where a model does without."""
    count: int | None = getattr(model, "radial", None)
    return None if isinstance(model, RadialModelConfig) and count == 0 else count


def _choices(config: Config) -> Iterator[str]:
    if config.train.schedule not in ("cosine", "constant"):
        yield f"train.schedule: found {config.train.schedule!r}, expected cosine or constant."
    builders: list[Callable[[], object]] = [
        lambda: require_optimizer(config.train.optimizer),
        lambda: build_solver(config.solver),
        lambda: build_divergence(config.divergence),
        lambda: build_objective(config),
        lambda: chosen_device(config.train.device),
    ]
    if config.solver.method in STIFF and isinstance(config.objective, MaximumLikelihoodConfig):
        yield (
            f"solver.method: found {config.solver.method} with objective=maximum_likelihood, which "
            f"needs gradients that it does not give, expected one of "
            f"{', '.join((*ADAPTIVE, *FIXED))}. Where a trained run is stiff, sample and score "
            "take it."
        )
    if not any(line.startswith("model.") for line in _ranges(config)):
        dimension = max(config.data.dimension, 1)
        builders.append(lambda: build_example(config.model, dimension))
    for build in builders:
        try:
            with rng.seeded(0, "check"):
                build()
        except UsageError as error:
            yield str(error)


def _data(data: DataConfig) -> Iterator[str]:
    if data.on_problem not in ("stop", "skip"):
        yield f"data.on_problem: found {data.on_problem!r}, expected stop or skip."
    if len(set(data.properties)) < len(data.properties):
        yield f"data.properties: found {', '.join(data.properties)}, expected each once."
    if data.together not in TOGETHER:
        yield f"data.together: found {data.together!r}, expected {' or '.join(TOGETHER)}."
    try:
        for element in data.elements:
            atomic_number(element)
    except UnknownElement as error:
        yield f"data.elements: {error}"
    else:
        if data.elements and data.source in TARGETS and data.path is None:
            yield f"data.elements: found {data.elements}, but {data.source} has no elements."
    if data.source not in SOURCES and data.source not in TARGETS:
        names = ", ".join([*SOURCES, *TARGETS])
        yield f"data.source: found {data.source!r}, expected one of {names}."
        return
    if data.path is None and data.source in NEEDS_PATH:
        yield f"data.path: needed for data.source={data.source}; give a file or a folder."
    dimension = (
        target_by_name(data.source).dimension
        if data.source in TARGETS
        else DIMENSION.get(data.source)
    )
    if dimension is not None and data.dimension != dimension:
        yield (
            f"data.dimension: found {data.dimension}, expected {dimension} for "
            f"data.source={data.source}."
        )
