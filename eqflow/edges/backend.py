"""Which implementation of the edge primitives runs: one dispatch for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from eqflow.edges import reference
from eqflow.errors import UsageError

BACKENDS: dict[str, ModuleType] = {"torch": reference}

_chosen: ContextVar[str] = ContextVar("edge_backend", default="torch")


def active_backend() -> str:
    """Name of the backend that runs now."""
    return _chosen.get()


def implementation() -> ModuleType:
    """The active backend's functions."""
    return BACKENDS[_chosen.get()]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the edge primitives inside the block on the named backend.

    Raises:
        UsageError: If there is no such backend in this installation.

    >>> with use_backend("torch"):
    ...     active_backend()
    'torch'
    """
    if name not in BACKENDS:
        raise UsageError(
            f"use_backend: found {name!r}, expected one of {', '.join(sorted(BACKENDS))}."
        )
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
