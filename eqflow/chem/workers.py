"""A function in a process of its own, with a deadline for each call.

Some calls of RDKit never end, and some end the process. The process that makes them ends itself at
the deadline, by a watchdog that needs no cooperation of the function; the caller reads that as the
end of its answers, and starts another. Jobs and answers pass as lines of JSON.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from eqflow.errors import EqflowError, UsageError

READY = "ready"


class Outcome(NamedTuple):
    """What came of a call.

    Attributes:
        value: What the function returned; None where it did not.
        problem: Why there is no value; empty where there is one.
        refused: Whether the function itself said no, by an error.
    """

    value: Any = None
    problem: str = ""
    refused: bool = False


class Worker:
    """Calls a function in another process, each call with a deadline.

    Args:
        function: One that can be imported by its name, of one argument; argument and result are
            what JSON has: numbers, texts, lists, dictionaries.
        seconds: How long a call may take.

    Raises:
        UsageError: If the function cannot be imported, or `seconds` is not positive.

    >>> with Worker(json.dumps, seconds=60) as worker:
    ...     worker({"a": 1}).value
    '{"a": 1}'
    """

    def __init__(self, function: Callable[[Any], Any], seconds: float) -> None:
        module, name = function.__module__, function.__qualname__
        if module == "__main__" or not name.isidentifier():
            raise UsageError(
                f"worker: found the function {module}.{name}, which another process cannot import; "
                "expected one at the top of a module."
            )
        if not seconds > 0:
            raise UsageError(f"worker: found a deadline of {seconds} s, expected above 0.")
        self.seconds = seconds
        self._program = (
            # Who stops the caller by a signal to its whole group leaves the worker to the caller.
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            f"from {module} import {name}; from {__name__} import serve; serve({name}, {seconds})"
        )
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(self, argument: Any) -> Outcome:
        """The function's value, or why there is none.

        Raises:
            EqflowError: If the process cannot be started.
        """
        process = self._process or self._started()
        began = time.monotonic()
        answer = _asked(process, json.dumps(argument))
        if answer:
            return Outcome(**json.loads(answer))
        self.close()
        if time.monotonic() - began >= self.seconds:
            return Outcome(problem=f"did not end within {self.seconds:g} s")
        return Outcome(problem="ended its process")

    def close(self) -> None:
        """End the process; the next call starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                _closed(stream)
            process.wait()

    def _started(self) -> subprocess.Popen[str]:
        # What is imported here is imported there, and no more: not, as with `-c` alone, whatever
        # lies in the current folder before anything else.
        where = os.pathsep.join(path or os.getcwd() for path in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", self._program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": where},
        )
        self._process = process
        if _line(process) != READY:
            self.close()
            raise EqflowError(
                "worker: the process did not start. See why with: "
                f"PYTHONPATH={where!r} {sys.executable} -P -c {self._program!r}"
            )
        return process


def serve(function: Callable[[Any], Any], seconds: float) -> None:
    """Answer each line of JSON on standard input by one on standard output, until it ends.

    A call past its deadline ends the process.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what the function prints is no answer
    answers.write(READY + "\n")
    answers.flush()
    for line in sys.stdin:
        faulthandler.dump_traceback_later(seconds, exit=True)
        outcome = _outcome(function, json.loads(line))
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(outcome._asdict()) + "\n")
        answers.flush()


def _outcome(function: Callable[[Any], Any], argument: Any) -> Outcome:
    try:
        return Outcome(function(argument))
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        return Outcome(problem=f"{type(error).__name__}: {text}", refused=True)


def _asked(process: subprocess.Popen[str], job: str) -> str:
    if process.stdin is not None:
        try:
            process.stdin.write(job + "\n")
            process.stdin.flush()
        except OSError:
            return ""
    return _line(process)


def _line(process: subprocess.Popen[str]) -> str:
    """The next whole line; empty where the process ended before it was written."""
    line = process.stdout.readline() if process.stdout is not None else ""
    return line.rstrip("\n") if line.endswith("\n") else ""


def _closed(stream: Any) -> None:
    try:
        stream.close()
    except OSError:
        # What was still to be written has no reader any more.
        return
