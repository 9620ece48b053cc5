"""The structures of a run: one loader a source, split as a function of the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eqflow import rng
from eqflow.chem.elements import atomic_number
from eqflow.chem.g2 import load_g2
from eqflow.data import (
    ReadResult,
    duplicates,
    formulas,
    load_qm9,
    read_images,
    read_report,
    read_voxels,
    split,
    surfaces,
    with_known_elements,
)
from eqflow.errors import DataError, EmptyData, UnknownElement, UsageError
from eqflow.flows import AtomTypes, Compositions, Properties, Sizes
from eqflow.geometry import Clouds, centred, degrees_of_freedom
from eqflow.targets import AbstractTarget, target_by_name
from eqflow.targets.names import TARGETS
from eqflow.train.config import DataConfig

# Structures generated where data.structures does not say how many.
GENERATED = {"lj13": 50_000, "lj55": 10_000, "shapes": 2_000}
GENERATED_OTHERWISE = 100_000

# Structures that are alike never end in different parts.
TOGETHER = {"duplicates": duplicates, "formula": formulas}


@dataclass(frozen=True)
class Dataset:
    """Structures of a run.

    Attributes:
        parts: "train", "validation" and "test".
        skipped: A line for each record left out.
        target: The energy they are samples of, where it is known.
        statistics: What the flow needs to know of them, as plain values.
    """

    parts: dict[str, Clouds]
    skipped: list[str]
    target: AbstractTarget | None
    statistics: dict[str, Any]


def load_dataset(
    config: DataConfig, seed: int, integer_features: Sequence[str] | None = None
) -> Dataset:
    """Read or generate the structures of a configuration and split them.

    Duplicates never end in different parts, nor what `data.together` says.

    Args:
        config: Which structures.
        seed: Of what is generated, and of the split.
        integer_features: Integers of an atom that a joint model has beside its type, a charge
            being one of both at most; statistics are then those of `build_molecular_flow`, the
            types those of all parts. None for a model of positions.

    Raises:
        DataError: If they cannot be read, none is left, or a property is not known of any.
        EmptyData: If there are too few of them for all parts.
        UsageError: If the source is unknown or contradicts another option.
    """
    clouds, skipped = _structures(config, seed)
    elements = tuple(sorted({atomic_number(name) for name in config.elements}))
    clouds, unknown = with_known_elements(clouds, elements, config.on_problem)
    skipped = [*skipped, *unknown]
    if integer_features is not None and clouds.numbers is None:
        raise UnknownElement(
            "data: found structures without elements, expected molecules: a joint model is of what "
            "atoms are as well. Give a format with elements, or model=egnn."
        )
    wrong = clouds.dimension != config.dimension
    if wrong:
        raise DataError(
            f"data: found structures in {clouds.dimension} dimensions, "
            f"expected data.dimension={config.dimension}."
        )
    target = _target(config)
    if target is not None and clouds.segments.uniform != target.points:
        raise DataError(
            f"data: {config.source} has {target.points} points; the structures have "
            f"{int(clouds.sizes.min())} to {int(clouds.sizes.max())}."
        )
    fractions = {
        "train": 1 - config.validation - config.test,
        "validation": config.validation,
        "test": config.test,
    }
    groups = TOGETHER[config.together](clouds)
    try:
        chosen = split(len(clouds), fractions, seed, groups=groups)
    except EmptyData as error:
        raise EmptyData(f"{config.path or config.source}: {error}") from error
    parts = {name: clouds[index] for name, index in chosen.items()}
    statistics: dict[str, Any] = {
        "dimension": clouds.dimension,
        "scale": spread(parts["train"]),
    }
    if integer_features is not None:
        by_type = config.charges and "formal_charge" not in integer_features
        types = AtomTypes.of(clouds if by_type else replace(clouds, charges=None), elements)
        sizes = Sizes.of(parts["train"])
        makeups = sizes.places(parts["train"])
        statistics |= {
            "elements": list(types.numbers),
            "charges": None if types.charges is None else list(types.charges),
            "integer_features": list(integer_features),
            "sizes": sizes.to_plain(),
        }
    else:
        compositions = Compositions.of(parts["train"], elements)
        makeups = compositions.places(parts["train"])
        statistics["compositions"] = compositions.to_plain()
    if config.properties:
        properties = Properties.of(parts["train"], config.properties, makeups)
        statistics["properties"] = properties.to_plain()
    return Dataset(parts, skipped, target, statistics)


def spread(clouds: Clouds) -> float:
    """Root mean square of a degree of freedom, in the unit of the data: the scale of a flow.

    Raises:
        DataError: If there is no degree of freedom, or all structures are single points.
    """
    x = centred(clouds.x.double(), clouds.segments)
    freedom = int(degrees_of_freedom(clouds.segments, clouds.dimension).sum())
    scale = float((x.square().sum() / max(freedom, 1)).sqrt())
    if freedom == 0 or not scale > 0:
        raise DataError(
            "data: every structure is a single point (or all its points coincide), so there is "
            "nothing to learn; expected structures of at least two different points."
        )
    return scale


def _target(config: DataConfig) -> AbstractTarget | None:
    return target_by_name(config.source) if config.source in TARGETS else None


def _structures(config: DataConfig, seed: int) -> tuple[Clouds, list[str]]:
    if config.source in TARGETS:
        clouds, skipped = _of_target(config, seed)
    elif config.source in SOURCES:
        clouds, skipped = SOURCES[config.source](config, seed)
    else:
        names = [*SOURCES, *TARGETS]
        raise UsageError(
            f"data.source: found {config.source!r}, expected one of {', '.join(names)}."
        )
    if config.structures is not None and len(clouds) > config.structures:
        source = rng.generator(seed, "data", "structures")
        clouds = clouds[rng.permutation(len(clouds), source)[: config.structures]]
    return clouds, skipped


def _count(config: DataConfig) -> int:
    return config.structures or GENERATED.get(config.source, GENERATED_OTHERWISE)


def _of_target(config: DataConfig, seed: int) -> tuple[Clouds, list[str]]:
    if config.path is not None:
        return _of_file(config, seed)
    x = target_by_name(config.source).sample(_count(config), seed)
    return Clouds.from_dense(x), []


def _of_file(config: DataConfig, seed: int) -> tuple[Clouds, list[str]]:
    if config.path is None:
        raise UsageError(
            f"data.path: needed for data.source={config.source}; "
            "give a file that ends in .xyz, .extxyz, .sdf, .npz, .npy or .smi, or a folder of such."
        )
    result = read_report(config.path, config.dimension, config.on_problem)
    return result.clouds, result.skipped


def _of_qm9(config: DataConfig, seed: int) -> tuple[Clouds, list[str]]:
    if config.path is not None and Path(config.path).suffix in (".xyz", ".extxyz", ".sdf"):
        return _of_file(config, seed)
    return load_qm9(config.path), []


def _of_images(config: DataConfig, seed: int) -> tuple[Clouds, list[str]]:
    if config.path is None:
        raise UsageError(
            "data.path: needed for data.source=images; give an IDX file such as MNIST's "
            "train-images-idx3-ubyte.gz."
        )
    result = read_images(
        config.path,
        max_points=config.points,
        limit=config.structures,
        seed=seed,
        dequantize=True,
    )
    return _kept(result, config)


def _of_voxels(config: DataConfig, seed: int) -> tuple[Clouds, list[str]]:
    if config.path is None:
        raise UsageError("data.path: needed for data.source=voxels; give an .npz of voxel grids.")
    result = read_voxels(config.path, config.points, seed, dequantize=True)
    return _kept(result, config)


def _kept(result: ReadResult, config: DataConfig) -> tuple[Clouds, list[str]]:
    """Records that were read; one that was not stops the run unless it may be skipped."""
    if result.skipped and config.on_problem == "stop":
        raise DataError(f"{result.skipped[0]} Pass data.on_problem=skip to leave such records out.")
    return result.clouds, result.skipped


def _of_shapes(config: DataConfig, seed: int) -> tuple[Clouds, list[str]]:
    if config.path is not None:
        return _of_file(config, seed)
    return surfaces(_count(config), config.points or 256, seed, dtype=torch.float32), []


def _of_g2(config: DataConfig, seed: int) -> tuple[Clouds, list[str]]:
    return load_g2(config.elements or None, min_atoms=2), []


SOURCES: dict[str, Callable[[DataConfig, int], tuple[Clouds, list[str]]]] = {
    "file": _of_file,
    "qm9": _of_qm9,
    "images": _of_images,
    "voxels": _of_voxels,
    "shapes": _of_shapes,
    "g2": _of_g2,
}
