"""A command that is stopped before it has begun."""

from __future__ import annotations

import signal

import pytest
from processes import eqflow

# A signal comes while the command is still importing.
INTERRUPTED = """
import os, sys
from eqflow.__main__ import main

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "eqflow.cli.main":
            os.kill(os.getpid(), int(sys.argv[1]))

sys.meta_path.insert(0, Interrupts())
sys.exit(main())
"""


@pytest.mark.fault(
    14,
    "a signal while the command is still being imported",
    "a line, and the exit code of the signal; nothing has begun",
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_first_seconds_is_told_in_a_line(number: int, code: int) -> None:
    found, _, err = eqflow([str(int(number)), "train"], program=("-c", INTERRUPTED))
    assert (found, err) == (code, "eqflow: stopped before it had begun\n")
