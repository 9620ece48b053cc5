"""A soak: runs are trained, killed, resumed, sampled and scored in cycles, and nothing may be lost.

    python benchmarks/soak.py MINUTES [seed=0]

Each cycle takes one of several small jobs, under `python` or `python -O`, and gives the real
commands to train it, to draw from it and to score by it. Every command is killed at random moments
(SIGKILL, SIGTERM or SIGINT) and given again until it ends by itself. Then it must have left what it
leaves when nobody disturbs it: the same weights, samples and scores, bit for bit. After every kill
what lies on the disk must load, and no saved step may be gone.

What was done and found goes to `results/soak.json`; the exit code is 1 where anything was lost.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import write_results

from eqflow import rng
from eqflow.data import read
from eqflow.errors import EqflowError
from eqflow.train.checkpoint import newest_state, read_weights

LOOP = [
    "train.checkpoint_every=7",
    "train.log_every=3",
    "train.validate_every=25",
    "train.tensorboard=false",
    "train.device=cpu",
    "train.final_structures=0",
    "model.layers=1",
    "model.width=8",
]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 6  # of one command, which then ends by itself
DEADLINE = 600  # seconds for a command that is not killed


class Job(NamedTuple):
    """What is trained, and what is then drawn and scored.

    Attributes:
        train: Words of `eqflow train`.
        out: Name of the file of samples.
        sample, score: Further words of these verbs.
        held_out: File that is scored; the samples where None.
    """

    train: list[str]
    out: str
    sample: list[str]
    score: list[str]
    held_out: str | None = None


def jobs(data: Path) -> dict[str, Job]:
    """The jobs by name; `data` is a file of triangles in the plane."""
    fixed = ["solver.method=rk4", "solver.steps=8"]
    few = ["n=400", "batch=20"]
    return {
        "flow matching": Job(
            [f"data.path={data}", "data.dimension=2", *LOOP, "train.steps=300", *fixed],
            "samples.npz", few, ["divergence=exact"],
        ),
        "maximum likelihood, at a rate it has to go back from": Job(
            [
                f"data.path={data}", "data.dimension=2", *LOOP, "train.steps=120",
                "objective=maximum_likelihood", "train.learning_rate=3",
                "model.coordinate_range=null", "train.schedule=constant", *fixed,
            ],
            "samples.extxyz", few, ["data.structures=100"], str(data),
        ),
        "whole molecules": Job(
            [
                "data.source=g2", "model=categorical_egnn", "data.elements=[H,C,O]",
                "data.validation=0.2", "data.test=0.2", *LOOP, "train.steps=100",
                "train.batch_size=8", *fixed,
            ],
            "samples.sdf", ["n=60", "batch=4"], ["data.structures=12", "draws=2"],
        ),
    }  # fmt: skip


class Soak:
    """Cycles, and what was found in them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.seconds: dict[tuple[str, str], float] = {}

    def command(self, verb: str, words: list[str], optimised: bool) -> subprocess.Popen[bytes]:
        """One verb under way."""
        self.counts["commands started"] += 1
        options = ["-O"] if optimised else []
        return subprocess.Popen(
            [sys.executable, *options, "-m", "eqflow", verb, *words],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def undisturbed(self, name: str, verb: str, words: list[str]) -> None:
        """A command from start to end, which others of its kind are compared to."""
        began = time.monotonic()
        process = self.command(verb, words, optimised=False)
        _, err = process.communicate(timeout=DEADLINE)
        if process.returncode not in (0, 7):
            sys.exit(f"{name}: {verb} ended with {process.returncode}: {err.decode()}")
        self.seconds[name, verb] = time.monotonic() - began

    def killed_to_the_end(self, name: str, verb: str, words: list[str], place: Path) -> None:
        """A command that is killed and given again until it ends by itself.

        Args:
            name: Of the job.
            verb, words: The command.
            place: Run folder or file that it writes.
        """
        where, step = f"{name}, {verb}, cycle {self.counts['cycles']}", 0
        kills = self.random.randint(1, MOST_KILLS)
        while True:
            process = self.command(verb, words, optimised=self.random.random() < 0.5)
            number = self.random.choice(SIGNALS)
            if kills > 0:
                kills -= 1
                self._wait(process, place, self.seconds[name, verb])
                process.send_signal(number)
            _, err = process.communicate(timeout=DEADLINE)
            code = process.returncode
            if code == -signal.SIGKILL or code in (-signal.SIGTERM, -signal.SIGINT, 130, 143):
                what = f"{verb} ended by {number.name}"
                self.counts[what if code < 0 else f"{what}, code {code}"] += 1
            elif code in (0, 7):
                return
            else:
                self.lost.append(f"{where}: code {code}: {err.decode()[-500:]}")
                return
            if b"Traceback" in err:
                self.lost.append(f"{where}: a traceback: {err.decode()[-500:]}")
            step = self._checked(place, step, where)

    def _wait(self, process: subprocess.Popen[bytes], place: Path, usual: float) -> None:
        """A random while: of the whole command, or of the time in which it writes."""
        if self.random.random() < 0.5:
            time.sleep(self.random.uniform(0, usual))
            return
        inside = place / "metrics.csv" if place.suffix == "" else place
        while process.poll() is None and not inside.exists():
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, usual / 3))

    def _checked(self, place: Path, step: int, where: str) -> int:
        """What a killed command left must load; the step that is saved, of a run."""
        self.counts["checks of what a kill left"] += 1
        try:
            if place.suffix:
                if place.suffix != ".csv" and place.is_file():
                    read(place, 2 if place.suffix == ".npz" else None)
                return 0
            if (place / "weights.safetensors").is_file():
                read_weights(place / "weights.safetensors")
            warnings: list[str] = []
            state = newest_state(place / "checkpoints", warnings.append)
        except EqflowError as error:
            self.lost.append(f"{where}: {error}")
            return step
        self.lost += [f"{where}: {line}" for line in warnings]
        found = (0, 0) if state is None else _reached(state)
        if found < (0, step) and found[0] == 0:
            self.lost.append(f"{where}: step {step} was saved, and is gone: {found[1]}")
        return found[1]

    def compare(self, what: str, one: bytes, other: bytes) -> None:
        """Two contents that have to be the same."""
        self.counts["comparisons, bit for bit"] += 1
        if one != other:
            self.lost.append(f"cycle {self.counts['cycles']}: {what} differ")


