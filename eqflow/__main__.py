"""`python -m eqflow`, and what the console script calls: signals are heeded from the start.

Importing PyTorch takes seconds. Who stops a command within them is told so in a line, and not by a
traceback through the imports.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Entry point of the console script; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        os.getcwd()
    except OSError:  # libraries of PyTorch cannot be loaded without one
        os.write(2, b"eqflow: the current folder is gone; go to one that exists, and try again\n")
        return 6

    from eqflow.cli.main import main as run

    return run()


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun."""
    os.write(2, b"eqflow: stopped before it had begun\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
