"""What people see while a verb runs: plain lines, and on a terminal one line of progress."""

from __future__ import annotations

import io
import os
import sys
import time
from contextlib import suppress
from typing import TextIO

from eqflow.errors import printable


class Terminal:
    """Lines on standard output; progress is redrawn in place, and only on a terminal."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = 0
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """Print one line; where nobody reads any more, the work goes on in silence."""
        self._clear()
        self._print(f"{printable(text)}\n")

    def progress(self, text: str) -> None:
        """Replace the line of progress; nothing where output is not a terminal."""
        if self._live:
            text = printable(text)
            self._print(f"\r{text.ljust(self._shown)}")
            self._shown = len(text)

    def counted(self, done: int, total: int, what: str, earlier: int = 0) -> None:
        """Progress of a count, of which a part was done `earlier`, with rate and time left."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (done - earlier) / elapsed
        left = duration((total - done) / rate) if rate else "…"
        self.progress(f"{done:,}/{total:,} {what} · {rate:.3g}/s · {left} left")

    def _clear(self) -> None:
        if self._shown:
            self._print("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _print(self, text: str) -> None:
        try:
            print(text, end="", flush=True)
        except OSError:  # nobody reads, or the disk of who does is full
            abandon_output()


class Quiet(Terminal):
    """A terminal whose lines are but progress: for one of many runs."""

    def line(self, text: str) -> None:
        """Show one line until the next."""
        self.progress(text[:100])


class Silent(Terminal):
    """No lines at all: for one of many processes, of which another speaks."""

    def line(self, text: str) -> None:
        """Say nothing."""

    def progress(self, text: str) -> None:
        """Say nothing."""


def abandon_output(stream: TextIO | None = None) -> None:
    """Send what is still to be printed nowhere: who read it, or `stream`, has left.

    What is no file of the system, as in a notebook, is left alone.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (sys.stdout if stream is None else stream).fileno())
        os.close(nowhere)


def always_printable() -> None:
    """Let standard output take every letter, and be there even where it was closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a file that is opened later must not become standard output
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale may know no letters of ours


def duration(seconds: float) -> str:
    """Seconds in words people read: `42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
