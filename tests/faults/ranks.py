"""A distributed run on this machine: its processes started one by one, as torchrun would."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from typing import Any

from processes import environment, start


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# Runs `eqflow` with an objective that fails at one step in one process.
FAILING = """
import os, sys
from eqflow.errors import SolverFailed
from eqflow.train.loop import Trainer

whole = Trainer._gradient_of

def failing(self, some, step, total):
    if os.environ["RANK"] == "1" and step == 3:
        raise SolverFailed("stiff, in one process")
    return whole(self, some, step, total)

Trainer._gradient_of = failing
from eqflow.cli.main import main
sys.exit(main())
"""


def start_all(words: Sequence[str], count: int, **options: Any) -> list[subprocess.Popen[str]]:
    """`eqflow words…` in `count` processes that share the run."""
    port = str(free_port())
    return [
        start(
            words,
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            **options,
        )
        for rank in range(count)
    ]
