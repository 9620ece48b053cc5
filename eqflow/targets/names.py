"""Targets by the name that a config or a command line uses."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from eqflow.errors import UsageError
from eqflow.targets.base import AbstractTarget
from eqflow.targets.dw4 import DW4
from eqflow.targets.lennard_jones import LennardJones
from eqflow.targets.mixture import GaussianMixture

TARGETS: dict[str, Callable[[], AbstractTarget]] = {
    "dw4": DW4,
    "lj13": lambda: LennardJones(13),
    "lj55": lambda: LennardJones(55),
    "gaussian_mixture": GaussianMixture,
}


def target_by_name(name: str) -> AbstractTarget:
    """The target called `name`.

    Raises:
        UsageError: If there is none; the message names the nearest.

    >>> target_by_name("lj13").points
    13
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"target: found {name!r}, expected one of {', '.join(TARGETS)}.{hint}")
    return TARGETS[name]()
