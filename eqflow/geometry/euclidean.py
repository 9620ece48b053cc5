"""The groups that move clouds, by name: E(d) and its subgroups."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from eqflow.errors import UsageError

FAMILIES = ("E", "SE", "O", "SO", "T")


@dataclass(frozen=True)
class EuclideanGroup:
    r"""A subgroup of :math:`E(d) = O(d) \ltimes T(d)`, which acts by `x_i ↦ R x_i + t`.

    Attributes:
        family: One of `FAMILIES`.
        dimension: d.
    """

    family: str
    dimension: int

    @property
    def translates(self) -> bool:
        """Whether it has translations."""
        return self.family in ("E", "SE", "T")

    @property
    def rotates(self) -> bool:
        """Whether it has rotations."""
        return self.family != "T"

    @property
    def is_proper(self) -> bool:
        """Whether it leaves out reflections."""
        return self.family in ("SE", "SO", "T")

    def __str__(self) -> str:
        return f"{self.family}({self.dimension})"


def euclidean_group(name: str) -> EuclideanGroup:
    """The group called `name`, such as `"SE(3)"`.

    Raises:
        UsageError: If there is none.

    >>> euclidean_group("SE(3)").is_proper
    True
    """
    group = parsed_group(name)
    if group is None:
        known = [f"{family}(3)" for family in FAMILIES]
        near = get_close_matches(str(name), known, n=2, cutoff=0.3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UsageError(
            f"group: found {name!r}, expected {', '.join(f'{f}(d)' for f in FAMILIES)} with a "
            f"number for d, such as 'E(3)'.{hint}"
        )
    return group


def parsed_group(name: object) -> EuclideanGroup | None:
    """The group called `name`, or None where there is none."""
    match = re.fullmatch(r"(E|SE|O|SO|T)\(([1-9]\d*)\)", name) if isinstance(name, str) else None
    return None if match is None else EuclideanGroup(match[1], int(match[2]))
