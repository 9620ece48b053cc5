"""Every error eqflow raises on purpose, and the exit code each one ends a command with.

A message says where, what was found, what is expected and what to do. Code 1 is never raised on
purpose: it means a bug.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every verb."""

    DONE = 0
    BUG = 1
    USAGE = 2
    DATA = 3
    NUMERICAL = 4
    MEMORY = 5
    STORAGE = 6
    PARTIAL = 7
    INTERRUPTED = 130
    TERMINATED = 143


class EqflowError(Exception):
    """Base of all errors with a message meant for the user."""

    exit_code: ExitCode = ExitCode.BUG


class UsageError(EqflowError):
    """A wrong key, type, range or combination of options."""

    exit_code = ExitCode.USAGE


class ShapeError(UsageError, ValueError):
    """A tensor whose shape, dtype or device does not fit the others."""


class NoDensity(UsageError, AttributeError):
    """What only a density can do, asked of a model that is none."""


class DataError(EqflowError):
    """Input data that cannot be used as it is."""

    exit_code = ExitCode.DATA


class MalformedRecord(DataError):
    """A record of a file that does not follow its format; the message starts with `file:line`."""


class UnknownElement(DataError):
    """An element that is no element, or that the model was not trained on."""


class EmptyData(DataError):
    """A file, data set or split without a single structure."""


class CheckpointError(DataError):
    """A file that is no weights or state, is damaged, or is of another architecture."""


class NumericalError(EqflowError):
    """A computation whose result cannot be trusted."""

    exit_code = ExitCode.NUMERICAL


class NotCentered(NumericalError):
    """Positions whose centre of mass is not at the origin where a density needs it there."""


class DegenerateFrame(NumericalError):
    """A cloud without unique principal axes, so that an average over them means nothing."""


class SolverFailed(NumericalError):
    """An integration that ended before its last time."""


class MemoryExhausted(EqflowError):
    """A single item that does not fit into memory."""

    exit_code = ExitCode.MEMORY


class StorageError(EqflowError):
    """A folder or file that cannot be written."""

    exit_code = ExitCode.STORAGE


class ProcessLost(EqflowError):
    """Another process of a distributed run is gone, or does not answer; the run can go on later."""

    exit_code = ExitCode.TERMINATED


def printable(text: str) -> str:
    r"""A text as a terminal or a log may show it: what would steer a terminal is spelled out.

    Names of files, elements and comments come from others. Control characters in them could move
    the cursor, hide lines, or change the title of a window; marks of direction could turn a name
    around. Lines stay lines. Bytes of a path that are no UTF-8 are spelled out as well.

    >>> printable("name\x1b[2J\tα")
    'name\\x1b[2J\tα'
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode()
        for each in text
    )


def is_want_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice.

    PyTorch says CUDA's want of memory by a class of its own, and the CPU's in words.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "not enough memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
