"""`eqflow check`: symmetry and consistency laws of a trained run, one line each."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from eqflow import storage
from eqflow.cli.schemas import CheckConfig
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import load_run, required_output
from eqflow.errors import ExitCode, UsageError
from eqflow.evaluate.laws import Law, flow_laws
from eqflow.evaluate.masked_laws import masked_laws
from eqflow.evaluate.molecular_laws import molecular_laws
from eqflow.flows import MaskedMolecularFlow, MolecularFlow


def run(config: CheckConfig) -> ExitCode:
    """Measure the laws, print a line each; exit 4 if one fails."""
    if config.structures < 2:
        raise UsageError(
            f"structures: found {config.structures}, expected at least 2: one alone cannot show "
            "that it is independent of its batch."
        )
    out = None if config.out is None else required_output(config.out, [".json"], "check.json")
    flow = load_run(config.run, threads=config.threads)
    if out is not None:
        storage.require_writable(out.parent)
    terminal = Terminal()
    where = "" if out is None else f", to {out}"
    terminal.line(f"check {config.run} on {config.structures} of its own structures{where}")
    laws: list[Law] = []
    if isinstance(flow, MaskedMolecularFlow):
        measured = masked_laws(flow, config.structures, config.seed)
    elif isinstance(flow, MolecularFlow):
        measured = molecular_laws(flow, config.structures, config.seed)
    else:
        measured = flow_laws(flow, config.structures, config.seed)
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


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None
