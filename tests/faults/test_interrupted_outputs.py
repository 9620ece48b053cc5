"""`eqflow sample` and `eqflow score` killed at any moment: the same command goes on.

Runs are forked from a process that has imported everything, see `forked_outputs`, so that they can
be killed often; the command typed anew each time is in `test_interrupted_commands.py`.
"""

from __future__ import annotations

import base64
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from processes import environment

HERE = Path(__file__).resolve().parent
# Batches are so short that a file which is written whole would be written once, at the end.
HASTY = [["eqflow.cli.journal", "SECONDS", 0.0], ["eqflow.cli.journal", "SHARE", 10.0]]
SMALL_BATCHES = [["eqflow.cli.score", "BATCH", 4]]

Asked = Callable[[Sequence[int | str]], dict[str, Any]]


class Interrupted:
    """A command that is killed again and again.

    Attributes:
        whole: What the undisturbed command wrote.
        said: What it printed, from its second line on.
        points: Where it may die.
    """

    def __init__(self, words: list[str], out: Path, setup: list[list[Any]]) -> None:
        out.parent.mkdir()
        job = {
            "words": [*words, f"out={out}"],
            "out": str(out),
            "printed": str(out.parent.with_suffix(".txt")),
            "setup": [*HASTY, *setup],
        }
        paths = f"{HERE}:{HERE.parent}:{environment()['PYTHONPATH']}"
        self.out = out
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "forked_outputs.py"), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(PYTHONPATH=paths),
        )
        found = self._answer()
        assert found["code"] == found["first"]["code"] == 0, found["first"]["printed"]
        assert found["names"] == [out.name]
        assert found["content"] == found["first"]["content"]
        self.whole = base64.b64decode(found["content"])
        self.said = found["first"]["printed"].splitlines()[1:]
        self.points = found["points"]

    def killed(self, deaths: Sequence[int | str]) -> dict[str, Any]:
        """What comes of the command when it dies like this, one time after another."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(deaths)) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def assert_goes_on(self, deaths: Sequence[int | str]) -> int:
        """It ends with the file and the last lines it would have ended with; how often it died."""
        found = self.killed(deaths)
        assert found["code"] == 0, found["printed"]
        assert found["names"] == [self.out.name]
        assert base64.b64decode(found["content"]) == self.whole
        said = found["printed"].splitlines()[1:]
        assert said[-len(self.said) :] == self.said
        for death in found["deaths"]:
            if death["content"] is not None:
                self.assert_valid(base64.b64decode(death["content"]))
        return sum(death["code"] == -9 for death in found["deaths"])

    def assert_valid(self, content: bytes) -> None:
        """What is in the file under way is a part of what will be."""
        if self.out.suffix == ".csv":
            rows = content.decode().splitlines()
            assert rows[0] == self.whole.decode().splitlines()[0]
            assert set(rows) <= set(self.whole.decode().splitlines())
        elif self.out.suffix == ".npz":
            some, all_ = (np.load(io.BytesIO(each)) for each in (content, self.whole))
            np.testing.assert_array_equal(some["x"], all_["x"][: len(some["x"])])
        elif self.out.suffix == ".npy":
            some, all_ = (np.load(io.BytesIO(each)) for each in (content, self.whole))
            np.testing.assert_array_equal(some, all_[: len(some)])
        else:
            assert self.whole.startswith(content)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(60) == 0

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint model, a model of triangles, and structures of it."""
    base = tmp_path_factory.mktemp("runs")
    tiny.joint_run(base / "joint")
    data = tiny.particles(base / "data.npy", count=30)
    assert tiny.train(data, base / "planar") == 0
    (base / "molecules.xyz").write_text(tiny.MOLECULES * 14)
    return base


