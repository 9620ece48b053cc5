"""Voxel grids as 3-D clouds: the centres of the occupied cells, or of those on the surface."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from eqflow.data.images import gathered, within_cell
from eqflow.data.numpy_files import load_arrays
from eqflow.data.records import ReadResult
from eqflow.errors import DataError


def read_voxels(
    path: str | Path,
    points: int | None = None,
    seed: int = 0,
    interior: bool = False,
    dequantize: bool = False,
) -> ReadResult:
    """Clouds of the voxels of an `.npz` with bits `packed` (B, bytes) and `shape` (B, i, j, k).

    A cell is the point at its centre, moved and scaled so that the longest side of the grid spans
    [−1, 1]. A cell is on the surface if one of its six neighbours is empty or outside the grid.

    Args:
        path: File with one row of `numpy.packbits` for each grid.
        points: Most points of a cloud; a random subset, the same for the same seed, is kept.
        seed: Seed of the subsets.
        interior: Whether the cells inside count as well as those on the surface.
        dequantize: Whether each point is moved uniformly within its cell: a continuous density on
            a lattice has no bound. The same for the same seed.

    Returns:
        Clouds in float32 with `source` `file#index`, and the grids without an occupied cell.

    Raises:
        DataError: If the file is damaged or of another layout.
        EmptyData: If all grids are empty.
        UsageError: If `points` is below 1.
    """
    path = Path(path)
    arrays = load_arrays(path)
    grids = _grids(arrays.get("packed"), arrays.get("shape"), path)
    if not interior:
        grids = grids & ~_enclosed(grids)
    record, *cell = np.nonzero(grids)
    sides = np.array(grids.shape[1:])
    x = (np.stack(cell, 1) - (sides - 1) / 2) * (2 / sides.max(initial=1))
    if dequantize:
        x = x + within_cell(x.shape, seed) * (2 / sides.max(initial=1))
    sizes = np.bincount(record, minlength=len(grids))
    return gathered(x, sizes, path, points, seed, "an occupied voxel")


def _grids(packed: np.ndarray | None, shape: np.ndarray | None, path: Path) -> np.ndarray:
    if packed is None or shape is None or shape.shape != (4,) or shape.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected the arrays packed (B, bytes) and shape = [B, i, j, k]; one of them "
            "is missing or different."
        )
    count, *sides = shape.tolist()
    cells = math.prod(sides)
    if min(sides) < 1 or packed.dtype != np.uint8 or packed.shape != (count, -(-cells // 8)):
        raise DataError(
            f"{path}: found packed {packed.shape} of {packed.dtype} for the shape "
            f"{shape.tolist()}, expected ({count}, {-(-cells // 8)}) of uint8."
        )
    bits = np.unpackbits(packed, axis=1, count=cells)
    return bits.reshape(count, *sides).astype(bool)


def _enclosed(grids: np.ndarray) -> np.ndarray:
    """Cells whose six neighbours are all occupied."""
    padded = np.pad(grids, [(0, 0), (1, 1), (1, 1), (1, 1)])
    enclosed = np.ones_like(grids)
    for axis in (1, 2, 3):
        for shift in (-1, 1):
            enclosed &= np.roll(padded, shift, axis)[:, 1:-1, 1:-1, 1:-1]
    return enclosed
