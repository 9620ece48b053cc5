"""The table of faults counts what was injected, and shows what failed or was not injected."""

from __future__ import annotations

import pytest
from faults.conftest import Fault, Seen, seen_of, table

GONE = {"setup passed", "call passed", "teardown passed"}


def test_times_are_added_up_and_failures_shown() -> None:
    good, bad = Fault(1, "killed", "ends the same"), Fault(2, "killed in a save", "loads")
    skipped = Fault(6, "full disk", "exit 6")
    lines = table(
        {
            good: [Seen(20, False), Seen(1, False)],
            bad: [Seen(3, False), Seen(4, True)],
            skipped: [Seen(0, False)],
        }
    ).splitlines()
    assert lines[2].endswith("| killed | 21 | ends the same |")
    assert lines[3].endswith("| killed in a save | 7 | **1 tests failed** |")
    assert lines[4].endswith("| full disk | 0 | not injected here: the system does not permit it |")


@pytest.mark.parametrize(
    ("outcomes", "counted", "seen"),
    [
        (GONE, None, Seen(1, False)),
        (GONE, 5, Seen(5, False)),
        (GONE, 0, Seen(0, False)),
        ({"setup skipped", "teardown passed"}, None, Seen(0, False)),
        ({"setup passed", "call skipped", "teardown passed"}, 0, Seen(0, False)),
        ({"setup failed", "teardown passed"}, None, Seen(0, True)),
        ({"setup passed", "call failed", "teardown passed"}, 3, Seen(3, True)),
        ({"setup passed", "call passed", "teardown failed"}, 3, Seen(3, True)),
    ],
)
def test_a_skipped_test_injected_nothing(
    outcomes: set[str], counted: int | None, seen: Seen
) -> None:
    properties = [] if counted is None else [("injected", counted)]
    assert seen_of(outcomes, properties) == seen
