"""The jobs of `gpu.py` in processes of their own, so that none can bring down another.

An illegal access leaves a CUDA context unusable, and a kernel may never end. A job that dies is
started again for the cases it has not begun; one past its deadline is killed.
"""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_bench import read_journal

_POLL_SECONDS = 0.05
# A job begins no case past its deadline; this much later it is taken not to end by itself.
GRACE_SECONDS = 10.0
_LOG_TAIL = 1500


@dataclass
class Job:
    """One process at a time for the cases of one job.

    Attributes:
        name: Of the job.
        folder: Where its journal and its output go.
        process: The process that runs, or ran last.
        begun: How many cases had been begun when it was started.
    """

    name: str
    folder: Path
    started: float = field(default_factory=time.time)
    process: subprocess.Popen[bytes] | None = None
    begun: int = 0

    @property
    def journal(self) -> Path:
        """File of its cases."""
        return self.folder / "journal"

    @property
    def log(self) -> Path:
        """File of what it printed."""
        return self.folder / "log"

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run the cases that were not begun yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begun = len(read_journal(self.journal))
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--job", self.name, "--journal", str(self.journal)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
            )

    def outcome(self, ended: str) -> dict[str, Any]:
        """Results of the cases, and how the job ended."""
        cases = {
            name: {"error": f"the process ended here: {ended}"} if result is None else result
            for name, result in read_journal(self.journal).items()
        }
        found = {"seconds": round(time.time() - self.started, 1), "ended": ended, "cases": cases}
        if ended != "done":
            found["log"] = self.log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
        return found


def run_jobs(
    names: Sequence[str],
    workers: int,
    deadline: float,
    command: Sequence[str],
    environment: Mapping[str, str],
    scratch: Path,
) -> dict[str, dict[str, Any]]:
    """The outcome of each job.

    Args:
        names: The jobs, in the order they are started.
        workers: How many run at the same time.
        deadline: When no more cases are begun, in seconds since the epoch.
        command: What runs a job, to which its name and journal are added.
        environment: Of the processes.
        scratch: A folder for journals and output.
    """
    command = [*command, "--until", str(deadline)]
    waiting, running, done = deque(names), list[Job](), dict[str, dict[str, Any]]()
    try:
        while running or (waiting and time.time() < deadline):
            while waiting and len(running) < workers:
                job = Job(waiting.popleft(), scratch / f"job {len(done) + len(running)}")
                job.start(command, environment)
                running.append(job)
            time.sleep(_POLL_SECONDS)
            for job in list(running):
                ended = _how_it_ended(job, deadline)
                if ended is None:
                    continue
                if ended == "done" or not _has_more(job, deadline):
                    running.remove(job)
                    done[job.name] = job.outcome(ended)
                else:
                    job.start(command, environment)
    finally:
        for job in running:
            _kill(job)
    late = {"ended": "not started: no time was left", "cases": {}}
    return done | dict.fromkeys(waiting, late)


def _how_it_ended(job: Job, deadline: float) -> str | None:
    """None while it runs."""
    code = job.process.poll() if job.process else None
    if code is not None:
        return "done" if code == 0 else f"exit code {code}"
    if time.time() < deadline + GRACE_SECONDS:
        return None
    _kill(job)
    return "killed: no time was left"


def _has_more(job: Job, deadline: float) -> bool:
    """Whether starting it again may bring it further than it came."""
    return time.time() < deadline and len(read_journal(job.journal)) > job.begun


def _kill(job: Job) -> None:
    if job.process is not None:
        job.process.kill()
        job.process.wait()
