"""A distributed run on this machine: its processes started one by one, as torchrun would."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from processes import environment, start

from eqflow.flows import AbstractObjective
from eqflow.flows.continuous import ContinuousFlow
from eqflow.flows.objectives import Batch, Loss


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

# Runs `eqflow` where one training structure, whichever process has it, is too large for memory.
TOO_LARGE = """
import sys
from eqflow.train.loop import Trainer

whole = Trainer._gradient_of

def without_memory(self, some, step, total):
    if 7 in some:
        raise MemoryError
    return whole(self, some, step, total)

Trainer._gradient_of = without_memory
from eqflow.cli.main import main
sys.exit(main())
"""

# Takes five steps of an objective that draws nothing, and prints the weights.
STEPS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tiny
from faults.ranks import Fixed
from eqflow.train.processes import joined

with joined(1.0) as processes:
    trainer = tiny.trainer(batch_size=5)
    trainer.processes, trainer.objective = processes, Fixed()
    for _ in range(5):
        figures = trainer.step()
    print(json.dumps([figures["loss"], *(w.tolist() for w in trainer.flow.state_dict().values())]))
"""


class Fixed(AbstractObjective):
    """The mean square of the velocity at one time: the same however a batch is shared."""

    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        t = torch.full((batch.clouds.count,), 0.5)
        v = flow.velocity(t, batch.x, batch.clouds, batch.context)
        loss = batch.clouds.sum(v.square().sum(-1)).mean()
        return Loss(loss, {"loss": float(loss.detach())})


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
