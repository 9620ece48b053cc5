"""The table of faults counts what was injected, and shows what failed."""

from __future__ import annotations

from faults.conftest import Fault, table


def test_times_are_added_up_and_failures_shown() -> None:
    good, bad = Fault(1, "killed", "ends the same"), Fault(2, "killed in a save", "loads")
    lines = table({good: [(20, False), (1, False)], bad: [(3, False), (4, True)]}).splitlines()
    assert lines[2].endswith("| killed | 21 | ends the same |")
    assert lines[3].endswith("| killed in a save | 7 | **1 tests failed** |")
