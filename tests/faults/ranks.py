"""A distributed run on this machine: its processes started one by one, as torchrun would."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence

from processes import environment, start


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start_all(words: Sequence[str], count: int) -> list[subprocess.Popen[str]]:
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
        )
        for rank in range(count)
    ]
