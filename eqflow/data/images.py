"""Images as 2-D clouds: the pixels above a threshold, as in MNIST point clouds.

The IDX format holds a magic number (two zero bytes, the type of the values, the number of axes),
the length of each axis and the values, big-endian; files may be gzipped.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch

from eqflow import rng
from eqflow.data.limits import LARGEST_RATIO, require_memory
from eqflow.data.records import ReadResult
from eqflow.data.text import require_content
from eqflow.errors import DataError, EmptyData, UsageError
from eqflow.geometry.clouds import Clouds

UNSIGNED_BYTE = 8
AXES = 8  # those of images are 3
GZIP = b"\x1f\x8b"


def read_images(
    path: str | Path,
    threshold: int = 128,
    max_points: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    dequantize: bool = False,
) -> ReadResult:
    """Clouds of the bright pixels of an IDX file of images, such as MNIST's.

    A pixel is the point `((column, −row) − centre) · 2 / side` of its image, so that the longer
    side spans [−1, 1] and the image stands upright.

    Args:
        path: IDX file of images of bytes (B, rows, columns), plain or gzipped.
        threshold: Smallest value of a bright pixel, 1 to 255.
        max_points: Most points of a cloud; a random subset, the same for the same seed, is kept.
        limit: Most images to read, from the first.
        seed: Seed of the subsets.
        dequantize: Whether each point is moved uniformly within its cell: a continuous density on
            a lattice has no bound. The same for the same seed.

    Returns:
        Clouds in float32 with `source` `file#index`, and the images without a bright pixel.

    Raises:
        DataError: If the file is no IDX file of images, or damaged.
        EmptyData: If no image has a bright pixel.
        UsageError: If `threshold`, `max_points` or `limit` is out of range.
    """
    path = Path(path)
    if not 1 <= threshold <= 255:
        raise UsageError(f"threshold: found {threshold}, expected 1 to 255.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit: found {limit}, expected 1 or more.")
    images = read_idx(path)
    if images.ndim != 3:
        raise DataError(
            f"{path}: found an array {images.shape}, expected images (B, rows, columns). "
            "Labels have a file of their own; give the one of the images."
        )
    if not images.size:
        raise EmptyData(f"{path}: found images {images.shape}, expected at least one pixel.")
    images = images[:limit]
    image, row, column = np.nonzero(images >= threshold)
    rows, columns = images.shape[1:]
    x = np.stack([column - (columns - 1) / 2, (rows - 1) / 2 - row], 1) * (2 / max(rows, columns))
    if dequantize:
        x = x + within_cell(x.shape, seed) * (2 / max(rows, columns))
    sizes = np.bincount(image, minlength=len(images))
    return gathered(x, sizes, path, max_points, seed, "a pixel above the threshold")


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, plain or gzipped.

    Raises:
        DataError: If it is no such file, or damaged.
    """
    path = Path(path)
    is_packed = require_content(path).startswith(GZIP)
    try:
        with gzip.open(path) if is_packed else open(path, "rb") as file:
            return _idx(file, path, path.stat().st_size * (LARGEST_RATIO if is_packed else 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: found a damaged gzip file ({error}). Copy or download it again."
        ) from error


def _idx(file: IO[bytes], path: Path, most: int) -> np.ndarray:
    """The array of an open IDX file that holds `most` bytes at most."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != UNSIGNED_BYTE:
        raise DataError(
            f"{path}: found a file that starts with {head!r}, expected an IDX file of bytes "
            "(00 00 08 and the number of axes)."
        )
    if head[3] > AXES:
        raise DataError(f"{path}: found an array of {head[3]} axes, expected at most {AXES}.")
    lengths = file.read(4 * head[3])
    shape = [int.from_bytes(lengths[i : i + 4], "big") for i in range(0, len(lengths), 4)]
    if len(shape) < head[3]:
        raise DataError(
            f"{path}: found {4 + len(lengths)} bytes, expected the lengths of {head[3]} axes. The "
            "file may be cut off: copy or download it again."
        )
    size = math.prod(shape)
    if size <= most:
        require_memory(size, f"{path}: found an array {tuple(shape)}")
        content = file.read(size + 1)
        if len(content) == size:
            return np.frombuffer(content, np.uint8).reshape(shape)
        found = "more" if len(content) > size else f"{len(content):,}"
    else:
        found = f"at most {most:,}"
    raise DataError(
        f"{path}: found {found} bytes of values, expected {size:,} for an array {tuple(shape)}. "
        "The file may be cut off: copy or download it again."
    )


def gathered(
    x: np.ndarray,
    sizes: np.ndarray,
    path: Path,
    max_points: int | None,
    seed: int,
    expected: str,
) -> ReadResult:
    """Clouds in float32 of the records that have a point, at most `max_points` of each.

    Args:
        x: Points of all records, one record after another, shape (N, d).
        sizes: Points of each record, shape (B,).
        path: The file, for sources and messages.
        max_points: Most points of a cloud; no limit where None.
        seed: With the index of the record, the seed of its random subset.
        expected: What an empty record lacks.

    Raises:
        EmptyData: If all records are empty.
        UsageError: If `max_points` is below 1.
    """
    if max_points is not None and max_points < 1:
        raise UsageError(f"points: found {max_points}, expected 1 or more.")
    starts = np.cumsum(sizes) - sizes
    skipped = [
        f"{path}#{index}: found 0 points, expected {expected}."
        for index in np.flatnonzero(sizes == 0).tolist()
    ]
    kept = np.flatnonzero(sizes).tolist()
    if not kept:
        raise EmptyData(f"{path}: found {len(sizes)} records, none of them with {expected}.")
    rows = []
    for index in kept:
        size = int(sizes[index])
        chosen = np.arange(size)
        if max_points is not None and size > max_points:
            source = rng.generator(seed, "points", index)
            chosen = np.sort(rng.permutation(size, source).numpy()[:max_points])
        rows.append(starts[index] + chosen)
    ptr = torch.tensor([0, *map(len, rows)]).cumsum(0)
    packed = torch.from_numpy(x[np.concatenate(rows)].astype(np.float32))
    return ReadResult(
        Clouds(packed, ptr, None, tuple(f"{path}#{index}" for index in kept)), skipped
    )


def within_cell(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform offsets from the centre of a cell, in units of its side."""
    like = torch.zeros((), dtype=torch.float64)
    return rng.uniform(shape, like, rng.generator(seed, "data", "dequantize")).numpy() - 0.5
