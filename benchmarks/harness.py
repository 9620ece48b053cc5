"""What the benchmarks share: interleaved timing in CPU seconds, and one way to write results."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from eqflow import storage

TURN = 0.05
RESULTS = Path(__file__).parent / "results"


def race(
    cases: Mapping[str, Callable[[], object]], rounds: int = 7, *, steady: bool = False
) -> dict[str, float]:
    """Median CPU seconds of each case; they take turns, so that drift hits all alike.

    Where `steady`, each turn runs a case once untimed before, and repeats it for `TURN` seconds if
    it is shorter, as one evaluation follows another in a solve: the case before it has just given
    its memory back to the system and emptied the caches.
    """
    for case in cases.values():
        case()
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            gc.collect()
            if steady:
                case()
            repeats, started = 0, time.process_time()
            while not repeats or (steady and time.process_time() - started < TURN):
                case()
                repeats += 1
            taken[name].append((time.process_time() - started) / repeats)
    return {name: statistics.median(values) for name, values in taken.items()}


def earlier_results(name: str, setting: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `write_results` wrote last, without the machine; nothing if of another setting."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    found.pop("machine", None)
    is_same = all(found.get(key) == value for key, value in (setting or {}).items())
    return found if is_same else {}


def processor() -> str:
    """The model of the processor, where the system tells it."""
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in told.splitlines() if "model name" in line]
    return models[0] if models else platform.machine()


def write_results(name: str, results: Mapping[str, Any]) -> None:
    """Write `results/<name>.json` with what is needed to understand it, and print where."""
    path = RESULTS / f"{name}.json"
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }
    text = json.dumps({"machine": machine, **results}, indent=2, ensure_ascii=False)
    storage.write_text(path, text + "\n")
    print(f"written: benchmarks/results/{path.name}")
