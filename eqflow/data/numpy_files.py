"""Arrays of `.npy` and `.npz` files, by what their headers promise; nothing is unpickled.

A header is read before its array is made: one that promises more than the file holds is refused,
and so is an archive that unpacks to more than the memory that is free (`eqflow.data.limits`).
"""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from eqflow.data.limits import LARGEST_RATIO, require_memory, shown_bytes
from eqflow.data.text import require_content
from eqflow.errors import DataError

# What reading a damaged file may raise.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    MemoryError,
    SyntaxError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RuntimeError,  # of which NotImplementedError and RecursionError are
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
MEMBER = ".npy"


class _Objects(Exception):
    """An array of Python objects."""


def load_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name.

    Args:
        path: The file.
        names: Those that are wanted; all where None. Others are not looked at.

    Raises:
        DataError: If it is no such file, is damaged, holds Python objects, or asks for more memory
            than is free.
    """
    head = require_content(path)
    if not head.startswith(b"PK"):
        raise DataError(
            f"{path}: found a file that starts with {head[:8]!r}, expected arrays (.npz)."
        )
    arrays, key = {}, ""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                member.filename.removesuffix(MEMBER): member
                for member in archive.infolist()
                if member.filename.endswith(MEMBER)
            }
            if names is not None:
                members = {key: member for key, member in members.items() if key in names}
            _require_possible(members, path)
            for key, member in members.items():
                with archive.open(name=member, mode="r") as file:
                    arrays[key] = _array(file, member.file_size)
    except _Objects as error:
        raise _of_objects(path, key) from error
    except UNREADABLE as error:
        raise _damaged(path, key, error) from error
    return arrays


def load_array(path: Path) -> np.ndarray:
    """The array of an `.npy` file.

    Raises:
        DataError: If it is no such file, is damaged, holds Python objects, or asks for more memory
            than is free.
    """
    head = require_content(path)
    if not head.startswith(np.lib.format.MAGIC_PREFIX):
        raise DataError(
            f"{path}: found a file that starts with {head[:8]!r}, expected an .npy array. "
            "Pickles are never opened: save the positions with numpy.save as floats."
        )
    try:
        size = path.stat().st_size
        require_memory(size, f"{path}: found an array")
        with open(path, "rb") as file:
            return _array(file, size)
    except _Objects as error:
        raise _of_objects(path, "") from error
    except UNREADABLE as error:
        raise _damaged(path, "", error) from error


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """The array of an open `.npy` file of so many bytes."""
    with warnings.catch_warnings():
        # numpy minds how old a header is; it is read or refused all the same.
        warnings.simplefilter("ignore")
        shape, dtype = _promised(file)
        if dtype.hasobject:
            raise _Objects
        # An array of numbers takes a byte an entry at least, so that one of no bytes has none.
        needed = math.prod(shape) * max(dtype.itemsize, 1)
        there = size - file.tell()
        if min(shape, default=0) < 0 or needed > there:
            raise ValueError(
                f"the header promises {list(shape)[:4]} of {dtype}, {shown_bytes(needed)}, of "
                f"which {shown_bytes(max(there, 0))} are there"
            )
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _promised(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that a header promises; the file is then at the first number."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        # The third version differs from the second in the alphabet of names alone.
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _require_possible(members: dict[str, zipfile.ZipInfo], path: Path) -> None:
    """Refuse an archive that says of itself what cannot be, or what memory cannot hold."""
    for key, member in members.items():
        most = member.compress_size
        if member.compress_type == zipfile.ZIP_DEFLATED:
            most = LARGEST_RATIO * most
        is_bounded = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if is_bounded and member.file_size > most:
            raise ValueError(
                f"{key}: {shown_bytes(member.compress_size)} are said to unpack to "
                f"{shown_bytes(member.file_size)}"
            )
    total = sum(member.file_size for member in members.values())
    require_memory(total, f"{path}: found arrays that unpack to a total")


def _of_objects(path: Path, key: str) -> DataError:
    return DataError(
        f"{path}: found Python objects{f' in {key}' if key else ''}, which would have to be "
        "unpickled and never are. Save numbers, for example by numpy.asarray(…, dtype=float); "
        "structures of different sizes as x and ptr."
    )


def _damaged(path: Path, key: str, error: BaseException) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(
        f"{path}: found a damaged file ({reason}{f', in {key}' if key else ''}), expected arrays. "
        "It may be cut off: copy or download it again."
    )
