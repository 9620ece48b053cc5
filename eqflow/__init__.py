"""Equivariant generative flows on one set of edge primitives.

>>> import eqflow
>>> target = eqflow.targets.DW4()
>>> target.degrees_of_freedom
6

What is named here is imported when it is first asked for, so that a command is there, and heeds
signals, before PyTorch is.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqflow import targets
    from eqflow.data import read
    from eqflow.geometry import Clouds
    from eqflow.train import load

__version__ = "0.1.0"

__all__ = ["Clouds", "load", "read", "targets"]


def __getattr__(name: str) -> Any:
    if name == "Clouds":
        from eqflow.geometry import Clouds

        return Clouds
    if name == "load":
        from eqflow.train import load

        return load
    if name == "read":
        from eqflow.data import read

        return read
    if name == "targets":
        import eqflow.targets

        return eqflow.targets
    raise AttributeError(f"module 'eqflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
