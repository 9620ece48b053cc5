"""Equivariant generative flows on one set of edge primitives.

>>> import eqflow
>>> target = eqflow.targets.DW4()
>>> target.degrees_of_freedom
6

What is named here is imported when it is first asked for, so that a command is there, and heeds
signals, before PyTorch is.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqflow import targets
    from eqflow.data import read
    from eqflow.geometry import Clouds
    from eqflow.train import load

__version__ = "0.1.0"

__all__ = ["Clouds", "load", "read", "targets"]


# What there is, and how to come by it.
PARTS: dict[str, Callable[[], Any]] = {
    "Clouds": lambda: import_module("eqflow.geometry").Clouds,
    "load": lambda: import_module("eqflow.train").load,
    "read": lambda: import_module("eqflow.data").read,
    "chem": lambda: import_module("eqflow.chem"),
    "data": lambda: import_module("eqflow.data"),
    "edges": lambda: import_module("eqflow.edges"),
    "evaluate": lambda: import_module("eqflow.evaluate"),
    "flows": lambda: import_module("eqflow.flows"),
    "geometry": lambda: import_module("eqflow.geometry"),
    "graphs": lambda: import_module("eqflow.graphs"),
    "nn": lambda: import_module("eqflow.nn"),
    "targets": lambda: import_module("eqflow.targets"),
    "testing": lambda: import_module("eqflow.testing"),
    "train": lambda: import_module("eqflow.train"),
    "view": lambda: import_module("eqflow.view"),
}


def __getattr__(name: str) -> Any:
    if name in PARTS:
        return PARTS[name]()
    raise AttributeError(f"module 'eqflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PARTS})
