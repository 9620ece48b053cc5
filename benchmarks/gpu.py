"""Check and time every GPU kernel, in one run of under nine minutes.

    python benchmarks/gpu.py [RESULTS.json] [--seconds 500] [--only SECTION …] [--rehearsal]

Sections run one after the other: the ceilings of the device; every kernel against the torch backend
in float64, eight checks at a time, which fills Triton's and the compiler's caches as well; then
what is timed, alone. Jobs are processes of their own and cases fail alone, so that one kernel that
crashes or hangs does not take the rest with it. Results are written after every section; sections
for which no time is left are named.

A rehearsal runs every line on a CPU, on tiny graphs with the kernels interpreted, and says nothing
about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_message_checks
import torch
from gpu_attention import time_attention
from gpu_bench import Bench
from gpu_fields import compile_ahead, time_exact, time_likelihood, time_velocity
from gpu_layers import time_layers
from gpu_processes import run_jobs
from gpu_report import ceilings_of, compare, lines
from gpu_roofline import measure_ceilings
from gpu_sampling import time_sampling
from gpu_scale import FULL, REHEARSAL, Scale
from harness import RESULTS

from eqflow import storage

# A section is not begun in less; starting a process alone takes some of them.
FEWEST_SECONDS = 15.0


@dataclass(frozen=True)
class Section:
    """Jobs that belong together.

    Attributes:
        name: As in the results.
        seconds: Most it may take where the whole may take `DEFAULT_SECONDS`.
        jobs: What each does.
        workers: How many run at the same time.
    """

    name: str
    seconds: float
    jobs: dict[str, Callable[[Bench], None]]
    workers: int = 1


DEFAULT_SECONDS = 500.0


def sections(scale: Scale) -> list[Section]:
    """All of them, in order."""
    checks: dict[str, Callable[[Bench], None]] = {"the compiler, ahead": compile_ahead}
    checks |= gpu_message_checks.jobs(scale) | gpu_checks.jobs(scale)
    return [
        Section("ceilings", 60, {"ceilings": measure_ceilings}),
        Section("checks", 220, checks, scale.workers),
        Section("velocity", 120, {"velocity": time_velocity}),
        Section("likelihood", 80, {"likelihood": time_likelihood}),
        Section("sampling", 80, {"sampling": time_sampling}),
        Section("attention", 90, {"attention": time_attention}),
        Section("exact divergence", 60, {"exact divergence": time_exact}),
        Section("layers", 60, {"layers": time_layers}),
    ]


def main() -> None:
    """Run all sections, or, as a child, one job."""
    options = _options()
    scale = REHEARSAL if options.rehearsal else FULL
    if options.job is not None:
        jobs = {name: run for part in sections(scale) for name, run in part.jobs.items()}
        jobs[options.job](Bench(scale, options.journal, options.until))
        return
    conduct(scale, options.results, options.seconds, options.only)


def conduct(scale: Scale, path: Path, seconds: float, only: list[str] | None = None) -> None:
    """Run the sections within `seconds` and write `path` after each.

    Args:
        scale: Sizes.
        path: Of the results.
        seconds: For all sections together, in wall time.
        only: Names of those to run; all where None.
    """
    end = time.time() + seconds
    command = [sys.executable, str(Path(__file__).resolve())]
    command += ["--rehearsal"] if scale.is_rehearsal else []
    found: dict[str, Any] = {"rehearsal": scale.is_rehearsal, "seconds": seconds}
    found |= {"sections": {}, "skipped": []}
    ceilings: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for section in sections(scale):
            if only and section.name not in only:
                continue
            begun = time.time()
            if end - begun < FEWEST_SECONDS:
                found["skipped"].append(section.name)
                continue
            limit = section.seconds * seconds / DEFAULT_SECONDS
            jobs = run_jobs(
                list(section.jobs),
                section.workers,
                min(begun + limit, end),
                command,
                _environment(scale),
                Path(scratch) / section.name,
            )
            ceilings |= ceilings_of(jobs)
            compare(jobs, ceilings)
            taken = round(time.time() - begun, 1)
            found["sections"][section.name] = {"seconds": taken, "jobs": jobs}
            _write(path, found)
            print("\n".join(lines(f"{section.name}, {taken} s", jobs)), flush=True)
    _write(path, found)
    if found["skipped"]:
        print(f"no time was left for: {', '.join(found['skipped'])}")
    print(f"written: {path}")


def _environment(scale: Scale) -> dict[str, str]:
    """Of a job; Triton reads how it is to run when a kernel is decorated."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # checks ask torch to be deterministic
    return environment | ({"TRITON_INTERPRET": "1"} if scale.is_rehearsal else {})


def _write(path: Path, found: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and time every GPU kernel.")
    parser.add_argument("results", type=Path, nargs="?", help="where to write")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="for all sections")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in sections(FULL)])
    parser.add_argument("--rehearsal", action="store_true", help="tiny, on a CPU, interpreted")
    for name, kind in (("--job", str), ("--journal", Path), ("--until", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.results is None:
        folder = Path(tempfile.gettempdir()) if options.rehearsal else RESULTS
        options.results = folder / ("gpu_rehearsal.json" if options.rehearsal else "gpu.json")
    if options.rehearsal and RESULTS in options.results.resolve().parents:
        parser.error(f"found {options.results}, expected a rehearsal to write outside {RESULTS}.")
    if find_spec("triton") is None:
        parser.error("found no Triton, expected it. pip install 'eqflow[triton]'.")
    if not options.rehearsal and not torch.cuda.is_available():
        parser.error("found no GPU, expected one. Pass --rehearsal to run every line without.")
    return options


if __name__ == "__main__":
    main()
