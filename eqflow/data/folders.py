"""A folder of files of structures, read as if it were one file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from eqflow.data.records import ReadResult
from eqflow.errors import DataError, EmptyData
from eqflow.geometry.clouds import Clouds

# Endings named where a folder has none of those wanted.
SHOWN = 8


def structure_files(folder: Path, endings: Collection[str]) -> list[Path]:
    """Files of a folder with one of the endings, by name; no hidden ones, none of its subfolders.

    Raises:
        DataError: If the folder cannot be listed.
        EmptyData: If there is no such file; the message says what there is.
    """
    try:
        every = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror or error}). Check its permissions."
        ) from error
    files = [path for path in every if path.is_file()]
    chosen = [path for path in files if path.suffix.lower() in endings]
    if not chosen:
        found = sorted({path.suffix.lower() or path.name for path in files})
        shown = f" ({' '.join(found[:SHOWN])}{' …' if len(found) > SHOWN else ''})" if found else ""
        raise EmptyData(
            f"{folder}: found a folder of {len(files)} files{shown} and "
            f"{len(every) - len(files)} folders, expected at least one file that ends in "
            f"{' '.join(endings)}. Folders within it are not looked into: give one of them."
        )
    return chosen


def join_files(
    folder: Path,
    files: Sequence[Path],
    read: Callable[..., ReadResult],
    on_problem: str,
) -> ReadResult:
    """Structures of all files, in order.

    Args:
        folder: Where they are, for messages.
        files: What to read.
        read: Reads one file; takes `on_problem` by name.
        on_problem: `skip` leaves out a file that cannot be read at all, too.

    Raises:
        DataError: The first problem, where `on_problem` is `stop`; or if files differ in dimension,
            or only some have elements.
        EmptyData: If no structure is left.
    """
    parts: list[Clouds] = []
    skipped: list[str] = []
    first = None
    for path in files:
        try:
            result = read(path, on_problem=on_problem)
        except DataError as error:
            if on_problem == "stop":
                raise
            skipped.append(str(error))
            continue
        skipped += result.skipped
        parts.append(result.clouds)
        first = first or path
        _require_alike(parts[0], first, result.clouds, path)
    if not parts:
        raise EmptyData(
            f"{folder}: found {len(files)} files of structures, none of them usable, expected at "
            f"least 1. The first: {skipped[0]}"
        )
    return ReadResult(Clouds.join(parts), skipped)


def _require_alike(one: Clouds, first: Path, other: Clouds, path: Path) -> None:
    if one.dimension != other.dimension:
        raise DataError(
            f"{path}: found points in {other.dimension} dimensions, but {first.name} in the same "
            f"folder has {one.dimension}; expected one dimension. Read them one by one."
        )
    if (one.numbers is None) != (other.numbers is None):
        known, unknown = (
            ("no elements", "has") if other.numbers is None else ("elements", "has none")
        )
        raise DataError(
            f"{path}: found {known}, but {first.name} in the same folder {unknown}; expected "
            "elements in all files or in none. Read them one by one."
        )
