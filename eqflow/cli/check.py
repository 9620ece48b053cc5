"""`eqflow check`: symmetry and consistency laws of a trained run, or of a function of one's own.

A run is measured on structures drawn from it, a line a law, and its velocity on the clouds of
`eqflow.testing`, in a table that names the worst of them. A function has the table alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eqflow import storage
from eqflow.cli.schemas import CheckConfig
from eqflow.cli.target import importable_from_here, target_of
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import load_classifier, load_run, required_output
from eqflow.errors import ExitCode, UsageError
from eqflow.evaluate.laws import Law, flow_laws
from eqflow.evaluate.masked_laws import masked_laws
from eqflow.evaluate.molecular_laws import molecular_laws
from eqflow.evaluate.node_laws import node_laws
from eqflow.evaluate.symmetry import CloudVelocity
from eqflow.flows import MaskedMolecularFlow, MolecularFlow
from eqflow.testing import SymmetryReport, symmetry_report
from eqflow.testing.report import Line
from eqflow.train.build import TrainedFlow
from eqflow.train.weights import classifies_nodes

DTYPES = {"float64": torch.float64, "float32": torch.float32}
# A velocity is a difference of positions, small after little training: in float32 its rounding says
# nothing about the symmetry of the field.
OF_RUN, OF_TARGET = "float64", "float64,float32"


def run(config: CheckConfig) -> ExitCode:
    """Measure, print as it is known, write JSON; exit 4 if something fails."""
    if config.structures < 2:
        raise UsageError(
            f"structures: found {config.structures}, expected at least 2: one alone cannot show "
            "that it is independent of its batch."
        )
    out = None if config.out is None else required_output(config.out, [".json"], "check.json")
    if config.target is not None:
        return _check_target(config, out)
    for key in ("output", "dimension"):
        if getattr(config, key) is not None:
            raise UsageError(f"{key}: only for target=; a run knows its own.")
    of_nodes = config.run is not None and classifies_nodes(config.run)
    flow: TrainedFlow | None = None
    if of_nodes:
        if config.group is not None:
            raise UsageError("group: only for structures; this run classifies nodes.")
        classifier, _ = load_classifier(config.run, threads=config.threads)
        nodes = 2 * config.structures
        measured = node_laws(classifier, nodes, config.seed)
        what = f"random graphs of {nodes} nodes"
    else:
        flow = load_run(config.run, threads=config.threads)
        what = f"{config.structures} of its own structures"
        measured = _laws(flow, config)
    if out is not None:
        storage.require_writable(out.parent)
    terminal = Terminal()
    where = "" if out is None else f", to {out}"
    terminal.line(f"check {config.run} on {what}{where}")
    laws: list[Law] = []
    for law in measured:
        terminal.line(str(law))
        laws.append(law)
    broken = [law for law in laws if not law.holds]
    terminal.line(
        f"{len(broken)} of {len(laws)} laws fail" if broken else f"all {len(laws)} laws hold"
    )
    rows = [_of_law(law) for law in laws]
    if flow is not None:
        report = _report(CloudVelocity(flow).eval(), config, "vector", flow.dimension)
        terminal.line(f"\n{report}")
        rows += [_of_line(line) for line in report.lines]
    if out is not None:
        storage.write_text(out, json.dumps(rows, indent=2, ensure_ascii=False))
        terminal.line(f"done: {out}")
    return ExitCode.DONE if all(row["holds"] for row in rows) else ExitCode.NUMERICAL


def _check_target(config: CheckConfig, out: Path | None) -> ExitCode:
    if config.run is not None:
        raise UsageError("target: either run= or target=, not both.")
    if config.threads is not None:
        torch.set_num_threads(_positive("threads", config.threads))
    dimension = 3 if config.dimension is None else _positive("dimension", config.dimension)
    with importable_from_here():
        fn = target_of(str(config.target))
        if out is not None:
            storage.require_writable(out.parent)
        output = "vector" if config.output is None else config.output
        report = _report(fn, config, output, dimension)
    terminal = Terminal()
    terminal.line(str(report))
    if out is not None:
        report.write(out)
        terminal.line(f"done: {out}")
    return ExitCode.DONE if report.holds else ExitCode.NUMERICAL


def _report(fn: Any, config: CheckConfig, output: str, dimension: int) -> SymmetryReport:
    """The table: of a function on all clouds, of a run on those of its own elements."""
    if config.tolerance is not None and not config.tolerance > 0:
        raise UsageError(f"tolerance: found {config.tolerance}, expected more than 0.")
    usual = OF_RUN if config.target is None else OF_TARGET
    dtypes = usual if config.dtypes is None else config.dtypes
    return symmetry_report(
        fn,
        None if config.group is None else _words(config.group),
        output,
        dimension=dimension,
        dtypes=[_dtype(word) for word in _words(dtypes)],
        tolerance=config.tolerance,
        seed=config.seed,
        name=f"the velocity of {config.run}" if config.target is None else config.target,
    )


def _laws(flow: TrainedFlow, config: CheckConfig) -> Iterator[Law]:
    """Those of the kind of flow."""
    if isinstance(flow, MaskedMolecularFlow):
        return masked_laws(flow, config.structures, config.seed)
    if isinstance(flow, MolecularFlow):
        return molecular_laws(flow, config.structures, config.seed)
    return flow_laws(flow, config.structures, config.seed)


def _of_law(law: Law) -> dict[str, Any]:
    """A law as a row of JSON."""
    return {**asdict(law), "holds": law.holds, "error": _finite(law.error)}


def _of_line(line: Line) -> dict[str, Any]:
    """A line of the table as a row of JSON, with the fields of a law and a verdict."""
    row = line.worst
    return {
        "name": f"velocity: {line.name}",
        "error": _finite(row.error),
        "tolerance": row.tolerance,
        "dtype": row.dtype,
        "cloud": row.cloud,
        "failing": list(line.failing),
        "note": line.verdict or row.note,
        "holds": not line.failing,
    }


def _words(text: str) -> Sequence[str]:
    """What commas divide: `E(3)×S(n),mirror`."""
    return [word.strip() for word in text.strip("[]").split(",") if word.strip()]


def _dtype(word: str) -> torch.dtype:
    if word not in DTYPES:
        raise UsageError(f"dtypes: found {word!r}, expected any of {', '.join(DTYPES)}.")
    return DTYPES[word]


def _positive(key: str, number: int) -> int:
    if number < 1:
        raise UsageError(f"{key}: found {number}, expected at least 1.")
    return number


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None
