"""SIGINT and SIGTERM: a long verb finishes what it is at and saves; all others end with one line.

Within `Signals` the first asks to stop, a second leaves at once. Without it a signal is a
`Received`, which `eqflow.cli.main` turns into a line and the exit code 130 or 143.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

from eqflow.errors import ExitCode


class Received(KeyboardInterrupt):
    """A signal that ends the command.

    Attributes:
        number: Which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """The first SIGINT or SIGTERM asks to stop after what is under way; a second leaves at once.

    Where there is nothing to save, the first leaves at once as well. Outside of the main thread,
    which alone is told of signals, nothing happens.

    Args:
        what: Is finished first, for people: "this step".
        may_save: Whether a request to stop is heeded now.
    """

    def __init__(self, what: str, may_save: Callable[[], bool] = lambda: True) -> None:
        self._notice = f"stopping after {what}; once more leaves at once\n".encode()
        self._may_save = may_save
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def received(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def code(self) -> ExitCode:
        """The exit code of the signal that came."""
        return exit_code_of(self.number)

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        second, self.number = self.number is not None, number
        if second or not self._may_save():
            raise Received(number)
        # Printing from a handler may meet a print that it interrupted; the descriptor may not.
        with suppress(OSError):  # who reads it may have gone
            os.write(2, self._notice)


def leave_by_signals() -> None:
    """Make SIGTERM end a command as SIGINT does; said only where eqflow is the whole process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def heed_no_more() -> None:
    """Ignore signals from now on: all is done, and the process ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def exit_code_of(number: int | None) -> ExitCode:
    """What a command ends with after a signal; None stands for that of the keyboard."""
    return ExitCode.TERMINATED if number == signal.SIGTERM else ExitCode.INTERRUPTED


def typed_command() -> str:
    """What was typed: the command that goes on."""
    return shlex.join(["eqflow", *sys.argv[1:]])


def _leave(number: int, frame: FrameType | None) -> None:
    raise Received(number)
