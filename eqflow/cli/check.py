"""`eqflow check`: symmetry and consistency laws of a trained run, one line each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict

from eqflow import storage
from eqflow.cli.schemas import CheckConfig
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import load_classifier, load_run, required_output
from eqflow.errors import ExitCode, UsageError
from eqflow.evaluate.laws import Law, flow_laws
from eqflow.evaluate.masked_laws import masked_laws
from eqflow.evaluate.molecular_laws import molecular_laws
from eqflow.evaluate.node_laws import node_laws
from eqflow.flows import MaskedMolecularFlow, MolecularFlow
from eqflow.train.build import TrainedFlow
from eqflow.train.weights import classifies_nodes


def run(config: CheckConfig) -> ExitCode:
    """Measure the laws, print a line each; exit 4 if one fails."""
    if config.structures < 2:
        raise UsageError(
            f"structures: found {config.structures}, expected at least 2: one alone cannot show "
            "that it is independent of its batch."
        )
    out = None if config.out is None else required_output(config.out, [".json"], "check.json")
    of_nodes = config.run is not None and classifies_nodes(config.run)
    if of_nodes:
        classifier, _ = load_classifier(config.run, threads=config.threads)
        nodes = 2 * config.structures
        measured, what = (
            node_laws(classifier, nodes, config.seed),
            f"random graphs of {nodes} nodes",
        )
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
    if out is not None:
        rows = [{**asdict(law), "holds": law.holds, "error": _finite(law.error)} for law in laws]
        storage.write_text(out, json.dumps(rows, indent=2))
        terminal.line(f"done: {out}")
    return ExitCode.NUMERICAL if broken else ExitCode.DONE


def _laws(flow: TrainedFlow, config: CheckConfig) -> Iterator[Law]:
    """Those of the kind of flow."""
    if isinstance(flow, MaskedMolecularFlow):
        return masked_laws(flow, config.structures, config.seed)
    if isinstance(flow, MolecularFlow):
        return molecular_laws(flow, config.structures, config.seed)
    return flow_laws(flow, config.structures, config.seed)


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None
