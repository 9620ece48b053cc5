"""Broken files through the real command: named with what to do, and nothing is made of them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from faults.broken_files import BROKEN, OTHERS, WATER, Broken, write
from processes import eqflow, finish, start

from eqflow.data import read
from eqflow.evaluate.symmetry import CloudVelocity
from eqflow.flows import Flow
from eqflow.geometry import Clouds
from eqflow.testing import assert_equivariant, assert_invariant
from eqflow.train import load

Outcome = tuple[int, str, str]
Injected = Callable[[], None]

MANY = (str(Path(__file__).with_name("many_commands.py")),)
SMALL = [*tiny.MODEL, *tiny.LOOP, "train.tensorboard=false", "data.validation=0.2", "data.test=0.2"]


def outcomes(every: list[list[str]], folder: Path) -> list[Outcome]:
    """What each command came to, all in one process of their own."""
    words = folder / "words.json"
    words.write_text(json.dumps(every))
    code, out, err = finish(start([str(words)], program=MANY))
    assert code == 0, err
    found = [tuple(each) for each in json.loads(out)]
    assert len(found) == len(every)
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on water and hydrogen fluoride, which knows their elements."""
    place = tmp_path_factory.mktemp("run")
    data = tiny.molecules(place / "data.xyz")
    words = ["train", f"data.path={data}", f"run.dir={place / 'run'}", "data.elements=[H,O,F]"]
    (made,) = outcomes([[*words, *SMALL]], place)
    assert made[0] == 0, made
    return place / "run"


def untold(broken: Broken, path: Path, outcome: Outcome, verb: str) -> str:
    """What is wrong with an outcome: its code, the place it names, what it says; nothing if all is
    well."""
    code, out, err = outcome
    last = (err.strip().splitlines() or [""])[-1]
    problems = {
        f"code {code}": code != broken.code,
        "verb": not last.startswith(f"eqflow {verb}: "),
        "file": str(path.parent) not in last,
        f"not {broken.says}": not all(text in last for text in broken.says),
        "for programmers": "Traceback" in out + err or "bug" in err,
        "unpickled": Path("unpickled").exists(),
    }
    wrong = [name for name, holds in problems.items() if holds]
    return f"{verb}: {', '.join(wrong)}: {err[-400:]}" if wrong else ""


def placed(cases: dict[str, Broken], folder: Path) -> dict[str, Path]:
    """Each broken file in a folder of its own."""
    paths = {}
    for number, (case, broken) in enumerate(cases.items()):
        own = folder / str(number)
        own.mkdir()
        paths[case] = write(broken, own)
    return paths


@pytest.mark.fault(10, "a broken file of structures to train, score and sample", "named, exit 3")
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_every_verb_names_a_broken_file_and_makes_nothing(
    run: Path, tmp_path: Path, injected: Injected, every: int
) -> None:
    paths = placed(dict(list(BROKEN.items())[::every]), tmp_path)
    out = tmp_path / "out"
    asked: list[tuple[str, list[str]]] = []
    for case, path in paths.items():
        here = f"{out}/{len(asked)}"
        asked += [
            (case, ["train", f"data.path={path}", f"run.dir={here}", *SMALL]),
            (case, ["score", f"run={run}", f"data.path={path}", f"out={here}.csv"]),
            (case, ["sample", f"run={run}", f"like={path}", f"out={here}.xyz", "n=1"]),
            (case, ["sample", f"run={run}", f"fixed={path}", f"out={here}.xyz", "n=1"]),
        ]
    found = outcomes([words for _, words in asked], tmp_path)
    wrong = []
    for (case, words), outcome in zip(asked, found, strict=True):
        if problem := untold(BROKEN[case], paths[case], outcome, words[0]):
            wrong.append(f"{case}: {problem}")
        injected()
    assert not wrong, "\n".join(wrong)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.fault(10, "broken images, voxels, archives and graphs to train", "named, exit 3")
