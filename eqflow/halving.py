"""What does not fit into memory is tried in halves, down to single items; those too large are left.

Written for batches of structures, of which one in a thousand may be too large: the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from eqflow.errors import is_want_of_memory

Value = TypeVar("Value")


def by_halves(
    items: Sequence[int], compute: Callable[[list[int]], Value]
) -> tuple[list[tuple[list[int], Value]], list[int]]:
    """The value of all items together, or of halves of them where memory does not suffice.

    Args:
        items: What there is; its order is kept.
        compute: Gives the value of some consecutive items. Called again with the first half and
            then the second of what it had no memory for.

    Returns:
        The items of each piece with its value, in order; and the items too large even alone.

    >>> by_halves([], len)
    ([], [])
    >>> def at_most_two(items):
    ...     if len(items) > 2 or 7 in items:
    ...         raise MemoryError
    ...     return sum(items)
    >>> by_halves([1, 2, 3, 7, 5], at_most_two)
    ([([1, 2], 3), ([3], 3), ([5], 5)], [7])
    """
    done: list[tuple[list[int], Value]] = []
    too_large: list[int] = []
    waiting = [list(items)] if len(items) else []
    while waiting:
        some = waiting.pop()
        try:
            done.append((some, compute(some)))
            continue
        except Exception as error:
            if not is_want_of_memory(error):
                raise
        # Only here is the error gone, and what its frames held.
        if len(some) == 1:
            too_large += some
        else:
            middle = len(some) // 2
            waiting += [some[middle:], some[:middle]]
    return done, too_large
