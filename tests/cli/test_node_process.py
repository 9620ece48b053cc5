"""The real command on a graph, in a process of its own that is killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import tiny_nodes

ROOT = Path(__file__).resolve().parents[2]
LONG = ["train.steps=400", "train.checkpoint_every=7", "train.log_every=50"]


def start(words: list[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", "eqflow", *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [0, 1])
def test_killed_at_random_moments_a_run_ends_bitwise_like_the_uninterrupted_one(
    tmp_path: Path, attempt: int
) -> None:
    data, clock = tiny_nodes.graph(tmp_path / "graph.npz"), random.Random(attempt)
    assert tiny_nodes.train(data, tmp_path / "whole", *LONG) == 0
    folder = tmp_path / "run"
    words, kills = tiny_nodes.words(data, folder, *LONG), 0
    for _ in range(5):
        process = start(words)
        deadline = time.monotonic() + 240
        while not (folder / "metrics.csv").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(clock.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=240)
        kills += process.returncode == -signal.SIGKILL
        assert not err
    assert kills
    assert tiny_nodes.train(data, folder, *LONG) == 0
    assert tiny_nodes.tensors(folder) == tiny_nodes.tensors(tmp_path / "whole")
    first, second = ((run / "metrics.csv").read_text() for run in (folder, tmp_path / "whole"))
    assert tiny.without_seconds(first) == tiny.without_seconds(second)
    assert not list(folder.rglob(".eqflow-*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_tells_how_to_go_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    data, folder = tiny_nodes.graph(tmp_path / "graph.npz"), tmp_path / "run"
    words = tiny_nodes.words(data, folder, *LONG, "train.steps=100000")
    process = start(words)
    while not (folder / "metrics.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code
    assert f"eqflow train data.path={data}" in out.splitlines()[-1]
    assert err == "stopping after this step; once more leaves at once\n"
    assert list((folder / "checkpoints").glob("*.pt"))
