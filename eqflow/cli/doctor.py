"""`eqflow doctor`: what this installation can do, a line each, and what to do about the rest.

Versions against the bounds of the package, devices, kernels against the torch backend, the laws of
a small flow, and the folders that are written. It ends with 0 where nothing failed; else with the
code of what matters most: 4 where something is computed wrongly, 2 where the installation is not
as it must be, 6 where a folder cannot be written or is full.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from eqflow import storage
from eqflow.cli.checkup import computing, installation, places
from eqflow.cli.checkup.finding import FAIL, OK, WARN, Finding, Look, carefully
from eqflow.cli.schemas import DoctorConfig
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import required_output
from eqflow.errors import ExitCode, UsageError

# What matters most comes first.
CODES = (ExitCode.NUMERICAL, ExitCode.USAGE, ExitCode.STORAGE)


def run(config: DoctorConfig) -> ExitCode:
    """Look at everything, say what was found, write JSON; the exit code says the worst."""
    out = None if config.out is None else required_output(config.out, [".json"], "doctor.json")
    if config.threads is not None:
        if config.threads < 1:
            raise UsageError(f"threads: found {config.threads}, expected at least 1.")
        torch.set_num_threads(config.threads)
    terminal = Terminal()
    found: list[Finding] = []
    for finding in findings(config.dir):
        terminal.line(str(finding))
        found.append(finding)
    counts = Counter(finding.grade for finding in found)
    terminal.line(f"{counts[OK]} ok, {counts[WARN]} warnings, {counts[FAIL]} failures")
    code = exit_code(found)
    if out is not None:
        rows = [{**asdict(finding), "code": int(finding.code)} for finding in found]
        report = {"exit_code": int(code), "findings": rows}
        storage.write_text(out, json.dumps(report, indent=2, ensure_ascii=False))
        terminal.line(f"done: {Path(out)}")
    return code


def findings(runs: str) -> Iterator[Finding]:
    """Everything that can be found, each as soon as it is known.

    Args:
        runs: Folder that run folders go into.
    """
    looks: list[tuple[Look, str, ExitCode]] = [
        (installation.look_at_python, "Python", installation.CODE),
        (installation.look_at_packages, "packages", installation.CODE),
        (installation.look_at_devices, "devices", installation.CODE),
        (computing.look_at_torch, "torch backend", computing.CODE),
        (computing.look_at_triton, "Triton kernels", computing.CODE),
        (computing.look_at_flow, "a small flow", computing.CODE),
        (computing.look_at_molecules, "molecules", installation.CODE),
        (computing.look_at_pictures, "pictures", installation.CODE),
        (partial(places.look_at_places, runs), "folders", places.CODE),
    ]
    for look, about, code in looks:
        yield from carefully(look, about, code)


def exit_code(found: list[Finding]) -> ExitCode:
    """0 where nothing failed, else the code of the kind that matters most."""
    failed = {finding.code for finding in found if finding.grade == FAIL}
    return next((code for code in CODES if code in failed), ExitCode.DONE)
