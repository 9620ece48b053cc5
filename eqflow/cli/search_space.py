"""What a search may change: keys of train and where each is looked for.

`[low,high]` is a range, `[low,high,log]` one in which each factor is as likely, and `a|b|c` are
choices. A range of a key that is a whole number holds whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eqflow.cli.words import Key, in_grammar, nearest
from eqflow.errors import UsageError


class Suggests(Protocol):
    """What is used of Optuna's trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number of a range."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """A whole number of a range."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """One of several."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them."""

    low: float
    high: float
    log: bool
    whole: bool

    def suggest(self, trial: Suggests, name: str) -> str:
        """A value as one would type it."""
        if self.whole:
            return str(trial.suggest_int(name, int(self.low), int(self.high), log=self.log))
        return repr(trial.suggest_float(name, self.low, self.high, log=self.log))

    @property
    def examples(self) -> tuple[str, ...]:
        """One value: a number of a range has an effect or none, whichever it is."""
        return (str(int(self.low)) if self.whole else repr(self.low),)


@dataclass(frozen=True)
class Choices:
    """One of several values, as one would type them."""

    values: tuple[str, ...]

    def suggest(self, trial: Suggests, name: str) -> str:
        """A value as one would type it."""
        return trial.suggest_categorical(name, self.values)

    @property
    def examples(self) -> tuple[str, ...]:
        """All of them: by a method or a model others come to have an effect."""
        return self.values


Space = dict[str, Range | Choices]


def parsed(
    texts: Mapping[str, Any], known: Mapping[str, Key], options: Mapping[str, Sequence[str]]
) -> Space:
    """The search space of texts by key.

    Args:
        texts: As typed, or as in a file of `configs/tune`.
        known: Keys of train by name.
        options: What each group may be.

    Raises:
        UsageError: If any is wrong; all are named, a line each.
    """
    space: Space = {}
    problems = []
    for key, text in texts.items():
        try:
            space[key] = _one(key, str(text), known, options)
        except UsageError as error:
            problems.append(f"space.{key}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    return space


def _one(
    key: str, text: str, known: Mapping[str, Key], options: Mapping[str, Sequence[str]]
) -> Range | Choices:
    if key not in known and key not in options:
        raise UsageError(f"there is no key {key!r} of train; {nearest(key, [*known, *options])}")
    if text.startswith("[") and "|" not in text:
        return _range(text, known.get(key))
    values = tuple(part.strip() for part in text.split("|"))
    if len(values) < 2 or len(set(values)) < len(values):
        raise UsageError(
            f"found {text!r}, expected [low,high], [low,high,log], or two or more choices a|b."
        )
    in_grammar([f"{key}={value}" for value in values], known, options)
    return Choices(values)


def _range(text: str, key: Key | None) -> Range:
    if key is None or key.type not in (int, float):
        raise UsageError(f"found the range {text}, expected choices a|b: this key is no number.")
    low, high, *how = [part.strip() for part in text.strip("[]").split(",")] + [""] * 2
    how = [part for part in how if part]
    try:
        first, last = float(low), float(high)
    except ValueError:
        first = last = math.nan
    if how not in ([], ["log"]) or not -math.inf < first < last < math.inf:
        raise UsageError(f"found {text}, expected [low,high] or [low,high,log] with low < high.")
    whole = key.type is int
    if whole and not (first.is_integer() and last.is_integer()):
        raise UsageError(f"found {text}, expected whole numbers, as this key is.")
    if how and first <= 0:
        raise UsageError(f"found {text}, expected low above 0 with log.")
    return Range(first, last, bool(how), whole)
