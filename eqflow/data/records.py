"""What every reader hands over, and the checks that all structures pass before anyone sees them.

A reader collects positions, sizes and elements as plain arrays together with the problems it met on
the way; `accept` then finds what no format forbids (NaN, absurd or coincident positions, structures
without points), and either raises the first problem of the file or leaves the bad records out.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from eqflow.chem.elements import impossible_charge, is_possible_charge
from eqflow.data.stated_properties import columns
from eqflow.errors import DataError, EmptyData, UsageError
from eqflow.geometry.clouds import Clouds

# Å. No molecule is as large as the first; no two nuclei are as near as the second.
ABSURD_COORDINATE = 1e4
COINCIDENT_DISTANCE = 1e-3

ADVICE = "Correct it, or leave such records out with data.on_problem=skip (Python: on_problem)."


class ReadResult(NamedTuple):
    """Clouds, and for each record left out one line that says which and why."""

    clouds: Clouds
    skipped: list[str]


class Problem(NamedTuple):
    """What is wrong with a record; `before` counts the records read before it."""

    before: int
    error: DataError


@dataclass(frozen=True)
class Records:
    """Structures as a reader found them, not checked yet.

    Attributes:
        name: The file.
        x: Positions, shape (N, d).
        numbers: Atomic numbers, shape (N,), or None.
        sizes: Points of each structure, shape (B,).
        sources: Where each structure is.
        problems: Records that could not be read.
        place: Where a point of a structure is, for messages.
        charges: Formal charges, shape (N,), or None.
        properties: Numbers known of whole structures, by name, each shape (B,).
    """

    name: str
    x: np.ndarray
    numbers: np.ndarray | None
    sizes: np.ndarray
    sources: Sequence[str]
    problems: Sequence[Problem] = ()
    place: Callable[[str, int], str] = "{}: point {}".format
    charges: np.ndarray | None = None
    properties: Mapping[str, np.ndarray] = field(default_factory=dict)


class Collector:
    """Structures in three dimensions, gathered one by one from a text.

    Args:
        name: The file.
        place: Where a point is, from the source of its structure and its number there.
    """

    def __init__(self, name: str, place: Callable[[str, int], str]) -> None:
        self.name = name
        self.sources: list[str] = []
        self.problems: list[Problem] = []
        self._place = place
        self._positions = array("d")
        self._numbers = array("q")
        self._charges = array("q")
        self._sizes = array("q")
        self._properties: list[Mapping[str, float]] = []

    def add(
        self,
        numbers: Sequence[int],
        positions: Sequence[float],
        charges: Sequence[int] | None,
        source: str,
        properties: Mapping[str, float] | None = None,
    ) -> None:
        """One more structure: atomic numbers (n,), coordinates one after another (3n,), charges."""
        self._numbers.extend(numbers)
        self._charges.extend([0] * len(numbers) if charges is None else charges)
        self._positions.extend(positions)
        self._sizes.append(len(numbers))
        self.sources.append(source)
        self._properties.append(properties or {})

    def refuse(self, error: DataError) -> None:
        """Note that the record after those added cannot be read."""
        self.problems.append(Problem(len(self.sources), error))

    def records(self) -> Records:
        """All that was gathered."""
        return Records(
            self.name,
            np.array(self._positions).reshape(-1, 3),
            np.array(self._numbers, np.int64),
            np.array(self._sizes, np.int64),
            self.sources,
            self.problems,
            self._place,
            np.array(self._charges, np.int64),
            columns(self._properties),
        )


def require_choice(on_problem: str) -> None:
    """Raise `UsageError` unless `on_problem` is one of the two words it may be."""
    if on_problem not in ("stop", "skip"):
        raise UsageError(f"on_problem: found {on_problem!r}, expected 'stop' or 'skip'.")


def accept(records: Records, on_problem: str, dimension: int | None = None) -> ReadResult:
    """Clouds of the records that are sound.

    Elements, or charges, that are all 0 are none.

    Args:
        records: What a reader found.
        on_problem: `stop` raises the first problem of the file, `skip` leaves such records out.
        dimension: Keep only this many coordinates, which must be those that are not zero.

    Raises:
        DataError: The first problem, where `on_problem` is `stop`.
        EmptyData: If no structure is left.
    """
    require_choice(on_problem)
    x, sizes = records.x, records.sizes
    numbers, charges = (
        None if labels is None or not labels.any() else labels
        for labels in (records.numbers, records.charges)
    )
    found = _unsound(x, sizes, numbers, charges, records)
    problems = sorted(
        [(p.before, 0, p.error) for p in records.problems]
        + [(index, 1, error) for index, error in found.items()],
        key=lambda entry: entry[:2],
    )
    if problems and on_problem == "stop":
        raise problems[0][2]
    skipped = [str(error) for _, _, error in problems]
    if len(found) == len(sizes):
        total = len(sizes) + len(records.problems)
        first = f" The first: {skipped[0].removesuffix(ADVICE)}" if skipped else ""
        raise EmptyData(
            f"{records.name}: found {total} structures, {len(skipped)} of them unusable, expected "
            f"at least 1 to be left.{first.rstrip()}"
        )
    kept = np.ones(len(sizes), bool)
    kept[list(found)] = False
    rows = np.repeat(kept, sizes)
    x = x if rows.all() else x[rows]
    ptr = np.concatenate([[0], np.cumsum(sizes[kept])])
    clouds = Clouds(
        torch.from_numpy(_with_dimension(x, dimension, records.name)),
        torch.from_numpy(ptr),
        None if numbers is None else torch.from_numpy(numbers[rows]),
        tuple(s for s, keep in zip(records.sources, kept.tolist(), strict=True) if keep),
        None if charges is None else torch.from_numpy(charges[rows]),
        {name: torch.from_numpy(values[kept]) for name, values in records.properties.items()},
    )
    return ReadResult(clouds, skipped)


def coincident(x: np.ndarray, cloud: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of points of one cloud nearer than `COINCIDENT_DISTANCE`, the nearest of each kind.

    Two near points have near projections on any line. So the points are sorted along one line, and
    each is compared with its successors for as long as their projections are near.

    Args:
        x: Positions, shape (N, d).
        cloud: Cloud of each point, shape (N,), rising.

    Returns:
        Indices of first and of second points, at least one pair for each cloud that has any.
    """
    line = np.sqrt(np.arange(2.0, 2.0 + x.shape[1]))
    projection = x @ (line / np.linalg.norm(line)).astype(x.dtype)
    margin = COINCIDENT_DISTANCE + 8 * np.finfo(x.dtype).eps * np.abs(projection)
    order = np.lexsort((projection, cloud))
    active = np.arange(len(order))
    first, second = [], []
    step = 1
    while active.size:
        active = active[active + step < len(order)]
        a, b = order[active], order[active + step]
        near = (cloud[a] == cloud[b]) & (projection[b] - projection[a] < margin[b])
        active, a, b = active[near], a[near], b[near]
        hit = np.square(x[a] - x[b]).sum(1) < COINCIDENT_DISTANCE**2
        first.append(np.minimum(a[hit], b[hit]))
        second.append(np.maximum(a[hit], b[hit]))
        active = active[~np.isin(cloud[a], cloud[a[hit]])]
        step += 1
    return np.concatenate([*first, []]).astype(int), np.concatenate([*second, []]).astype(int)