def test_what_only_training_reads_is_named_too(tmp_path: Path, injected: Injected) -> None:
    paths = placed(OTHERS, tmp_path)
    out = tmp_path / "out"
    every = []
    for case, path in paths.items():
        broken = OTHERS[case]
        small = [word for word in SMALL if not broken.words[:1] or "task" not in broken.words[0]]
        if broken.words and broken.words[0].startswith("task"):
            small = ["train.steps=6", "train.device=cpu"]
        if "data.source=images" in broken.words:
            small += ["data.dimension=2"]
        every.append(
            ["train", f"data.path={path}", f"run.dir={out}/{len(every)}", *small, *broken.words]
        )
    wrong = []
    for case, outcome in zip(paths, outcomes(every, tmp_path), strict=True):
        if problem := untold(OTHERS[case], paths[case], outcome, "train"):
            wrong.append(f"{case}: {problem}")
        injected()
    assert not wrong, "\n".join(wrong)
    assert not out.exists()


SKIPPED = ["NaN", "coincident", "unknown element", "absurd", "no number", "cut off"]


@pytest.mark.slow
@pytest.mark.fault(10, "bad records with `data.on_problem=skip`", "others used, listed, exit 7")
def test_skipping_uses_the_others_and_lists_the_bad_ones(
    run: Path, tmp_path: Path, injected: Injected
) -> None:
    good = tiny.molecules(tmp_path / "good.xyz", 20).read_text()
    path = tmp_path / "some.xyz"
    path.write_text("".join(str(BROKEN[case].content) for case in SKIPPED[:-1]) + good)
    common = [f"data.path={path}", "data.on_problem=skip"]
    trained, scored = outcomes(
        [
            ["train", *common, "data.elements=[H,O,F]", f"run.dir={tmp_path / 'run'}", *SMALL],
            ["score", *common, f"run={run}", f"out={tmp_path / 'scores.csv'}"],
        ],
        tmp_path,
    )
    for code, out, err in (trained, scored):
        assert code == 7, err
        listed = [line for line in (out + err).splitlines() if "skipped: " in line]
        assert len(listed) == len(SKIPPED) - 1
        assert all(re.search(rf"{re.escape(str(path))}:\d+: ", line) for line in listed)
        injected()
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    # The first record of each broken text is a sound water.
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 20 + len(SKIPPED) - 1


UNITS = {"nanometres": 0.1, "bohr": 1 / 0.529177, "picometres": 100.0}


def scaled(path: Path, factor: float) -> Path:
    """Waters and hydrogen fluoride in another unit."""
    lines = tiny.molecules(path).read_text().splitlines()
    for number, line in enumerate(lines):
        words = line.split()
        if len(words) == 4:
            lines[number] = " ".join([words[0], *(f"{float(x) * factor:.6f}" for x in words[1:])])
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.fault(10, "structures in nm, bohr and pm", "a notice asks for the unit")
def test_another_unit_is_asked_about_and_the_right_one_is_not(
    run: Path, tmp_path: Path, injected: Injected
) -> None:
    every = [
        [
            "score",
            f"run={run}",
            f"data.path={scaled(tmp_path / f'{name}.xyz', factor)}",
            f"out={tmp_path / name}.csv",
            "data.structures=2",
        ]
        for name, factor in {**UNITS, "right": 1.0}.items()
    ]
    *wrong, right = outcomes(every, tmp_path)
    for name, (_, out, err) in zip(UNITS, wrong, strict=True):
        assert f"are these {name}?" in out + err
        injected()
    assert "notice" not in right[1] + right[2]


EMPTY = {"a.xyz": b"", "b.xyz": b"\n", "c.npz": b""}


@pytest.mark.slow
@pytest.mark.fault(11, "an empty file, data set or split", "refused with the counts, nothing made")
def test_nothing_to_learn_from_is_refused_before_anything_is_built(
    tmp_path: Path, injected: Injected
) -> None:
    for name, content in EMPTY.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "three.xyz").write_text(WATER * 3)
    none = np.zeros((0, 3, 3))
    np.save(tmp_path / "none.npy", none)
    cases = {
        "a.xyz": "0 bytes",
        "b.xyz": "found 0 structures",
        "c.npz": "0 bytes",
        "none.npy": "found 0 structures",
        "three.xyz": "3",
    }
    every = [
        ["train", f"data.path={tmp_path / name}", f"run.dir={tmp_path / 'run'}", *tiny.MODEL]
        for name in cases
    ]
    for (name, says), (code, _, err) in zip(cases.items(), outcomes(every, tmp_path), strict=True):
        assert (code, says in err) == (3, True), (name, err)
        assert "Traceback" not in err
        injected()
    assert not (tmp_path / "run").exists()


