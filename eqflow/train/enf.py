r"""The published E-NF of QM9 as a `MolecularFlow`, from its weights alone.

Read are an archive of arrays (`.npz`) whose names are those of the two state dicts behind `flow.`
and `dequantizer.`, with settings in `args.` and the histogram of sizes in `n_nodes.`; or a folder
with the original `flow.npy` and `dequantizer.npy`, which are files of `torch.save`. Neither is
ever executed.

Its edge networks take `[h_i, h_j, r², r₀²]` in one layer, here split into receiver, sender and
scalars; its last feature is the time, whose output it throws away.

Reference: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016, appendix.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eqflow.data.numpy_files import load_arrays
from eqflow.errors import CheckpointError, DataError, UsageError
from eqflow.flows import MolecularFlow, Sizes, Solver
from eqflow.train.build import build_molecular_flow
from eqflow.train.checkpoint import load_tensors
from eqflow.train.config import JointModelConfig, SolverConfig

FLOW_FILE, DEQUANTIZER_FILE = "flow.npy", "dequantizer.npy"
ELEMENTS = (1, 6, 7, 8, 9)
INTEGER_FEATURES = ("atomic_number",)
COORDINATE_RANGE = 15.0

# Settings that the importer can build; the archive may name them.
SETTINGS: dict[str, Any] = {
    "model": "egnn_dynamics",
    "dequantization": "argmax_variational",
    "x_aggregation": "sum",
    "actnorm": True,
    "condition_time": True,
    "tanh": True,
    "context_node_nf": 0,
}

# Molecules of each size among the 100,000 of the published training set; no weight tells them.
# fmt: off
QM9_SIZES = {
    3: 1, 4: 4, 5: 5, 6: 9, 7: 16, 8: 49, 9: 124, 10: 362, 11: 807, 12: 1689, 13: 3060, 14: 5136,
    15: 7796, 16: 10644, 17: 13025, 18: 13364, 19: 13832, 20: 9482, 21: 9970, 22: 3393, 23: 4848,
    24: 539, 25: 1506, 26: 48, 27: 266, 29: 25,
}
# fmt: on

# Which part of a published tensor another name stands for.
Part = tuple[int | slice, ...]

PUBLISHED_NAMES = {
    "embed": "embedding",
    "receiver": "edge_mlp.0",
    "sender": "edge_mlp.0",
    "scalars": "edge_mlp.0",
    "message": "edge_mlp.2",
    "attention": "att_mlp.0",
    "coordinate": "coord_mlp.0",
    "coordinate_out": "coord_mlp.2",
    "feature_update.0": "node_mlp.0",
    "feature_update.2": "node_mlp.2",
    "readout": "embedding_out",
}
ACTNORM = "flow.transformations.0."
FIELD = "flow.transformations.1.odefunc.dynamics.egnn."
DEQUANTIZER = "dequantizer.net_fn.egnn."
# Where the integration starts and ends, and that ActNorm has seen data: nothing to load.
WITHOUT_MEANING = (
    f"{ACTNORM}initialized",
    "flow.transformations.1.int_time",
    "flow.transformations.1.inv_int_time",
)


class Published(NamedTuple):
    """The published flow, and what a run folder keeps to build it again."""

    flow: MolecularFlow
    model: JointModelConfig
    statistics: dict[str, Any]


def load_enf(path: str | Path, solver: Solver | None = None) -> MolecularFlow:
    """The published flow, in float32 as its weights are; see `read_enf`.

    Args:
        path: As in `read_enf`.
        solver: How the flow is to integrate; the package's default where None.
    """
    flow = read_enf(path, SolverConfig()).flow
    if solver is not None:
        flow.solver = solver
    return flow


def read_enf(
    path: str | Path, solver: SolverConfig, *, published_actnorm: bool = False
) -> Published:
    """The published flow with its configuration.

    Args:
        path: An `.npz`, or a folder with `flow.npy` and `dequantizer.npy`, for which the published
            settings and histogram of QM9 are taken.
        solver: How the flow is to integrate.
        published_actnorm: See `ActNorm.log_det`; what scores count unless a call says otherwise.

    Raises:
        CheckpointError: If a file is missing, damaged or of another kind, keys are missing or
            unexpected, a shape differs, or the settings are others than can be built.
    """
    path = Path(path)
    published = _read(path)
    tensors = {
        name: value
        for name, value in published.items()
        if name.startswith(("flow.", "dequantizer.")) and name not in WITHOUT_MEANING
    }
    _require_settings(published, path)
    _require_finite(tensors, path)
    layers = _layers(tensors, FIELD, path)
    width = len(_shaped(tensors, f"{FIELD}embedding.weight", 2, path))
    features = _shaped(tensors, f"{ACTNORM}h_t", 2, path).shape[1]
    attention = any(".att_mlp." in name for name in tensors)

    kinds = len(ELEMENTS)
    if features != kinds + len(INTEGER_FEATURES):
        raise CheckpointError(
            f"{path}: found {features} features, expected {kinds + len(INTEGER_FEATURES)}: those "
            f"of QM9's {kinds} elements and a charge."
        )
    model = JointModelConfig(
        layers=layers,
        width=width,
        attention=attention,
        coordinate_range=COORDINATE_RANGE,
        dequantiser_layers=_layers(tensors, DEQUANTIZER, path),
        dequantiser_width=len(_shaped(tensors, f"{DEQUANTIZER}embedding.weight", 2, path)),
        published_actnorm=published_actnorm,
    )
    statistics = {
        "dimension": 3,
        "elements": list(ELEMENTS),
        "integer_features": list(INTEGER_FEATURES),
        "sizes": _sizes(published, path).to_plain(),
    }
    flow = build_molecular_flow(model, solver, statistics, seed=0)
    load_tensors(flow, _renamed(tensors, flow, path), path)
    return Published(flow.eval(), model, statistics)


def enf_files(path: str | Path) -> list[Path]:
    """The files that `read_enf` reads."""
    path = Path(path)
    return [path / FLOW_FILE, path / DEQUANTIZER_FILE] if path.is_dir() else [path]


def _renamed(tensors: Mapping[str, Tensor], flow: MolecularFlow, path: Path) -> dict[str, Tensor]:
    """Tensors by the names of this package, cut where it cuts them.

    Raises:
        CheckpointError: If published keys are missing or left over.
    """
    taken: dict[str, tuple[str, Part]] = {
        "actnorm.position_log_scale": (f"{ACTNORM}x_log_s", (0, 0)),
        "actnorm.feature_shift": (f"{ACTNORM}h_t", (0,)),
        "actnorm.feature_log_scale": (f"{ACTNORM}h_log_s", (0,)),
    }
    for ours, theirs, outputs in (
        ("continuous.field.egnn", FIELD, flow.actnorm.features),
        ("dequantiser.network", DEQUANTIZER, None),
    ):
        network = flow.get_submodule(ours)
        for name, (published, part) in _of_network(network, outputs).items():
            taken[f"{ours}.{name}"] = f"{theirs}{published}", part
    asked = {theirs for theirs, _ in taken.values()}
    problems = [f"missing {name}" for name in sorted(asked - set(tensors))]
    problems += [f"unexpected {name}" for name in sorted(set(tensors) - asked)]
    if problems:
        raise CheckpointError(
            f"{path}: no state of the published flow: {'; '.join(problems[:8])}"
            f"{f'; and {len(problems) - 8} more' if len(problems) > 8 else ''}."
        )
    return {
        ours: _shaped(tensors, theirs, len(part), path)[part].contiguous()
        for ours, (theirs, part) in taken.items()
    }


def _of_network(network: nn.Module, outputs: int | None) -> dict[str, tuple[str, Part]]:
    """Names in an EGNN of this package: the published name, and which part of that tensor.

    Args:
        network: The EGNN.
        outputs: How many of the published outputs it has, all where None.
    """
    width = network.get_parameter("embed.weight").shape[0]
    parts: dict[str, Part] = {
        "receiver.weight": (slice(None), slice(width)),
        "sender.weight": (slice(None), slice(width, 2 * width)),
        "scalars.weight": (slice(None), slice(2 * width, None)),
        "readout.weight": (slice(outputs),),
        "readout.bias": (slice(outputs),),
    }
    found = {}
    for name in network.state_dict():
        in_layer = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
        own = in_layer.group(2) if in_layer else name
        module, kind = own.rsplit(".", 1)
        where = f"gcl_{in_layer.group(1)}." if in_layer else ""
        found[name] = f"{where}{PUBLISHED_NAMES[module]}.{kind}", parts.get(own, ())
    return found


def _read(path: Path) -> dict[str, Any]:
    """Tensors behind `flow.` and `dequantizer.`, and other arrays by their names."""
    if path.is_dir():
        return {
            f"{prefix}.{name}": value
            for prefix, file in (("flow", FLOW_FILE), ("dequantizer", DEQUANTIZER_FILE))
            for name, value in _state_dict(path / file).items()
        }
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected an .npz of the published weights, or a folder with "
            f"{FLOW_FILE} and {DEQUANTIZER_FILE}."
        )
    try:
        arrays = load_arrays(path)
    except DataError as error:
        raise CheckpointError(
            f"{error} Expected are plain arrays: an .npz of the published weights."
        ) from error
    weights = {name for name in arrays if name.startswith(("flow.", "dequantizer."))}
    if strange := sorted(name for name in weights if arrays[name].dtype.kind not in "fiu"):
        raise CheckpointError(
            f"{path}: {strange[0]} holds {arrays[strange[0]].dtype}, expected numbers."
        )
    return {name: _tensor(value) if name in weights else value for name, value in arrays.items()}


def _tensor(values: np.ndarray) -> Tensor:
    """Numbers of any size and order of bytes as those PyTorch has."""
    kind = values.dtype.newbyteorder("=")
    if kind.kind == "f" and kind.itemsize > 8:
        kind = np.dtype(np.float64)
    with np.errstate(over="ignore"):  # what is not finite then is refused
        return torch.from_numpy(np.ascontiguousarray(values, dtype=kind).reshape(values.shape))


def _state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a state dict of the published flow.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
        struct.error,
    ) as error:
        raise CheckpointError(
            f"{path}: found a damaged file, or one that would run code; expected a state dict "
            "written by torch.save."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: found no state dict, expected tensors by name.")
    # Trained on several GPUs, every name begins with that of the wrapper.
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _require_settings(published: Mapping[str, Any], path: Path) -> None:
    found = {
        name: published[f"args.{name}"].tolist() for name in SETTINGS if f"args.{name}" in published
    }
    wrong = [f"{name}={value}" for name, value in found.items() if value != SETTINGS[name]]
    if wrong:
        raise CheckpointError(
            f"{path}: found {', '.join(wrong)}, expected the settings of the published flow of "
            "QM9, which alone can be imported."
        )


def _layers(tensors: Mapping[str, Tensor], prefix: str, path: Path) -> int:
    found = {
        int(match.group(1))
        for name in tensors
        if (match := re.match(rf"{re.escape(prefix)}gcl_(\d+)\.", name))
    }
    if not found:
        raise CheckpointError(f"{path}: found no {prefix}gcl_0, expected the published flow.")
    return max(found) + 1


def _shaped(tensors: Mapping[str, Tensor], name: str, axes: int, path: Path) -> Tensor:
    """A tensor that has at least so many axes."""
    if name not in tensors:
        raise CheckpointError(f"{path}: missing {name}; expected the published flow.")
    if tensors[name].dim() < axes:
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {axes} axes."
        )
    return tensors[name]


def _require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    if bad := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(
            f"{path}: {bad[0]} has values that are not finite, expected weights. Copy it again."
        )


def _sizes(published: Mapping[str, Any], path: Path) -> Sizes:
    """The size distribution, its logarithms rounded to float32 as the published code's are."""
    try:
        return _published_sizes(published)
    except (UsageError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: its histogram of sizes cannot be used: {error}") from error


def _published_sizes(published: Mapping[str, Any]) -> Sizes:
    if "n_nodes.keys" in published and "n_nodes.prob" in published:
        if {published[f"n_nodes.{name}"].dtype.kind for name in ("keys", "prob")} - set("fiu"):
            raise TypeError("it holds no numbers")
        sizes = torch.from_numpy(np.asarray(published["n_nodes.keys"], dtype=np.int64))
        probs = torch.from_numpy(np.asarray(published["n_nodes.prob"], dtype=np.float32))
    else:
        sizes = torch.tensor(list(QM9_SIZES))
        counts = torch.tensor(list(QM9_SIZES.values()), dtype=torch.float64)
        probs = (counts / counts.sum()).float()
    order = sizes.argsort()
    return Sizes(sizes[order], probs[order].log().double())
