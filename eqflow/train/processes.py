"""The processes that share a training run: this one alone, or those that torchrun started.

Each process takes its share of every batch; gradients and figures are sums over all shares, so that
all processes take the same step. The first writes what is written. What it saves holds nothing of
the others: any number of processes, one among them, goes on from it. A process that waits for
another longer than it may, or sees it gone, ends as well.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eqflow.errors import ProcessLost, UsageError

BACKENDS = "cpu:gloo,cuda:nccl"


class Processes:
    """One process that has the run to itself; `Group` is one of several.

    Attributes:
        rank: Place among the processes, from 0.
        count: How many there are.
    """

    rank = 0
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: Any) -> Any:
        """What of a sequence or tensor falls to this process: every `count`-th of it."""
        return items[self.rank :: self.count]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes."""
        return list(values)

    def of_first(self, value: float) -> float:
        """The first process's value."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return flag

    def gradients(
        self, own: Sequence[Tensor | None], like: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The sum over all processes of the gradient of each weight.

        Args:
            own: Those of this process; None for a weight that its loss does not depend on.
            like: The weights.
        """
        return own

    def state_of_first(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The first process's state."""
        return state

    def wait(self) -> None:
        """Until all are here."""


class Group(Processes):
    """One of several processes, each with this object; they call the same methods in one order.

    Raises:
        ProcessLost: By any method, if another process is gone or does not answer in time.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes."""
        total = torch.tensor(values, dtype=torch.float64)
        _together(lambda: dist.all_reduce(total))
        return total.tolist()

    def of_first(self, value: float) -> float:
        """The first process's value."""
        return self.sums([value if self.is_first else 0.0])[0]

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return self.sums([float(flag)])[0] > 0

    def gradients(
        self, own: Sequence[Tensor | None], like: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The sum over all processes of the gradient of each weight, in one exchange."""
        parts = [
            torch.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(own, like, strict=True)
        ]
        flat = torch.cat([part.reshape(-1) for part in parts])
        _together(lambda: dist.all_reduce(flat))
        sizes = [part.numel() for part in parts]
        return [part.view_as(weight) for part, weight in zip(flat.split(sizes), like, strict=True)]

    def state_of_first(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The first process's state, as plain values and tensors, on the CPU."""
        buffer = io.BytesIO()
        if self.is_first:
            torch.save(dict(state), buffer)
        content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        size = int(self.of_first(float(content.numel())))
        if not self.is_first:
            content = torch.empty(size, dtype=torch.uint8)
        _together(lambda: dist.broadcast(content, src=0))
        found = io.BytesIO(content.numpy().tobytes())
        return torch.load(found, map_location="cpu", weights_only=True)

    def wait(self) -> None:
        """Until all are here."""
        self.sums([0.0])


def speaks_for_the_run() -> bool:
    """Whether lines for people are for this process to print: it is alone, or the first."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def alone() -> Iterator[Processes]:
    """This process, which must be the only one: for tasks that need all their data at every step.

    Raises:
        UsageError: If torchrun started several.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that several processes share this run, "
            "but every step of this task needs all of its data. Start one process, without "
            "torchrun."
        )
    yield Processes()


@contextmanager
def joined(wait_minutes: float) -> Iterator[Processes]:
    """The processes that `torchrun` started this one among; it alone where it did not.

    Args:
        wait_minutes: How long a process waits for another.

    Raises:
        UsageError: If the environment says of no group what is needed to join it.
        ProcessLost: If the others are not there in time.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Processes()
        return
    wanted = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in wanted if name not in os.environ]:
        raise UsageError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that several processes share this run, "
            f"but {', '.join(missing)} is not set. Start them by torchrun, or unset WORLD_SIZE."
        )
    limit = timedelta(minutes=wait_minutes)
    backend = BACKENDS if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    _together(lambda: dist.init_process_group(backend, timeout=limit))
    # Where another is lost, taking leave of it would wait for it once more.
    yield Group()
    dist.destroy_process_group()


def local_device(device: torch.device, processes: Processes) -> torch.device:
    """The GPU of this process where several share a machine's, each its own.

    Raises:
        UsageError: If there are not enough, or all are told to take the same.
    """
    if device.type != "cuda" or processes.count == 1:
        return device
    place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None or place >= there:
        found = f"{device} for each" if device.index is not None else f"{there} GPUs"
        raise UsageError(
            f"train.device: found {found} of {processes.count} processes, expected a GPU for each "
            "process of a machine. Say train.device=cuda and start as many as there are GPUs."
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def _together(exchange: Callable[[], object]) -> None:
    """What all processes do together.

    Raises:
        ProcessLost: If one of them does not take part.
    """
    try:
        exchange()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ProcessLost(
            f"another process of this run is gone or does not answer ({reason}). The same command "
            "goes on from the last checkpoint, with any number of processes."
        ) from error
