"""No space, no names left, or no permission: what was saved is intact, and the run can go on."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from processes import COMMAND, PATIENCE, ROOT, environment

SHORT = ["train.steps=4", "train.validate_every=2", "train.tensorboard=false"]
PROGRAM = str(Path(__file__).with_name("small_disks.py"))
NAMESPACE = ["unshare", "-Urm"]


def can_mount() -> bool:
    """Whether this system lets a user mount a file system that only its own processes see."""
    try:
        command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


NEEDS_MOUNT = pytest.mark.skipif(
    not can_mount(), reason="needs user namespaces, to mount a small file system"
)


def outcomes(
    base: Path,
    runs: Sequence[dict[str, Any]],
    first: Sequence[list[str]],
    namespace: Sequence[str] = NAMESPACE,
) -> list[dict[str, Any]]:
    """What came of each run of `small_disks.py`."""
    job = json.dumps({"mount": str(base / "disk"), "first": list(first), "runs": list(runs)})
    process = subprocess.run(
        [*namespace, sys.executable, PROGRAM, job],
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"),
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.particles(tmp_path_factory.mktemp("data") / "data.npy")


def training(data: Path, *more: str) -> list[str]:
    return tiny.words(data, Path("{disk}/run"), *SHORT, *more)


def assert_told(fact: dict[str, Any]) -> None:
    """Exit 6 and a plain message, in which a file or folder is named and what can be done."""
    last = fact["printed"].splitlines()[-1]
    assert fact["code"] == 6, fact["printed"]
    assert "Traceback" not in fact["printed"], fact["printed"]
    assert last.startswith("eqflow "), fact["printed"]
    assert "/disk" in last or "/limited" in last, last
    assert "free some space" in last or "you may write to" in last, last


def assert_went_on(fact: dict[str, Any], whole: dict[str, Any]) -> None:
    assert fact["unlisted"] == []
    assert fact["warnings"] == []
    assert fact["again"] == 0, fact["printed again"]
    assert "warning" not in fact["printed again"]
    assert fact["end"]["tensors"] == whole["end"]["tensors"]
    assert fact["end"]["metrics"] == whole["end"]["metrics"]
    assert fact["strays"] == []
    assert not any(".eqflow-" in name for name in fact["left"]), fact["left"]


@NEEDS_MOUNT
@pytest.mark.timeout(900)
@pytest.mark.fault(
    6,
    "the disk is full at some moment of training, or has no name left for a file",
    "exit 6, the file is named, the last checkpoint loads; with space the end is bitwise the same",
)
@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        (range(24, 124, 24), (9,)),
        pytest.param(range(4, 160, 4), range(3, 14), marks=pytest.mark.slow),
    ],
    ids=["some", "many"],
)
def test_a_disk_that_fills_while_a_run_trains_loses_nothing(
    data: Path,
    tmp_path: Path,
    sizes: Sequence[int],
    names: Sequence[int],
    injected: Callable[[], None],
) -> None:
    options = ["size=64m", *(f"size={size}k" for size in sizes)]
    options += [f"size=64m,nr_inodes={count}" for count in names]
    words = training(data)
    whole, *facts = outcomes(
        tmp_path, [{"options": each, "words": words, "again": True} for each in options], [words]
    )
    assert whole["code"] == 0, whole["printed"]
    full = [fact for fact in facts if fact["code"] != 0]
    assert len(full) > len(facts) // 2
    for fact in full:
        assert_told(fact)
        injected()
    for fact in facts:
        assert_went_on(fact, whole)
    reached = {fact["step"] for fact in full}
    assert {0, 2} <= reached, f"the disk was full only where the state was of step {reached}"


@NEEDS_MOUNT
@pytest.mark.timeout(900)
@pytest.mark.fault(
    6,
    "the disk is full while `sample` adds a batch to its file or its journal",
    "exit 6, the file holds whole records; with space the same command ends bitwise the same",
)
@pytest.mark.parametrize(
    "sizes",
    [(16, 24, 36), pytest.param(range(12, 76, 4), marks=pytest.mark.slow)],
    ids=["some", "many"],
)
def test_a_disk_that_fills_while_structures_are_added_leaves_whole_records(
    data: Path, tmp_path: Path, sizes: Sequence[int], injected: Callable[[], None]
) -> None:
    run = tmp_path / "run"
    assert tiny.train(data, run, *SHORT) == 0
    words = ["sample", f"run={run}", "n=600", "batch=60", "out={disk}/s.extxyz", "device=cpu"]
    runs = [
        {"options": options, "words": words, "again": True, "file": "s.extxyz"}
        for options in ("size=64m", *(f"size={size}k" for size in sizes))
    ]
    whole, *facts = outcomes(tmp_path, runs, [words])
    assert whole["code"] == 0, whole["printed"]
    complete = base64.b64decode(whole["content"])
    record = len(complete.splitlines()) // 600
    full = [fact for fact in facts if fact["code"] != 0]
    assert len(full) > len(facts) // 2
    lengths = set()
    for fact in full:
        assert_told(fact)
        content = base64.b64decode(fact["content"])
        assert complete.startswith(content)
        assert content.count(b"\n") % (60 * record) == 0
        lengths.add(len(content))
        injected()
    assert max(lengths) > len(complete) // 4
    for fact in facts:
        assert fact["again"] == 0, fact["printed again"]
        assert fact["end"] == whole["content"]
        assert fact["names"] == ["s.extxyz"]
        assert fact["strays"] == []


@NEEDS_MOUNT
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(
    6,
    "the disk is full while TensorBoard's events are written",
    "exit 6 without a traceback; with space the end is bitwise the same",
)
def test_a_disk_that_fills_with_events_of_tensorboard_is_told(
    data: Path, tmp_path: Path, injected: Callable[[], None]
) -> None:
    pytest.importorskip("tensorboard")
    words = training(data, "train.tensorboard=true")
    whole, *facts = outcomes(
        tmp_path,
        [
            {"options": f"size={size}", "words": words, "again": True}
            for size in ("64m", *(f"{count}k" for count in range(4, 160, 12)))
        ],
        [words],
    )
    assert whole["code"] == 0, whole["printed"]
    for fact in facts:
        if fact["code"]:
            assert_told(fact)
            injected()
        assert_went_on(fact, whole)


@pytest.mark.slow
@pytest.mark.fault(
    6,
    "no file may become as large as a state (RLIMIT_FSIZE)",
    "exit 6, the file is named, nothing half written is left; without the limit it goes on",
)
def test_a_limit_to_the_size_of_files_is_told_and_the_run_goes_on(
    data: Path, tmp_path: Path, injected: Callable[[], None]
) -> None:
    words = training(data)
    limits = (None, 3000, 20_000)
    whole, *facts = outcomes(
        tmp_path, [{"limit": limit, "words": words, "again": True} for limit in limits], [words], []
    )
    assert whole["code"] == 0, whole["printed"]
    for fact in facts:
        assert_told(fact)
        assert_went_on(fact, whole)
        injected()


@NEEDS_MOUNT
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(
    6,
    "`sample`, `score`, `tune`, `demo`, `check` write to a full or read-only disk",
    "exit 6 with a plain message; the file of `sample`, `score` or `check` is whole, whole records "
    "to a place, or not there",
)
def test_every_verb_tells_of_a_full_and_of_a_read_only_disk(
    data: Path, tmp_path: Path, injected: Callable[[], None]
) -> None:
    run = tmp_path / "run"
    assert tiny.train(data, run) == 0
    pytest.importorskip("optuna")
    many = tiny.particles(tmp_path / "many.npy", 600)  # three batches of scores
    sample = ["sample", f"run={run}", "n=200", "batch=60"]
    cases: list[tuple[str, list[str]]] = [
        ("size=4k", [*sample, "out={disk}/x.npy"]),
        ("size=20k", [*sample, "out={disk}/y.xyz"]),
        ("size=24k", ["score", f"run={run}", f"data.path={many}", "out={disk}/x.csv"]),
        ("size=4k", ["check", f"run={run}", "out={disk}/deep/x.json"]),
        ("size=16k", ["demo", "out={disk}/demo", "particle_minutes=0.01"]),
    ]
    own = [word for word in training(data)[1:] if not word.startswith("run.dir")]
    tune = ["tune", "dir={disk}/tune", "trials=1", "space.train.learning_rate=[1e-4,1e-2]", *own]
    cases += [(f"size={size}k", tune) for size in (8, 200)]
    files = ["x.npy", "y.xyz", "x.csv", "deep/x.json"]
    runs = [{"options": options, "words": words} for options, words in cases]
    for one, name in zip(runs, files, strict=False):
        one["file"] = name
    runs += [{**run, "options": "size=64m", "read_only": True} for run in runs[:6]]
    runs += [{"options": "size=64m", "read_only": True, "words": training(data)}]
    first = [words for _, words in cases[:6] if words[0] != "demo"]
    told: list[str] = []
    facts = outcomes(tmp_path, runs, first)
    contents = [base64.b64decode(fact["content"]) for fact in facts[: len(files)]]
    whole = [(tmp_path / "first" / name).read_bytes() for name in files]
    array, text, table, report = contents
    assert (array, report) == (b"", b"")
    # The batches before the one that did not fit: whole records, and whole rows.
    record = len(whole[1].splitlines()) // 200
    assert whole[1].startswith(text)
    assert len(text.splitlines()) in (60 * record, 120 * record, 180 * record)
    assert whole[2].startswith(table)
    assert len(table.splitlines()) in (0, 1 + 256, 1 + 512)
    for one, fact in zip(runs, facts, strict=True):
        assert not any(".eqflow-" in name for name in fact["left"]), fact["left"]
        assert fact["code"] == 6, (one, fact["printed"])
        assert "Traceback" not in fact["printed"], fact["printed"]
        told.append(fact["printed"].splitlines()[-1])
        assert told[-1].startswith(f"eqflow {one['words'][0]}: "), fact["printed"]
        if one.get("read_only"):
            assert fact["left"] == []
            assert "steps/s" not in fact["printed"]
        injected()


@NEEDS_MOUNT
@pytest.mark.slow
@pytest.mark.fault(
    6,
    "a run folder that may not be written, as a user without rights",
    "refused with exit 6 before the data are read, nothing is made",
)
def test_a_folder_of_another_user_is_refused_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o555)
    words = tiny.words(tmp_path / "there is none.npy", folder / "run")
    # Without the rights of root, which permissions do not bind.
    command = [*NAMESPACE[:1], "-U", sys.executable, *COMMAND, *words]
    process = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    code, out, err = process.returncode, process.stdout, process.stderr
    assert code == 6, (out, err)
    assert str(folder) in err
    assert "expected a folder you may write to" in err
    assert not list(folder.iterdir())
