"""Which entries of a large matrix of positive numbers are kept.

Diffusion makes every node a neighbour of every other, mostly by very little. Keeping the largest
entries makes it a graph again.

Reference: Diffusion Improves Graph Learning (Gasteiger, Weißenberger, Günnemann, 2019),
arXiv:1911.05485, section 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from eqflow.errors import UsageError


class AbstractKeep(ABC):
    """Which entries of a large matrix with positive rows are kept."""

    @abstractmethod
    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Mask of the entries that may be kept of some whole rows, shape (R, n) both."""

    def of_all(self, values: np.ndarray, size: int) -> np.ndarray:
        """Mask of those kept in the end, of all `values` (M,) of a graph with `size` nodes."""
        return np.ones(len(values), dtype=bool)


@dataclass(frozen=True)
class LargestPerRow(AbstractKeep):
    """The `k` largest entries of each row, all positive ones where there are fewer.

    Of entries that are equal but for rounding, those of lower nodes come first.

    Raises:
        UsageError: If `k` is no whole number of at least 1.
    """

    k: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise UsageError(f"keep: found k = {self.k!r}, expected a whole number of at least 1.")

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Mask of the largest entries."""
        size = rows.shape[1]
        if self.k >= size:
            return rows > 0
        least = np.partition(rows, size - self.k, axis=1)[:, size - self.k, None]
        rounding = 8 * np.finfo(rows.dtype).eps * rows.max(axis=1, keepdims=True)
        is_above = rows > least + rounding
        is_tied = ~is_above & (rows >= least - rounding)
        places = self.k - is_above.sum(axis=1, keepdims=True)
        return (is_above | (is_tied & (np.cumsum(is_tied, axis=1) <= places))) & (rows > 0)


@dataclass(frozen=True)
class AtLeast(AbstractKeep):
    """Entries of at least `epsilon`.

    Raises:
        UsageError: If `epsilon` is not positive.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise UsageError(f"keep: found epsilon = {self.epsilon}, expected a positive number.")

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Mask of the entries above the threshold."""
        return rows >= self.epsilon


@dataclass(frozen=True)
class AverageDegree(AbstractKeep):
    """The `n · degree` largest entries of each graph: a threshold, given by what it leaves.

    Raises:
        UsageError: If `degree` is not positive.
    """

    degree: float

    def __post_init__(self) -> None:
        if not 0 < self.degree < math.inf:
            raise UsageError(f"keep: found degree = {self.degree}, expected a positive number.")

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Mask of the positive entries; which of them stay, all rows decide."""
        return rows > 0

    def of_all(self, values: np.ndarray, size: int) -> np.ndarray:
        """Mask of the largest `size · degree`; the first of equal ones."""
        count = round(size * self.degree)
        if count >= len(values):
            return np.ones(len(values), dtype=bool)
        least = np.partition(values, len(values) - count)[len(values) - count]
        is_above = values > least
        is_tied = values == least
        return is_above | (is_tied & (np.cumsum(is_tied) <= count - is_above.sum()))


class Entries:
    """Entries of a sparse matrix with `size` rows and columns, collected by blocks of rows.

    Attributes:
        count: How many there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, mask: np.ndarray, rows: np.ndarray, first: int, shift: int) -> None:
        """Take what `mask` marks of `rows`, whose corner is at row `first`, column `shift`."""
        row, column = mask.nonzero()
        self._take(row + first, column + shift, rows[mask].astype(np.float64))

    def join(self, other: Entries) -> None:
        """Take all entries of another collection."""
        self._take(*other.all())

    def all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values, in the order in which they came."""
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        row, column, value = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return row, column, value

    def only(self, keep: AbstractKeep, nodes: int) -> Entries:
        """Those that stay of a graph with so many nodes."""
        row, column, value = self.all()
        mask = keep.of_all(value, nodes)
        chosen = Entries(self.size)
        chosen._take(row[mask], column[mask], value[mask])
        return chosen

    def matrix(self) -> csr_array:
        """The sparse matrix."""
        row, column, value = self.all()
        return csr_array((value, (row, column)), shape=(self.size, self.size))

    def _take(self, row: np.ndarray, column: np.ndarray, value: np.ndarray) -> None:
        self._parts.append((row, column, value))
        self.count += len(row)
