"""What `import eqflow` costs, and what is there."""

from __future__ import annotations

import subprocess
import sys

import pytest
from processes import ROOT, environment

import eqflow


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_importing_the_package_waits_for_nothing_heavy() -> None:
    found = run("import eqflow, sys; print('torch' in sys.modules, eqflow.__version__)")
    assert found.stdout.split() == ["False", eqflow.__version__]


@pytest.mark.parametrize("name", sorted(eqflow.PARTS))
def test_every_part_is_there_when_it_is_asked_for(name: str) -> None:
    assert name in dir(eqflow)
    assert getattr(eqflow, name) is eqflow.PARTS[name]()


def test_what_is_no_part_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'flow'"):
        _ = eqflow.flow
