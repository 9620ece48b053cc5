"""How much a file may ask for before anything is read of it.

A file that is damaged, or made to do harm, promises more than it holds: an array of 10¹⁵ bytes, an
archive of a megabyte that unpacks to a terabyte, a line without an end. What is promised is held
against what is there, and against the memory that is free.

| limit | of |
|---|---|
| `LONGEST_LINE` characters | a line of a text; the comments of extended XYZ hold whole matrices |
| the bytes that are there | an array of a file that is not compressed |
| `LARGEST_RATIO` times those bytes | what DEFLATE (zip, gzip) unpacks |
| the memory that is free | everything that is unpacked of one file |
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from eqflow.errors import DataError

LONGEST_LINE = 1 << 24
# A byte of DEFLATE stands for no more than 1032 (RFC 1951: 258 bytes take at least 2 bits).
LARGEST_RATIO = 1032

_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")
_GROUPS = Path("/sys/fs/cgroup")
# Limit, use and figures of a container, in version 2 of control groups and in version 1.
_VERSIONS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
# What the system keeps of files that were read, and gives up before it refuses memory: those read
# once and those read again. Version 1 says "total_" where groups below are counted too.
_CACHED = {f"{total}{kind}_file" for total in ("", "total_") for kind in ("inactive", "active")}


def free_memory() -> int | None:
    """Bytes of memory that this process may still take; None where the system does not say.

    The least of what the machine has, of what its container leaves, and of the process's own limit
    of addresses.
    """
    found = [_of_machine(), *(_left(*(_GROUPS / name for name in names)) for names in _VERSIONS)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(max(soft - _addresses(), 0))
    known = [value for value in found if value is not None]
    return min(known) if known else None


def require_memory(needed: int, what: str) -> None:
    """Refuse what does not fit into the memory that is free.

    Args:
        needed: Bytes.
        what: The file, and what of it needs them.

    Raises:
        DataError: If it does not fit.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise DataError(
            f"{what} of {shown_bytes(needed)}, expected at most the {shown_bytes(free)} of memory "
            "that are free. Divide the file, or use a machine with more memory."
        )


def shown_bytes(count: int) -> str:
    """A number of bytes for people.

    >>> shown_bytes(999), shown_bytes(15_000_000_000)
    ('999 bytes', '15 GB')
    """
    if count < 1000:
        return f"{count} bytes"
    value, names = float(count), iter(("kB", "MB", "GB", "TB", "PB"))
    name = ""
    while value >= 1000 and (following := next(names, "")):
        value, name = value / 1000, following
    return f"{value:,.3g} {name}" if value < 1000 else f"{value:,.0f} {name}"


def _of_machine() -> int | None:
    try:
        for line in _MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _left(limit: Path, used: Path, figures: Path) -> int | None:
    """What a container leaves; None where there is none, or it has no limit ("max").

    Its use counts the files that the system keeps: after gigabytes were read it is near the limit,
    and yet nearly all of it is free.
    """
    try:
        taken = int(used.read_text("ascii")) - _cached(figures)
        return max(int(limit.read_text("ascii")) - max(taken, 0), 0)
    except (OSError, ValueError):
        return None


def _cached(figures: Path) -> int:
    """Bytes of files that a container keeps in memory; 0 where it does not say."""
    try:
        lines = [line.split() for line in figures.read_text("ascii").splitlines()]
        found = {name: int(value) for name, value in lines if name in _CACHED}
    except (OSError, ValueError):
        return 0
    below = {name: value for name, value in found.items() if name.startswith("total_")}
    return sum((below or found).values())


def _addresses() -> int:
    """Bytes of addresses that this process has taken; 0 where the system does not say."""
    try:
        return int(_STATM.read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
