"""Losses that are not finite, and structures that do not fit into memory, while training."""

from __future__ import annotations

import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from processes import eqflow, finish, start, wait_for

from eqflow.train import load
from eqflow.train.checkpoint import newest_state

# A learning rate far too large for maximum likelihood: trial steps of the solver are not finite.
UNSTABLE = [
    "objective=maximum_likelihood",
    "train.learning_rate=3",
    "model.coordinate_range=null",
    "train.schedule=constant",
    "train.steps=60",
    "train.checkpoint_every=5",
    "train.validate_every=50",
]
HOPELESS = [
    "train.learning_rate=10",
    "train.schedule=constant",
    "train.clip=1e9",
    "model.attention=false",
    "model.coordinate_range=null",
    "model.layers=4",
    "train.steps=300",
    "train.checkpoint_every=10",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.particles(tmp_path_factory.mktemp("data") / "data.npy")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, _, err = eqflow(tiny.words(data, folder, *UNSTABLE))
    assert (code, err) == (0, "")
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder).state_dict()


@pytest.mark.fault(
    7,
    "losses that are not finite, ten in a row, by a learning rate far too large",
    "the log names their structures; the run returns to its last good state at half the rate, and "
    "ends with finite weights",
)
def test_a_run_returns_to_good_weights_and_ends(
    whole: Path, data: Path, injected: Callable[[], None]
) -> None:
    log = (whole / "log.txt").read_text()
    returns = [line for line in log.splitlines() if "with half the learning rate" in line]
    assert returns
    for _ in returns:
        injected()
    skipped = next(line for line in log.splitlines() if " skipped: " in line)
    assert f"training structures {data}#" in skipped
    assert all(bool(value.isfinite().all()) for value in tensors(whole).values())
    rates = [float(row.split(",")[2]) for row in _rows(whole)]
    assert rates[-1] == pytest.approx(3 * 0.5 ** len(returns), rel=0.02)


@pytest.mark.fault(
    7,
    "a loss and a gradient that are not finite, five steps in a row",
    "the log says loss, norm and structures of each; weights, average and optimiser stay bitwise",
)
def test_a_skipped_step_is_told_with_its_numbers_and_changes_nothing(
    data: Path, tmp_path: Path, injected: Callable[[], None]
) -> None:
    folder = tmp_path / "run"
    words = [*HOPELESS, "train.checkpoint_every=1", "train.validate_every=100"]
    states = []
    for steps in (1, 6):  # the first step is finite, and far too large
        assert tiny.train(data, folder, *words, f"train.steps={steps}") == 0
        states.append(newest_state(folder / "checkpoints", print))
    before, after = states
    assert before is not None
    assert after is not None
    assert (before["progress"]["skipped"], after["progress"]["skipped"]) == (0, 5)
    assert (before["progress"]["step"], after["progress"]["step"]) == (1, 6)
    compared = 0
    for part in ("weights", "average", "best"):
        assert before[part].keys() == after[part].keys()
        for name, value in before[part].items():
            assert torch.equal(value, after[part][name]), (part, name)
            compared += 1
    for place, values in before["optimizer"]["state"].items():
        for name, value in values.items():
            found = after["optimizer"]["state"][place][name]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(found)), (place, name)
            compared += 1
    assert compared > 50
    log = (folder / "log.txt").read_text()
    for step in range(2, 7):
        line = rf"step {step} skipped: loss \S+, gradient_norm (inf|nan); training structures "
        assert len(re.findall(line + re.escape(f"{data}#"), log)) == 1
        injected()


def _rows(folder: Path) -> list[str]:
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert header.split(",")[2] == "learning_rate"
    return rows


@pytest.mark.slow
@pytest.mark.fault(
    1,
    "`kill -9` around the return to a good state",
    "ends with the same weights, bit for bit",
)
def test_killed_around_a_return_a_run_ends_the_same(
    whole: Path, data: Path, tmp_path: Path, injected: Callable[[], None]
) -> None:
    folder = tmp_path / "run"
    words = tiny.words(data, folder, *UNSTABLE)
    for wait in (0.0, 0.3, 0.6, 0.9, 0.2, 0.5):
        process = start(words)
        wait_for(folder / "metrics.csv", process)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        if finish(process)[0] == -signal.SIGKILL:
            injected()
    code, _, err = eqflow(words)
    assert (code, err) == (0, "")
    for name, value in tensors(whole).items():
        assert torch.equal(value, tensors(folder)[name]), name
    first, second = ((run / "metrics.csv").read_text() for run in (whole, folder))
    assert tiny.without_seconds(first) == tiny.without_seconds(second)


@pytest.mark.slow
@pytest.mark.fault(
    7,
    "losses that are never finite",
    "gives up after three returns with exit code 4; the weights on disk are finite and load",
)
def test_a_hopeless_run_gives_up_with_finite_weights(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, _, err = eqflow(tiny.words(data, folder, *HOPELESS), interpreter=["-O"])
    assert code == 4
    assert "The last good weights" in err
    assert all(bool(value.isfinite().all()) for value in tensors(folder).values())


def limited(megabytes: int) -> Callable[[], None]:
    """For `preexec_fn`: so much address space, and no more."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


@pytest.mark.slow
@pytest.mark.fault(
    13,
    "a training structure that does not fit into memory, in a process limited by the system",
    "its batch is halved down to it, it is left out by name, the others train; exit code 7",
)
def test_a_structure_too_large_is_left_out_and_the_others_train(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    sizes = [3] * 37 + [20_000] * 3
    x = source.normal(size=(sum(sizes), 2)).astype(np.float32)
    data = tmp_path / "data.npz"
    np.savez(data, x=x, ptr=np.cumsum([0, *sizes]))
    folder = tmp_path / "run"
    words = tiny.words(
        data, folder, "train.steps=20", "train.batch_size=40", "data.validation=0.1",
        "data.test=0.1", "objective.coupling=independent",
    )  # fmt: skip
    code, out, err = eqflow(words, preexec_fn=limited(3000))
    assert (code, err) == (7, ""), err
    left_out = out.count("of 20,000 points does not fit into memory and is left out")
    assert 1 <= left_out <= 3
    assert f"left out, as they do not fit into memory: {left_out} training structures" in out
    assert all(bool(value.isfinite().all()) for value in tensors(folder).values())