def clouds() -> dict[str, np.ndarray]:
    """Twenty structures of one kind each, which move a little from one to the next."""
    turn = np.linspace(0, 6, 6, endpoint=False)
    kinds = {
        "a point beside pairs": np.array([[0.0, 0, 0], [0, 0, 1]]),
        "collinear": np.array([[0.0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]]),
        "planar": np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1),
        "symmetric": np.array(
            [[s * (a == i) for a in range(3)] for i in range(3) for s in (-1, 1)]
        ),
        "coincident": np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 1]]),
    }
    return {name: np.stack([x * (1 + 0.02 * i) for i in range(20)]) for name, x in kinds.items()}


@pytest.mark.slow
@pytest.mark.fault(
    12,
    "clouds that are degenerate",
    "trained on with finite gradients, scored; density and velocity symmetric to rounding",
)
def test_degenerate_clouds_are_trained_on_scored_and_symmetric(
    tmp_path: Path, injected: Injected
) -> None:
    every = []
    for number, (name, x) in enumerate(clouds().items()):
        arrays = {"positions": x}
        if name == "a point beside pairs":
            sizes = np.array([2] * 19 + [1])
            arrays = {"x": x.reshape(-1, 3)[:-1], "ptr": np.concatenate([[0], np.cumsum(sizes)])}
        np.savez(tmp_path / f"{number}.npz", **arrays)
        data, folder = f"data.path={tmp_path / f'{number}.npz'}", tmp_path / f"run{number}"
        every += [
            ["train", data, f"run.dir={folder}", *SMALL],
            ["score", data, f"run={folder}", f"out={tmp_path / f'{number}.csv'}"],
        ]
    found = outcomes(every, tmp_path)
    for number, name in enumerate(clouds()):
        for code, _, err in found[2 * number : 2 * number + 2]:
            assert code == 0, (name, err)
            injected()
        rows = (tmp_path / f"{number}.csv").read_text().splitlines()[1:]
        assert len(rows) == 20
        assert all(np.isfinite(float(row.split(",")[2])) for row in rows), name
        with (tmp_path / f"run{number}" / "metrics.csv").open() as file:
            steps = list(csv.DictReader(file))
        assert len(steps) == 6
        assert not any(step.get("skipped") for step in steps), name
        assert all(np.isfinite(float(step["gradient_norm"])) for step in steps), name
        flow = load(tmp_path / f"run{number}").double()
        batch = read(tmp_path / f"{number}.npz").to(torch.float64)[-3:]
        assert_equivariant(CloudVelocity(flow), batch, "E(3)×S(n)", "vector")
        assert_invariant(density_of(flow), batch, "E(3)×S(n)")


def density_of(flow: Flow) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The log-density of clouds without elements, of each point, (N, 1)."""

    def density(x: torch.Tensor, ptr: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return flow.log_prob(Clouds(x, ptr)).repeat_interleave(ptr.diff()).unsqueeze(1)

    return density


@pytest.mark.slow
@pytest.mark.fault(10, "a broken file to the installed command", "one line, exit 3")
@pytest.mark.parametrize("options", [(), ("-O",)])
def test_the_command_itself_says_it_in_one_line(
    tmp_path: Path, options: tuple[str, ...], injected: Injected
) -> None:
    path = write(BROKEN["NaN"], tmp_path)
    words = ["train", f"data.path={path}", f"run.dir={tmp_path / 'run'}", *SMALL]
    code, out, err = eqflow(words, program=(*options, "-m", "eqflow.cli.main"))
    assert (code, out.count("\n")) == (3, 1)
    assert err.startswith(f"eqflow train: {path}:9: found the position")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    injected()
