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
from faults.ranks import FAILING, STEPS, TOO_LARGE, Fixed, start_all
from processes import ROOT, eqflow, finish, wait_for

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
    "the other ends in time with exit code 143; the first saves the last whole step, and one "
    "process goes on",
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
    often = ["train.checkpoint_every=20", f"train.steps={MANY}", "train.wait_minutes=0.05"]
    ranks = start_all(words(data, folder, *often), 2)
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
    if lost == 1:  # the first saves the last whole step, which checkpoints need not be at
        assert f"step {reached:,}, which is saved" in err
    else:
        assert reached % 20 == 0
        assert "which is saved" not in err
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
def test_two_processes_take_the_steps_of_one() -> None:
    ranks = start_all([str(ROOT / "tests")], 2, program=("-c", STEPS))
    ends = [finish(rank) for rank in ranks]
    assert [end[0] for end in ends] == [0, 0], ends
    first, second = (json.loads(end[1]) for end in ends)
    assert first == second
    alone = tiny.trainer(batch_size=5)
    alone.objective = Fixed()
    for _ in range(5):
        loss = alone.step()["loss"]
    assert first[0] == pytest.approx(loss, rel=1e-5)
    for found, expected in zip(first[1:], alone.flow.state_dict().values(), strict=True):
        torch.testing.assert_close(torch.tensor(found).to(expected), expected)


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
@pytest.mark.fault(
    13,
    "a training structure that the memory of either of two processes does not hold",
    "both leave it out, the first names it once; exit code 7",
)
def test_what_does_not_fit_one_process_is_left_out_by_all(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = start_all(words(data, folder, "train.steps=12"), 2, program=("-c", TOO_LARGE))
    ends = [finish(rank) for rank in ranks]
    assert ends[0][0] == 7, ends
    assert ends[0][1].count("training structure 7 (") == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["skipped_steps"], summary["left_out"]) == (12, 0, 1)
    state = newest_state(folder / "checkpoints", lambda line: None)
    assert state is not None
    assert state["progress"]["left_out"] == [7]


@pytest.mark.slow
def test_one_graph_is_not_shared(tmp_path: Path) -> None:
    data = tiny_nodes.graph(tmp_path / "graph.npz")
    words = tiny_nodes.words(data, tmp_path / "run")
    ends = [finish(rank) for rank in start_all(words, 2)]
    assert [end[0] for end in ends] == [2, 2]
    assert "Start one process" in ends[0][2]
    assert not (tmp_path / "run").exists()
