"""Several processes train one run: they agree, and one that is lost takes nothing with it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_nodes
import torch
from faults.ranks import FAILING, start_all
from processes import eqflow, finish, wait_for

from eqflow.train.checkpoint import newest_state

MANY = 100_000
WORDS = ["train.checkpoint_every=5", "train.validate_every=10", "train.log_every=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.particles(tmp_path_factory.mktemp("data") / "data.npy")


def words(data: Path, folder: Path, *more: str) -> list[str]:
    return tiny.words(data, folder, *WORDS, *more)


def step_of(folder: Path) -> int:
    state = newest_state(folder / "checkpoints", lambda line: None)
    assert state is not None
    return int(state["progress"]["step"])


@pytest.mark.fault(
    18,
    "a process of two is killed, or stopped and never answers",
    "the other ends in time with exit code 143 and the last step saved; one process goes on",
)
@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_ends_the_others_in_time_and_one_alone_goes_on(
    data: Path, tmp_path: Path, number: signal.Signals, lost: int, injected: Callable[[], None]
) -> None:
    folder = tmp_path / "run"
    ranks = start_all(words(data, folder, f"train.steps={MANY}", "train.wait_minutes=0.05"), 2)
    other = ranks[1 - lost]
    wait_for(folder / "weights.safetensors", ranks[0])
    began = time.monotonic()
    ranks[lost].send_signal(number)
    injected()
    code, _, err = finish(other)
    assert time.monotonic() - began < 30
    ranks[lost].kill()
    finish(ranks[lost])
    assert code == 143, err
    assert "another process of this run is gone or does not answer" in err
    assert "Traceback" not in err
    reached = step_of(folder)
    assert reached > 0
    code, out, err = eqflow(words(data, folder, f"train.steps={reached + 3}"))
    assert (code, err) == (0, "")
    assert f"resumed at step {reached:,}" in out


@pytest.mark.slow
@pytest.mark.fault(
    18,
    "SIGTERM to one process of two",
    "both finish the step and end; the first saves, and prints how to go on",
)
def test_a_signal_to_one_process_stops_all_after_the_step(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = start_all(words(data, folder, f"train.steps={MANY}"), 2)
    wait_for(folder / "weights.safetensors", ranks[0])
    ranks[1].send_signal(signal.SIGTERM)
    ends = [finish(rank) for rank in ranks]
    assert ends[1][0] == 143
    assert ends[0][0] in (130, 143)
    assert "stopped and saved" in ends[0][1]
    assert step_of(folder) > 0


@pytest.mark.slow
def test_two_processes_take_the_steps_that_one_would_take_of_the_same_gradient(
    data: Path, tmp_path: Path
) -> None:
    """Shares are of the same structures; what is drawn for them differs, and so do the figures."""
    folder = tmp_path / "two"
    ends = [finish(rank) for rank in start_all(words(data, folder, "train.steps=40"), 2)]
    assert [end[0] for end in ends] == [0, 0], ends
    assert ends[1][1] == ""
    alone = tmp_path / "one"
    assert eqflow(words(data, alone, "train.steps=40"))[0] == 0
    losses = [
        torch.tensor([float(row.split(",")[2]) for row in rows.splitlines()[1:]]).mean()
        for rows in ((run / "metrics.csv").read_text() for run in (folder, alone))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)


@pytest.mark.slow
@pytest.mark.fault(
    18,
    "a step that fails in one process of two",
    "both skip it, and stay in step with each other to the end",
)
def test_a_step_that_fails_in_one_process_is_skipped_by_all(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = start_all(words(data, folder, "train.steps=8"), 2, program=("-c", FAILING))
    ends = [finish(rank) for rank in ranks]
    assert [end[0] for end in ends] == [0, 0], ends
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["skipped_steps"]) == (8, 1)


@pytest.mark.slow
def test_one_graph_is_not_shared(tmp_path: Path) -> None:
    data = tiny_nodes.graph(tmp_path / "graph.npz")
    words = tiny_nodes.words(data, tmp_path / "run")
    ends = [finish(rank) for rank in start_all(words, 2)]
    assert [end[0] for end in ends] == [2, 2]
    assert "Start one process" in ends[0][2]
    assert not (tmp_path / "run").exists()
