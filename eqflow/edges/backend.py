"""Which implementation of an operation on edges runs: one dispatch for all of them.

Unless a block says otherwise the device decides: Triton kernels where the tensors are on a GPU and
Triton is installed, torch everywhere else. A backend says of each call whether it can do it, and on
a GPU whether its kernel passed a check there; where it cannot, torch does, with one warning that
says why, or an error where the block is `strict`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eqflow.errors import UsageError

Precision = Literal["ieee", "tf32x3", "tf32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

BACKENDS = ("torch", "triton")


@dataclass(frozen=True)
class Choice:
    """What a block asked for.

    Attributes:
        name: A backend, or None for the device's own.
        precision: Of the products of float32 matrices inside fused kernels: "ieee" as float32,
            "tf32x3" nearly so on tensor cores, "tf32" 10 and "bf16" 7 bits of mantissa. Sums are
            float32 always. The torch backend has torch's own setting.
        strict: Raise where the backend cannot do a call, rather than leave it to torch.
        compiled: Whether torch's message passes on a CPU go through a C++ compiler, where the
            plain formulas would not be faster or have to be seen: not on few edges, under autocast
            or inside a transform.
    """

    name: str | None = None
    precision: Precision = "tf32x3"
    strict: bool = False
    compiled: bool = False


_DEFAULT = Choice()
_choice: ContextVar[Choice] = ContextVar("edge_backend", default=_DEFAULT)
_record: ContextVar[Counter[tuple[str, str]] | None] = ContextVar("edge_record", default=None)
_warned: set[tuple[str, str]] = set()


def available_backends() -> tuple[str, ...]:
    """Names of the backends that this installation has."""
    return tuple(name for name in BACKENDS if name != "triton" or find_spec("triton") is not None)


def active_backend(like: Tensor | None = None) -> str:
    """Name of the backend that runs now, on tensors such as `like` (on the CPU where None)."""
    chosen = _choice.get().name
    if chosen is not None:
        return chosen
    on_gpu = like is not None and like.is_cuda
    return "triton" if on_gpu and "triton" in available_backends() else "torch"


def current_choice() -> Choice:
    """What the block around asked for, to be taken along to a backward pass."""
    return _choice.get()


@contextmanager
def as_chosen(choice: Choice) -> Iterator[None]:
    """Run the block as `choice` says.

    A backward pass runs wherever and whenever it is asked for, on a GPU in threads of its own that
    know nothing of the block its forward pass was in.
    """
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def active_precision() -> Precision:
    """Precision of matrix products inside fused kernels."""
    return _choice.get().precision


@contextmanager
def use_backend(
    name: str | None,
    *,
    precision: Precision = "tf32x3",
    strict: bool = False,
    compiled: bool = False,
) -> Iterator[None]:
    """Run the operations on edges inside the block on the named backend.

    Args:
        name: "torch", "triton", or None for the choice by device.
        precision, strict, compiled: See `Choice`.

    Raises:
        UsageError: If there is no such backend in this installation, no such precision, or a
            switch is neither True nor False; inside a strict block, if the backend cannot do a
            call.

    >>> with use_backend("torch"):
    ...     active_backend()
    'torch'
    """
    if name is not None and name not in available_backends():
        raise UsageError(
            f"use_backend: found {name!r}, expected one of "
            f"{', '.join(sorted(available_backends()))}."
            + (" Install triton for it." if name in BACKENDS else "")
        )
    if precision not in PRECISIONS:
        raise UsageError(
            f"use_backend: found precision {precision!r}, expected one of {', '.join(PRECISIONS)}."
        )
    for word, value in (("strict", strict), ("compiled", compiled)):
        if not isinstance(value, bool):
            raise UsageError(f"use_backend: found {word}={value!r}, expected True or False.")
    with as_chosen(Choice(name, precision, strict, compiled)):
        yield


@contextmanager
def record_backends() -> Iterator[Counter[tuple[str, str]]]:
    """Count which backend ran each operation inside the block.

    >>> import torch
    >>> from eqflow.edges import Edges, squared_distance
    >>> edges = Edges.complete(torch.tensor([0, 2]))
    >>> with record_backends() as ran:
    ...     _ = squared_distance(torch.eye(2), edges)
    >>> ran
    Counter({('squared_distance', 'torch'): 1})
    """
    counts: Counter[tuple[str, str]] = Counter()
    token = _record.set(counts)
    try:
        yield counts
    finally:
        _record.reset(token)


def run(operation: str, *arguments: Any) -> Any:
    """Call `operation` on the backend for its first argument, or on torch where it cannot."""
    if torch.compiler.is_compiling():
        return getattr(_load("torch"), operation)(*arguments)  # the compiler fuses what it can
    first = arguments[0]
    like = first if isinstance(first, Tensor) else first.x
    name = active_backend(like)
    if name != "torch":
        reason = _load(name).unsupported(operation, *arguments)
        if reason is None and like.is_cuda:
            reason = _load(name).unbelievable(operation, *arguments)
        if reason is not None:
            _leave_to_torch(operation, name, reason)
            name = "torch"
    if (counts := _record.get()) is not None:
        counts[operation, name] += 1
    return getattr(_load(name), operation)(*arguments)


def _leave_to_torch(operation: str, name: str, reason: str) -> None:
    if _choice.get().strict:
        raise UsageError(
            f"{operation}: the {name} backend cannot do this: {reason}. Leave out strict=True to "
            "let torch do it."
        )
    if (operation, reason) not in _warned:
        _warned.add((operation, reason))
        warnings.warn(
            f"{operation}: torch runs instead of {name}, which cannot: {reason}.",
            RuntimeWarning,
            stacklevel=4,
        )


@cache
def _load(name: str) -> ModuleType:
    if name == "triton":
        from eqflow.edges import kernels

        return kernels
    from eqflow.edges import reference

    return reference
