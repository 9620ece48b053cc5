"""What a look at one thing found: how bad it is, of which kind, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eqflow.errors import ExitCode

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        grade: `ok`; `warn` where something cannot be done that not everybody needs, or may become
            too little; `FAIL` where results cannot be trusted or runs cannot be kept.
        about: The thing that was looked at.
        text: What was found, and what to do unless it is fine.
        code: The exit code that a failure of this kind ends the doctor with.
    """

    grade: str
    about: str
    text: str
    code: ExitCode

    def __str__(self) -> str:
        return f"{self.grade:<5}{self.about:<22} {self.text}"


Look = Callable[[], Iterator[Finding]]


def carefully(look: Look, about: str, code: ExitCode) -> Iterator[Finding]:
    """What a look finds; where it does not even come to its end, that is a failure to report.

    Args:
        look: What looks.
        about: What it looks at.
        code: The kind of failure that its own would be.
    """
    try:
        yield from look()
    except Exception as error:  # a broken installation raises whatever it likes
        said = (str(error).strip().splitlines() or [""])[0]
        yield Finding(FAIL, about, f"raised {type(error).__name__}: {said[:200]}", code)
