"""Lines of a text with their numbers, and the opening of files that may be something else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from eqflow.errors import DataError, EmptyData


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
    """
    require_content(path)
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        yield Lines(file, str(path))


def require_content(path: Path) -> bytes:
    """The first bytes of a file, which is neither empty nor a stand-in for another.

    Raises:
        DataError: If the file cannot be read, or is a web page or a Git LFS pointer.
        EmptyData: If it is empty.
    """
    try:
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
    if start.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path}: found a Git LFS pointer, expected the file it points to. "
            "Run `git lfs pull` where it came from."
        )
    return head


def shown(line: str) -> str:
    """A line as messages show it: quoted, without its end, cut to 60 characters."""
    line = line.rstrip("\r\n")
    return repr(line if len(line) <= 60 else line[:59] + "…")
