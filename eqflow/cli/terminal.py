"""What people see while a verb runs: plain lines, and on a terminal one line of progress."""

from __future__ import annotations

import sys
import time


class Terminal:
    """Lines on standard output; progress is redrawn in place, and only on a terminal."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = 0
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """Print one line."""
        self._clear()
        print(text, flush=True)

    def progress(self, text: str) -> None:
        """Replace the line of progress; nothing where output is not a terminal."""
        if self._live:
            print(f"\r{text.ljust(self._shown)}", end="", flush=True)
            self._shown = len(text)

    def counted(self, done: int, total: int, what: str) -> None:
        """Progress of a count, with rate and time left."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = done / elapsed
        left = duration((total - done) / rate) if done else "…"
        self.progress(f"{done:,}/{total:,} {what} · {rate:.3g}/s · {left} left")

    def _clear(self) -> None:
        if self._shown:
            print("\r" + " " * self._shown + "\r", end="")
            self._shown = 0


def duration(seconds: float) -> str:
    """Seconds in words people read: `42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
