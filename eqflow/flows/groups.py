"""Which structures are solved together: enough to fill a core, few enough to share a step size.

Structures of a group share the solver's steps and their noise, which is a function of the seed and
of the place of the first of them.
"""

from __future__ import annotations

from eqflow.geometry import Clouds

GROUP = 256
GROUP_PAIRS = 40_000


def groups(clouds: Clouds) -> list[tuple[int, Clouds]]:
    """Start and clouds of consecutive groups of at most `GROUP` clouds and `GROUP_PAIRS` pairs."""
    groups = []
    start = pairs = 0
    for i, size in enumerate(clouds.sizes.tolist()):
        if i > start and (i - start == GROUP or pairs + size * (size - 1) > GROUP_PAIRS):
            groups.append((start, clouds[start:i]))
            start, pairs = i, 0
        pairs += size * (size - 1)
    return [*groups, (start, clouds[start:])]
