"""Breaks files and reads them, within bounds of memory and time; prints what came of it as JSON.

    python fuzz_worker.py folder seed name=examples …

A process of its own: what a broken file does to it ends no test, and it may use so much memory and
no more. Each file is in the folder before it is read, so that the one that ended the process is
still there.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SECONDS = 60  # how long one file may take
MEMORY = 3 << 30  # address space beyond what the libraries take
GROWTH = 400 << 20  # memory that a file of a few kilobytes may take


class Hang(BaseException):
    """A file took too long."""


def main(place: str, seed: str, *asked: str) -> None:
    import torch
    from faults.fuzz_targets import REFUSED, TARGETS, Target
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from eqflow.errors import EqflowError

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.zeros(2).softmax(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _hang)

    def outcome(target: Target, folder: Path, payload: Any) -> str | None:
        """What breaks the law, if anything does; and by what name it is told from others."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(SECONDS)
        try:
            path = target.write(folder, payload)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                target.read(path)
        except (EqflowError, Exception, Hang) as error:
            return _name(error)
        finally:
            signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        return f"took {grown >> 20} MiB" if grown > GROWTH else None

    def fuzzed(name: str, count: int) -> dict[str, Any]:
        """How many examples a reader was given, and where the first of each failure is kept."""
        runs, refused, failures = 0, 0, dict[str, str]()
        target, short = TARGETS[name], name.replace(" ", "_")

        @seeded(int(seed))
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(target.broken)
        def fuzz(payload: Any) -> None:
            nonlocal runs, refused
            runs += 1
            REFUSED.clear()
            folder = Path(place) / short
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            wrong = outcome(target, folder, payload)
            refused += bool(REFUSED)
            if wrong is not None and wrong not in failures:
                failures[wrong] = str(Path(place) / "failures" / f"{short}-{len(failures)}")
                shutil.copytree(folder, failures[wrong])

        fuzz()
        return {"examples": runs, "refused": refused, "failures": failures}

    warnings.simplefilter("ignore")
    report = {name: fuzzed(name, int(count)) for name, count in pairs(asked)}
    sys.stdout.write(json.dumps(report))


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """`name=value` words as pairs."""
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def _hang(number: int, frame: Any) -> None:
    raise Hang(f"more than {SECONDS} s")


def _name(error: BaseException) -> str:
    """The error and where it was raised, nearest to eqflow."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/eqflow/" in frame.filename] or frames
    last = own[-1]
    where = f"{Path(last.filename).name}:{last.name}"
    text = str(error) if type(error).__name__ == "Unsound" else str(error)[:120]
    return f"{type(error).__name__} in {where}: {text}"


if __name__ == "__main__":
    main(*sys.argv[1:])
