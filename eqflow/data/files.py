"""The doors to files of structures: the ending decides the format.

| ending | holds |
|---|---|
| `.xyz .extxyz` | elements and positions in up to 3 dimensions, any sizes |
| `.sdf` | the same |
| `.npz` | everything but the sources, in any dimension |
| `.npy` | positions of structures of one size, in any dimension |

Positions from a text are float64; arrays keep their float type.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from eqflow import storage
from eqflow.data.arrays import read_npy, read_npz, write_npy, write_npz
from eqflow.data.records import ReadResult
from eqflow.data.sdf import read_sdf, write_sdf
from eqflow.data.xyz import read_xyz, write_xyz
from eqflow.errors import EmptyData, NumericalError, UsageError
from eqflow.geometry.clouds import Clouds

Reader = Callable[[Path, int | None, str], ReadResult]
Writer = Callable[[Clouds, IO[bytes]], None]

READERS: dict[str, Reader] = {
    ".xyz": read_xyz,
    ".extxyz": read_xyz,
    ".sdf": read_sdf,
    ".npz": read_npz,
    ".npy": read_npy,
}
WRITERS: dict[str, Writer] = {
    ".xyz": partial(write_xyz, extended=False),
    ".extxyz": partial(write_xyz, extended=True),
    ".sdf": write_sdf,
    ".npz": write_npz,
    ".npy": write_npy,
}


def read(path: str | Path, dimension: int | None = None, on_problem: str = "stop") -> Clouds:
    """Structures of a file; see `read_report`, of which these are the clouds."""
    return read_report(path, dimension, on_problem).clouds


def read_report(
    path: str | Path, dimension: int | None = None, on_problem: str = "stop"
) -> ReadResult:
    """Structures of a file, and what was left out.

    Every structure is sound: positions are finite, and where there are elements no coordinate is
    beyond 10⁴ Å and no two atoms are nearer than 10⁻³ Å. `clouds.source` is `file:line`, or
    `file#index` for arrays.

    Args:
        path: File that ends in `.xyz .extxyz .sdf .npz .npy`.
        dimension: Coordinates of a point. Two for planar structures in a format of three, where
            every z must be 0; needed for flat arrays.
        on_problem: `stop` raises the first problem, `skip` leaves such records out and lists them.

    Raises:
        UsageError: If the ending, `dimension` or `on_problem` is none of those known.
        DataError: If the file cannot be read or has a bad record.
        EmptyData: If no structure is left.
    """
    path = Path(path)
    return READERS[_known_ending(path)](path, dimension, on_problem)


def write(clouds: Clouds, path: str | Path) -> None:
    """Write structures, atomically, in the format of the ending.

    Reading them again gives bitwise the same positions, elements and sizes, as far as the table
    above lets the format hold them; planar ones are read with `dimension=2`. (In SDF, float64 is
    kept to 18 decimals and float32 to 14.)

    Raises:
        UsageError: If the ending is unknown, or the format cannot hold these clouds.
        EmptyData: If there is nothing to write.
        NumericalError: If a position is not finite, which no reader would take.
        StorageError: If the file cannot be written.
    """
    path = Path(path)
    ragged = len(clouds) > 0 and clouds.segments.uniform is None
    ending = writable_ending(path, dimension=clouds.dimension, one_size=not ragged)
    if not len(clouds) or not bool((clouds.sizes > 0).all()):
        raise EmptyData(
            f"{path}: found {len(clouds)} structures to write, "
            f"{int((clouds.sizes == 0).sum())} of them without points; expected at least 1, each "
            "with points."
        )
    bad = clouds.segments.ids[~clouds.x.detach().isfinite().all(1)]
    if bad.numel():
        raise NumericalError(
            f"{path}: found positions that are not finite in structure {int(bad[0])} and "
            f"{bad.unique().numel() - 1} others. Leave them out before writing."
        )
    storage.write_atomically(path, partial(WRITERS[ending], clouds))


def writable_ending(path: str | Path, dimension: int = 3, one_size: bool = True) -> str:
    """The ending of a file that can be written, checked before anything is computed.

    Args:
        path: File to be written.
        dimension: Coordinates of the points that will be written.
        one_size: Whether all structures will have the same number of points.

    Raises:
        UsageError: If the ending is unknown, or its format cannot hold such structures.

    >>> writable_ending("samples.extxyz")
    '.extxyz'
    """
    ending = _known_ending(Path(path))
    if ending in (".xyz", ".extxyz", ".sdf") and dimension > 3:
        raise UsageError(
            f"{path}: points of {dimension} coordinates asked for, but {ending} holds at most 3. "
            "Write .npz or .npy."
        )
    if ending == ".npy" and not one_size:
        raise UsageError(
            f"{path}: structures of several sizes asked for, but .npy holds one size. Write .npz."
        )
    return ending


def _known_ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in READERS:
        raise UsageError(
            f"{path}: found the ending {ending!r}, expected one of {' '.join(READERS)}. "
            "Rename the file, or convert it to one of these."
        )
    return ending
