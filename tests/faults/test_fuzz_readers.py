"""Every reader of a user's file, fuzzed: sound structures or an error of ours, soon and in bounds.

The files are made by `faults.fuzz_targets` and read in a process of its own (`faults.fuzz_worker`)
with a deadline for each and a limit to its memory. What it found once is kept in
`faults.broken_files`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.fuzz_targets import TARGETS
from processes import ROOT, environment, finish, start

WORKER = (str(Path(__file__).with_name("fuzz_worker.py")),)
FAST = {
    "xyz": 60,
    "extxyz": 60,
    "sdf": 40,
    "npz": 60,
    "npy": 60,
    "folder": 20,
    "images": 40,
    "voxels": 30,
    "qm9": 15,
    "graph": 40,
    "planetoid": 5,
    "enf archive": 15,
    "enf folder": 15,
    "weights": 25,
    "formula": 60,
    "properties": 60,
    "space": 40,
}
# Seconds of a slow run for each reader are alike: what costs more gets fewer.
MANY = 500
# Of these all is refused: any other file than the known ones, and most of what is no number.
ALL_REFUSED = ("planetoid",)


def fuzzed(folder: Path, seed: int, counts: dict[str, int]) -> dict[str, dict[str, object]]:
    """What came of so many examples for each reader."""
    words = [str(folder), str(seed), *(f"{name}={count}" for name, count in counts.items())]
    tests = str(Path(__file__).resolve().parents[1])
    process = start(words, program=WORKER, env=environment(PYTHONPATH=f"{ROOT}:{tests}"))
    code, out, err = finish(process)
    # A reader that ends the process leaves the file that did it in the folder of its name.
    left = sorted(path.name for path in folder.iterdir())
    assert code == 0, f"the process ended with {code}; the last files are in {left}: {err[-2000:]}"
    return dict(json.loads(out))


@pytest.mark.fault(10, "a mutated file to any reader", "sound structures, or named and refused")
def test_no_reader_raises_anything_else_hangs_or_eats_memory(
    tmp_path: Path, injected: Callable[[], None]
) -> None:
    report = fuzzed(tmp_path, 0, FAST)
    failures = {name: found["failures"] for name, found in report.items() if found["failures"]}
    assert not failures, failures
    for name, count in FAST.items():
        examples, refused = report[name]["examples"], report[name]["refused"]
        assert examples == count
        assert refused, f"nothing broken among {count} of {name}"
        for _ in range(count):
            injected()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(10, "a mutated file to any reader", "sound structures, or named and refused")
@pytest.mark.parametrize("name", TARGETS)
def test_many_broken_files_do_a_reader_no_harm(
    tmp_path: Path, injected: Callable[[], None], name: str
) -> None:
    count = max(MANY // TARGETS[name].heavy, 12)
    found = fuzzed(tmp_path, 1, {name: count})[name]
    assert not found["failures"], found["failures"]
    assert found["examples"] == count
    assert found["refused"], "nothing broken"
    if name not in ALL_REFUSED:
        assert found["refused"] != count, "nothing is still sound"
    for _ in range(count):
        injected()