@contextmanager
def command(runs: Path, base: Path, name: str) -> Iterator[Interrupted]:
    sample = ["sample", "seed=3", "n=22", "batch=4"]
    words, setup = {
        "s.extxyz": ([*sample, f"run={runs / 'joint'}"], []),
        "s.sdf": ([*sample, f"run={runs / 'joint'}", "n=10"], []),
        "s.npz": ([*sample, f"run={runs / 'joint'}"], []),
        "s.npy": ([*sample, f"run={runs / 'planar'}"], []),
        "s.csv": (
            ["score", f"run={runs / 'planar'}", f"data.path={runs / 'data.npy'}"],
            SMALL_BATCHES,
        ),
        "probes.csv": (
            [
                "score",
                f"run={runs / 'planar'}",
                f"data.path={runs / 'data.npy'}",
                "divergence=hutchinson",
            ],
            SMALL_BATCHES,
        ),
        "joint.csv": (
            [
                "score",
                f"run={runs / 'joint'}",
                f"data.path={runs / 'molecules.xyz'}",
                "draws=2",
            ],
            SMALL_BATCHES,
        ),
    }[name]
    interrupted = Interrupted(words, base / "out" / name, setup)
    yield interrupted
    interrupted.close()


SAMPLED = ["s.extxyz", "s.sdf", "s.npz", "s.npy"]
SCORED = ["s.csv", "probes.csv", "joint.csv"]
FAST = ("s.csv",)
# Points at which each dies; to perceive bonds every run starts a worker, which takes seconds.
MOST = dict.fromkeys([*SAMPLED, *SCORED], 14) | dict.fromkeys(FAST, 4) | {"s.sdf": 4}


def slow_but(names: Sequence[str]) -> list[Any]:
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def assert_every_point(
    runs: Path, base: Path, name: str, injected: Callable[[], None], most: int
) -> None:
    """Killed at so many points of writing, each time anew, and at pairs of them."""
    chance = random.Random(name)
    with command(runs, base, name) as interrupted:
        points = range(len(interrupted.points))
        chosen = sorted(chance.sample(points, min(most, len(points))))
        for point in chosen:
            again = chance.randrange(min(len(points), 25))
            deaths = interrupted.assert_goes_on([point, again])
            assert deaths
            for _ in range(deaths):
                injected()


@pytest.mark.fault(
    15,
    "`kill -9` of `sample` before, within or after a write, rename or flush, twice in a row",
    "valid up to the last record; the same command adds what is missing, bitwise the same",
)
@pytest.mark.parametrize("name", slow_but(SAMPLED))
def test_sampling_goes_on_wherever_a_write_was_cut_short(
    runs: Path, tmp_path: Path, injected: Callable[[], None], name: str
) -> None:
    assert_every_point(runs, tmp_path, name, injected, MOST[name])


@pytest.mark.fault(
    15,
    "`kill -9` of `score` before, within or after a write, rename or flush, twice in a row",
    "a valid table; the same command scores what is missing, rows and means bitwise the same",
)
@pytest.mark.parametrize("name", slow_but(SCORED))
def test_scoring_goes_on_wherever_a_write_was_cut_short(
    runs: Path, tmp_path: Path, injected: Callable[[], None], name: str
) -> None:
    assert_every_point(runs, tmp_path, name, injected, MOST[name])


@pytest.mark.slow
@pytest.mark.fault(
    15,
    "`kill -9` of `sample` or `score` at a random moment, again and again",
    "the same command goes on, and ends bitwise the same",
)
@pytest.mark.parametrize("name", [*SAMPLED, *SCORED])
def test_killed_at_random_moments_the_same_command_ends_the_same(
    runs: Path, tmp_path: Path, injected: Callable[[], None], name: str
) -> None:
    chance = random.Random(name)
    with command(runs, tmp_path, name) as interrupted:
        deaths = 0
        for _ in range(1 if name == "s.sdf" else 3):
            parts = [f"{chance.uniform(0.0, 0.8):.3f}" for _ in range(3)]
            deaths += interrupted.assert_goes_on(parts)
        assert deaths
        for _ in range(deaths):
            injected()
