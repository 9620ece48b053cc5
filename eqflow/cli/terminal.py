"""What people see while a verb runs: plain lines, and on a terminal one line of progress."""

from __future__ import annotations

import os
import sys
import time


class Terminal:
    """Lines on standard output; progress is redrawn in place, and only on a terminal."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = 0
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """Print one line; where nobody reads any more, the work goes on in silence."""
        self._clear()
        self._print(f"{text}\n")

    def progress(self, text: str) -> None:
        """Replace the line of progress; nothing where output is not a terminal."""
        if self._live:
            self._print(f"\r{text.ljust(self._shown)}")
            self._shown = len(text)

    def counted(self, done: int, total: int, what: str) -> None:
        """Progress of a count, with rate and time left."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = done / elapsed
        left = duration((total - done) / rate) if done else "…"
        self.progress(f"{done:,}/{total:,} {what} · {rate:.3g}/s · {left} left")

    def _clear(self) -> None:
        if self._shown:
            self._print("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _print(self, text: str) -> None:
        try:
            print(text, end="", flush=True)
        except BrokenPipeError:
            abandon_output()


class Quiet(Terminal):
    """A terminal whose lines are but progress: for one of many runs."""

    def line(self, text: str) -> None:
        """Show one line until the next."""
        self.progress(text[:100])


def abandon_output() -> None:
    """Send what is still to be printed nowhere: the reader of standard output has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def duration(seconds: float) -> str:
    """Seconds in words people read: `42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