def _unsound(
    x: np.ndarray,
    sizes: np.ndarray,
    numbers: np.ndarray | None,
    charges: np.ndarray | None,
    records: Records,
) -> dict[int, DataError]:
    cloud = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum(sizes) - sizes

    def where(row: int) -> str:
        index = int(cloud[row])
        point = int(row - starts[index])
        return records.place(records.sources[index], point)

    found: dict[int, DataError] = {}
    for index in np.flatnonzero(sizes == 0).tolist():
        found[index] = DataError(
            f"{records.sources[index]}: found a structure with 0 points, expected at least 1. "
            + ADVICE
        )
    finite = np.isfinite(x).all(1)
    for row in np.flatnonzero(~finite).tolist():
        found.setdefault(
            int(cloud[row]),
            DataError(
                f"{where(row)}: found the position {_shown(x[row])}, expected finite coordinates. "
                + ADVICE
            ),
        )
    if charges is not None:
        elements = np.zeros_like(charges) if numbers is None else numbers
        for row in np.flatnonzero(~is_possible_charge(elements, charges)).tolist():
            said = impossible_charge(int(elements[row]), int(charges[row]))
            found.setdefault(int(cloud[row]), DataError(f"{where(row)}: {said} {ADVICE}"))
    if numbers is None:
        return found
    with np.errstate(invalid="ignore"):
        absurd = finite & (np.abs(x) > ABSURD_COORDINATE).any(1)
    for row in np.flatnonzero(absurd).tolist():
        found.setdefault(
            int(cloud[row]),
            DataError(
                f"{where(row)}: found the position {_shown(x[row])}, expected coordinates in Å "
                f"below {ABSURD_COORDINATE:g}. Check the unit. " + ADVICE
            ),
        )
    sound = np.flatnonzero(finite & ~absurd)
    pairs = coincident(x[sound], cloud[sound])
    for a, b in sorted(zip(*(sound[side].tolist() for side in pairs), strict=True)):
        found.setdefault(
            int(cloud[a]),
            DataError(
                f"{where(b)}: found an atom {np.linalg.norm(x[a] - x[b]):.2g} Å from atom "
                f"{a - starts[cloud[a]]} of the same structure, expected at least "
                f"{COINCIDENT_DISTANCE:g}. " + ADVICE
            ),
        )
    return found


def _with_dimension(x: np.ndarray, dimension: int | None, name: str) -> np.ndarray:
    if dimension is None or dimension == x.shape[1]:
        return np.ascontiguousarray(x)
    if not 1 <= dimension < x.shape[1]:
        raise UsageError(
            f"{name}: dimension={dimension} asked for, but points have {x.shape[1]} coordinates. "
            f"Ask for 1 to {x.shape[1]}."
        )
    wrong = np.flatnonzero(x[:, dimension:].any(1))
    if wrong.size:
        raise DataError(
            f"{name}: dimension={dimension} asked for, but the {wrong.size} of {len(x)} points "
            f"with further coordinates that are not 0 would lose them; the first is "
            f"{_shown(x[wrong[0]])}. Ask for dimension={x.shape[1]}."
        )
    return np.ascontiguousarray(x[:, :dimension])


def _shown(values: Sequence[float] | np.ndarray) -> str:
    dots = ", …" if len(values) > 4 else ""
    return "(" + ", ".join(f"{value:g}" for value in values[:4]) + dots + ")"
