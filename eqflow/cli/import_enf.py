"""`eqflow import-enf`: the published E-NF of QM9 as a run folder, for the other verbs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from eqflow import storage
from eqflow.chem.elements import symbol
from eqflow.cli.schemas import ImportEnfConfig
from eqflow.cli.terminal import Terminal
from eqflow.errors import ExitCode, UsageError
from eqflow.train.build import build_divergence, build_solver
from eqflow.train.checkpoint import WEIGHTS, save_weights
from eqflow.train.enf import enf_files, read_enf
from eqflow.train.folder import CONFIG, PROVENANCE, fingerprint, provenance, require_possible


def run(config: ImportEnfConfig) -> ExitCode:
    """Read the weights, then write the folder; nothing is made where they cannot be read."""
    if config.weights is None:
        raise UsageError(
            "weights: needed; give the .npz, or the folder with flow.npy and dequantizer.npy."
        )
    folder = _new_folder(config.run.dir)
    build_solver(config.solver)  # or says what is wrong
    build_divergence(config.divergence)
    require_possible(folder)

    terminal = Terminal()
    terminal.line(f"import-enf: the published E-NF of {config.weights}, into {folder}")
    found = read_enf(config.weights, config.solver, published_actnorm=config.published_actnorm)
    plain: dict[str, Any] = {
        "name": "enf",
        "weights": config.weights,
        "run": {"dir": str(folder)},
        "model": asdict(found.model),
        "divergence": asdict(config.divergence),
        "solver": asdict(config.solver),
    }
    files = [fingerprint(str(path)) for path in enf_files(config.weights)]
    storage.write_text(folder / CONFIG, yaml.safe_dump(plain, sort_keys=False))
    storage.write_text(folder / PROVENANCE, json.dumps(provenance(weights=files), indent=2))
    save_weights(folder / WEIGHTS, found.flow, plain, found.statistics)

    count = sum(parameter.numel() for parameter in found.flow.parameters())
    sizes = found.flow.sizes.sizes
    elements = ", ".join(map(symbol, found.flow.elements))
    terminal.line(
        f"{count:,} weights; {elements}; {int(sizes.min())} to {int(sizes.max())} atoms a molecule"
    )
    terminal.line(f"done: {folder}")
    return ExitCode.DONE


def _new_folder(name: str | None) -> Path:
    """The folder to be made, which holds nothing yet."""
    if name is None:
        raise UsageError("run.dir: needed; give the run folder to make, such as runs/enf.")
    folder = Path(name)
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"run.dir: {folder} is not empty; expected a folder that is, or none. Nothing there "
            "was touched; give another run.dir."
        )
    return folder
