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
# Limit and use of a container, in version 2 of control groups and in version 1.
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def free_memory() -> int | None:
    """Bytes of memory that this process may still take; None where the system does not say.

    The least of what the machine has, of what its container leaves, and of the process's own limit
    of addresses.
    """
    found = [_of_machine(), *(_left(*group) for group in _GROUPS)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
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


def _left(limit: Path, used: Path) -> int | None:
    """What a container leaves; None where there is none, or it has no limit ("max")."""
    try:
        return max(int(limit.read_text("ascii")) - int(used.read_text("ascii")), 0)
    except (OSError, ValueError):
        return None
