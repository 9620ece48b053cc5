"""`kill -9` at any moment of training, then the same command: nothing is lost, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from processes import finish, start, wait_for

LONG = [
    "train.steps=200",
    "train.checkpoint_every=7",
    "train.log_every=3",
    "train.validate_every=50",
]


def tensors(folder: Path) -> bytes:
    content = (folder / "weights.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.fault(
    1,
    "`kill -9` at a random moment of training",
    "the same command ends with bitwise the same weights and metrics",
)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_ends_bitwise_like_the_uninterrupted_one(
    tmp_path: Path, kills: int, injected: Callable[[], None]
) -> None:
    data, whole = tiny.particles(tmp_path / "data.npy"), tmp_path / "whole"
    folder, clock = tmp_path / "run", random.Random(kills)
    steps = "train.steps=3000" if kills > 1 else "train.steps=200"
    words = tiny.words(data, folder, *LONG, steps)
    assert tiny.train(data, whole, *LONG, steps) == 0
    killed = 0
    while killed < kills:
        process = start(words)
        # Now and then also while the process starts, and reads.
        if killed % 4 == 3:
            time.sleep(clock.uniform(0.0, 4.0))
        else:
            wait_for(folder / "metrics.csv", process)
            time.sleep(clock.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        code, _, err = finish(process)
        assert not err
        if code == 0:
            assert killed > kills // 2, "the run ended before it could be killed often"
            break
        assert code == -signal.SIGKILL
        killed += 1
        injected()
    code, _, err = finish(start(words))
    assert (code, err) == (0, "")
    assert tensors(folder) == tensors(whole)
    first, second = ((run / "metrics.csv").read_text() for run in (folder, whole))
    assert tiny.without_seconds(first) == tiny.without_seconds(second)
    assert not list(tmp_path.rglob(".eqflow-*"))
