"""Lines of a text with their numbers, and the opening of files that may be something else."""

from __future__ import annotations

import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from eqflow.data.limits import LONGEST_LINE
from eqflow.errors import DataError, EmptyData, MalformedRecord

# A pickle of protocol 2 and later says so; older ones begin with a name, or an empty container.
_PICKLE = re.compile(
    rb"\x80[\x00-\x08]|c(?:_?_?[a-z0-9_]*builtin[a-z_]*|posix|nt|os|sys|copy_?reg|subprocess|"
    rb"[a-z_]+(?:\.\w+)+|numpy|torch)\n\w+\n|\((?:dp|lp|dq|lq)|[}\])]q[\x00-\xff]"
)
_BINARY = {
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a numpy array",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
}


class Lines:
    """Lines of a text, numbered from 1, that can be given back.

    Args:
        lines: The lines, with or without their line ends.
        name: What the text is called in messages.
    """

    def __init__(self, lines: Iterable[str], name: str) -> None:
        self.name = name
        self.number = 1
        self._ahead: deque[str] = deque()
        self._lines = iter(lines)

    @property
    def here(self) -> str:
        """`name:number` of the next line."""
        return f"{self.name}:{self.number}"

    def take(self, count: int) -> list[str]:
        """The next lines, fewer than `count` at the end of the text."""
        taken = [self._ahead.popleft() for _ in range(min(count, len(self._ahead)))]
        taken.extend(islice(self._lines, count - len(taken)))
        self.number += len(taken)
        return taken

    def give_back(self, lines: list[str]) -> None:
        """Undo the taking of `lines`, which were the last ones taken."""
        self._ahead.extendleft(reversed(lines))
        self.number -= len(lines)

    def peek(self) -> str | None:
        """The next line, or None at the end."""
        if not self._ahead:
            self._ahead.extend(islice(self._lines, 1))
        return self._ahead[0] if self._ahead else None

    def skip_until(self, wanted: Callable[[str], bool]) -> None:
        """Drop lines until the next one is wanted, or the end."""
        while (line := self.peek()) is not None and not wanted(line):
            self.take(1)


@contextmanager
def open_lines(path: Path) -> Iterator[Lines]:
    """The lines of a UTF-8 file.

    Bytes that are no UTF-8 become replacement characters: harmless in a comment, and anywhere else
    the parser refuses them with the number of their line.

    Raises:
        DataError: If the file cannot be read, or is a web page or a Git LFS pointer.
        EmptyData: If it is empty.
        DataError: If it is no text but a file of another kind.
        MalformedRecord: While lines are taken, at one of more than `LONGEST_LINE` characters.
    """
    head = require_content(path)
    if kind := next((kind for start, kind in _BINARY.items() if head.startswith(start)), None):
        raise DataError(
            f"{path}: found {kind}, expected a text. Unpack it, or give it the ending it has."
        )
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        yield Lines(_bounded(file, path), str(path))


def _bounded(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a file, of which none is longer than memory should hold."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise MalformedRecord(
                f"{path}:{number}: found a line of more than {LONGEST_LINE:,} characters, expected "
                "a text with line ends. It may be another kind of file; where the line is a "
                "comment, shorten it."
            )
        yield line


def require_content(path: Path) -> bytes:
    """The first bytes of a file, which is neither empty nor a stand-in for another.

    Raises:
        DataError: If the file cannot be read, is a pipe or a device, or is a web page or a Git LFS
            pointer.
        EmptyData: If it is empty.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            # Opening a pipe waits for who writes to it, and a device may never end.
            raise DataError(
                f"{path}: found a pipe or device, expected a file. Write its content to a file "
                "first."
            )
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}). Check its path and permissions."
        ) from error
    if not head:
        raise EmptyData(f"{path}: found an empty file (0 bytes), expected structures.")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise DataError(
            f"{path}: found a web page, expected structures. The download was answered by a page "
            "instead of the file: download it again, from a direct link."
        )
    if is_pickle(head):
        raise DataError(
            f"{path}: found a pickle, which is never opened because it can run code; expected "
            "structures. Where you trust it, convert it where it was made: numpy.savez of plain "
            "arrays, or Clouds.write."
        )
    if start.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path}: found a Git LFS pointer, expected the file it points to. "
            "Run `git lfs pull` where it came from."
        )
    return head


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins like this is a pickle; never wrong about new ones, for messages.

    What is safe does not rest on it: nothing is unpickled, whatever it looks like.
    """
    return _PICKLE.match(head) is not None


def shown(line: str) -> str:
    """A line as messages show it: quoted, without its end, cut to 60 characters."""
    line = line.rstrip("\r\n")
    return repr(line if len(line) <= 60 else line[:59] + "…")
