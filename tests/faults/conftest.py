"""Faults are counted as they are injected, and `--fault-table=FILE` writes what came of each.

A test says which row of the table it belongs to, what is injected, and what a run does then:

    @pytest.mark.fault(1, "`kill -9` at a random moment of training", "ends bitwise the same")
    def test_…(injected):
        …
        injected()  # once for each time, where there are several

`make faults` puts the table between two lines of `docs/survival.md`; a fault whose test failed
stands there as failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROWS = {
    1: "`kill -9` at any moment, then the same command",
    2: "kill during a save",
    3: "a checkpoint that is truncated, empty, flipped, or another file",
    4: "a pickle in place of a file, and other attacks",
    5: "a checkpoint of another architecture or version",
    6: "disk full, unwritable folder",
    7: "loss or gradient not finite",
    8: "an integration that fails",
    9: "wrong words",
    10: "malformed structures",
    11: "empty file, data set or split",
    12: "one point, coincident, collinear, planar, symmetric clouds",
    13: "too large for memory",
    14: "SIGINT, SIGTERM",
    15: "sampling or scoring interrupted",
    16: "two processes in one place",
    17: "no terminal, closed pipe, strange paths, read-only home",
    18: "a process of a distributed run dies",
}
KEY = "fault"
BEGIN, END = "<!-- faults: written by make faults -->", "<!-- end of faults -->"


class Fault(NamedTuple):
    """A line of the table."""

    row: int
    what: str
    result: str


class Seen(NamedTuple):
    """What came of a test."""

    times: int
    failed: bool


@pytest.fixture
def injected(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Call it each time the fault of the test's mark is injected."""
    times = 0

    def count() -> None:
        nonlocal times
        times += 1

    yield count
    request.node.user_properties.append(("injected", times))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", help="page into which the table of injected faults goes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers(KEY):
            row, what, result = mark.args
            assert row in ROWS, f"{item.nodeid}: {row} is no row of the table of faults"
            item.user_properties.append((KEY, [row, what, result]))


# What was seen of each test, by its name: with workers too, where the table is written.
_OUTCOMES: dict[str, set[str]] = {}
_PROPERTIES: dict[str, list[tuple[str, object]]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _OUTCOMES.setdefault(report.nodeid, set()).add(f"{report.when} {report.outcome}")
    _PROPERTIES[report.nodeid] = report.user_properties


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--fault-table", default=None)
    if path is None or hasattr(session.config, "workerinput"):
        return
    lines: dict[Fault, list[Seen]] = {}
    for name, outcomes in _OUTCOMES.items():
        seen = seen_of(outcomes, _PROPERTIES[name])
        for key, value in _PROPERTIES[name]:
            if key == KEY:
                lines.setdefault(Fault(*value), []).append(seen)  # type: ignore[misc]
    page = Path(path).read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    Path(path).write_text(f"{before}{BEGIN}\n\n{table(lines)}\n{END}{after}", encoding="utf-8")


def seen_of(outcomes: set[str], properties: Sequence[tuple[str, object]]) -> Seen:
    """What came of a test: how often its fault was injected, and whether it failed.

    A test that was skipped, in its setup too, injected nothing; one that does not count did so
    once, if it came to its end.
    """
    failed = any(outcome.endswith("failed") for outcome in outcomes)
    counted = [int(str(value)) for key, value in properties if key == "injected"]
    if counted:
        return Seen(counted[-1], failed)
    return Seen(int("call passed" in outcomes), failed)


def table(lines: dict[Fault, list[Seen]]) -> str:
    """Markdown with a line a fault, those of one row together."""
    text = [
        "| | fault | injected | times | what comes of it |",
        "|---|---|---|---|---|",
    ]
    for row, name in ROWS.items():
        for place, (fault, found) in enumerate(
            (fault, found) for fault, found in sorted(lines.items()) if fault.row == row
        ):
            times = sum(seen.times for seen in found)
            wrong = sum(seen.failed for seen in found)
            result = fault.result if times else "not injected here: the system does not permit it"
            result = f"**{wrong} tests failed**" if wrong else result
            first = (f"{row}", name) if place == 0 else ("", "")
            text.append(f"| {first[0]} | {first[1]} | {fault.what} | {times:,} | {result} |")
    return "\n".join(text) + "\n"
