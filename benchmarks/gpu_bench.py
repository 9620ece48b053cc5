"""Inside one job of `gpu.py`: cases that fail alone, their times and their memory.

Each case writes a line to a journal before it starts and one with its result or error after it. The
journal outlives the process: a case that brings the device down is known by its first line.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_scale import Scale
from torch import Tensor

Result = dict[str, Any]

# Exit code of a job whose device no longer answers; those of Python and of signals are others.
DEVICE_LOST = 70

WARM_UP = 3
FEWEST, MOST = 5, 50
SECONDS_A_CASE = 0.5
# More than any cache of a GPU holds.
CACHE_BYTES = 2**28
_LONGEST_MESSAGE = 1000


class Bench:
    """Where the cases of one job run.

    Args:
        scale: Sizes.
        journal: File of this job; cases that have a line in it are not begun again.
        deadline: When no more cases are begun, in seconds since the epoch.

    Attributes:
        scale, device: What and where.
    """

    def __init__(self, scale: Scale, journal: Path, deadline: float) -> None:
        self.scale = scale
        self.device = torch.device(scale.device)
        self._journal = journal
        self._deadline = deadline
        self._begun = set(read_journal(journal))
        self._flushed: Tensor | None = None

    def case(self, name: str, run: Callable[[], Result]) -> None:
        """Run one case, whatever becomes of it."""
        if name in self._begun:
            return
        if time.time() > self._deadline:
            self._write(name, {"skipped": "no time was left"})
            return
        self._write(name, None)
        started = time.perf_counter()
        try:
            result = run()
            self.synchronize()
        except Exception as error:
            # Any failure is a result: the others are to run.
            result = {
                "error": f"{type(error).__name__}: {error}"[-_LONGEST_MESSAGE:],
                "where": [str(frame) for frame in traceback.extract_tb(error.__traceback__)[-3:]],
            }
        self._write(name, result | {"took": round(time.perf_counter() - started, 2)})
        self._clean_up()

    def time(self, run: Callable[[], object]) -> Result:
        """Milliseconds of a call: median, and what four fifths of the repeats lie between.

        On a GPU by events around it on its stream, the caches flushed before each. In a rehearsal
        by the clock, and once.
        """
        if not self._on_gpu:
            started = time.perf_counter()
            run()
            return {"ms": 1e3 * (time.perf_counter() - started), "repeats": 1}
        for _ in range(WARM_UP):
            last = self._milliseconds(run)
        repeats = int(min(max(1e3 * SECONDS_A_CASE / last, FEWEST), MOST))
        taken = sorted(self._milliseconds(run) for _ in range(repeats))
        return {
            "ms": statistics.median(taken),
            "ms_low": taken[repeats // 10],
            "ms_high": taken[-1 - repeats // 10],
            "repeats": repeats,
        }

    def memory(self, loss: Callable[[], Tensor]) -> Result:
        """MiB that a pass keeps for its derivative, and at the peak of both; empty on a CPU."""
        self._clean_up()
        before = self._allocated()
        value = loss()
        saved = self._allocated()
        value.backward()
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else 0
        found = {"saved_mib": (saved - before) / 2**20, "peak_mib": (peak - before) / 2**20}
        return found if self._on_gpu else {}

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self._on_gpu else 0

    def _milliseconds(self, run: Callable[[], object]) -> float:
        if self._flushed is None:
            self._flushed = torch.empty(CACHE_BYTES, dtype=torch.int8, device=self.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def _clean_up(self) -> None:
        """Give memory back; end the process where the device has failed for good."""
        gc.collect()
        if not self._on_gpu:
            return
        try:
            self.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        except RuntimeError as error:
            print(f"the device is lost: {error}", file=sys.stderr)
            sys.exit(DEVICE_LOST)

    def _write(self, case: str, result: Result | None) -> None:
        with open(self._journal, "a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case, "result": result}, ensure_ascii=False) + "\n")


def read_journal(journal: Path) -> dict[str, Result | None]:
    """The result of each case that was begun; None where its process ended before it."""
    if not journal.exists():
        return {}
    lines = journal.read_text(encoding="utf-8").splitlines()
    return {line["case"]: line["result"] for line in map(json.loads, lines)}