def _reached(state: dict[str, Any]) -> tuple[int, int]:
    """How often a run went back, and its step: that may be an earlier one only after going back."""
    return int(state["progress"]["rollbacks"]), int(state["progress"]["step"])


def tensors(run: Path) -> bytes:
    """The weights of a run, without the words that name its folder."""
    content = (run / "weights.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def cycle(soak: Soak, name: str, job: Job, folder: str, disturbed: bool) -> None:
    """Train, draw and score in a folder of the soak's."""
    home = soak.folder / folder
    home.mkdir()
    samples, scores = home / job.out, home / "scores.csv"
    held_out = job.held_out or str(samples)
    steps = (
        ("train", [*job.train, f"run.dir={folder}/run"], home / "run"),
        ("sample", [f"run={folder}/run", f"out={samples}", *job.sample], samples),
        (
            "score",
            [f"run={folder}/run", f"data.path={held_out}", f"out={scores}", *job.score],
            scores,
        ),
    )
    for verb, words, place in steps:
        if disturbed:
            soak.killed_to_the_end(name, verb, words, place)
        else:
            soak.undisturbed(name, verb, words)


def main() -> None:
    """Soak for some minutes, and write what was found."""
    minutes = float(sys.argv[1])
    seed = int(dict(word.split("=") for word in sys.argv[2:]).get("seed", 0))
    with tempfile.TemporaryDirectory() as place:
        soak = Soak(Path(place), seed)
        x = rng.normal((60, 3, 2), torch.zeros(()), rng.generator(seed, "soak"))
        np.save(soak.folder / "data.npy", x.numpy())
        todo = jobs(soak.folder / "data.npy")
        for index, (name, job) in enumerate(todo.items()):
            cycle(soak, name, job, f"whole-{index}", disturbed=False)
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            index = soak.counts["cycles"] % len(todo)
            name, job = list(todo.items())[index]
            folder = f"cycle-{soak.counts['cycles']}"
            cycle(soak, name, job, folder, disturbed=True)
            whole, found = soak.folder / f"whole-{index}", soak.folder / folder
            try:
                soak.compare(f"{name}: weights", tensors(whole / "run"), tensors(found / "run"))
                for file in (job.out, "scores.csv"):
                    one, other = ((run / file).read_bytes() for run in (whole, found))
                    # Sources of scores name the file.
                    other = other.replace(str(found).encode(), str(whole).encode())
                    soak.compare(f"{name}: {file}", one, other)
            except OSError as error:
                soak.lost.append(f"cycle {soak.counts['cycles']}: {error}")
            strays = [path for path in found.rglob(".*") if path.is_file()]
            soak.lost += [f"{path.relative_to(soak.folder)}: left behind" for path in strays]
            soak.counts["cycles"] += 1
            print(
                f"{(time.monotonic() - began) / 60:6.1f} min  cycle {soak.counts['cycles']}  "
                f"{soak.counts['commands started']} commands  lost {len(soak.lost)}",
                flush=True,
            )
        done = (time.monotonic() - began) / 60
    found = {
        "minutes": round(done, 1),
        "seed": seed,
        **dict(sorted(soak.counts.items())),
        "lost": soak.lost,
    }
    write_results("soak", found)
    for name, value in found.items():
        print(f"{name}: {value}")
    sys.exit(1 if soak.lost else 0)


if __name__ == "__main__":
    main()
