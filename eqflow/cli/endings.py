"""How integrations ended that did not end as asked: counted batch by batch, and told to people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from eqflow.flows import Integrated


@dataclass
class Endings:
    """What there is to say of some structures, as plain values that a journal keeps.

    Attributes:
        solvers: How many were carried by another solver than the one asked for, by its words.
        largest_error: How much those may be off, the worst of them.
        first: Of each status that failed, the first structure and the time it came to.
    """

    solvers: dict[str, int] = field(default_factory=dict)
    largest_error: float = 0.0
    first: dict[str, list[float]] = field(default_factory=dict)

    def take(self, indices: Sequence[int], result: Integrated) -> None:
        """Count structures that were solved together, at their places."""
        for i, (index, status) in enumerate(zip(indices, result.status, strict=True)):
            if status.failed:
                self.first.setdefault(status.name, [index, float(result.time[i])])
            if name := result.solver[i]:
                self.solvers[name] = self.solvers.get(name, 0) + 1
                self.largest_error = max(self.largest_error, float(result.solver_error[i]))

    def add(self, other: Endings) -> None:
        """Count those of a later batch as well."""
        for name, count in other.solvers.items():
            self.solvers[name] = self.solvers.get(name, 0) + count
        self.largest_error = max(self.largest_error, other.largest_error)
        self.first = other.first | self.first

    def where(self, status: str) -> str:
        """Which structure was the first to end so, and when.

        >>> Endings(first={"NON_FINITE": [4, 0.25]}).where("NON_FINITE")
        'first: structure 4 at t = 0.25'
        """
        index, time = self.first[status]
        # Nothing is known of the time where nothing was evaluated.
        came = "" if math.isnan(time) else f" at t = {time:.3g}"
        return f"first: structure {int(index)}{came}"

    def others(self) -> Iterator[str]:
        """A line about results of other solvers, where there are any."""
        if self.solvers:
            counts = ", ".join(f"{count:,} by {name}" for name, count in self.solvers.items())
            yield (
                f"by another solver, where that asked for failed: {counts}; they are off by at "
                f"most {self.largest_error:.1e}"
            )
