"""Dead at any step of a save, or without power: what is on disk is whole, and the run goes on."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_nodes
from processes import ROOT, environment

from eqflow.errors import CheckpointError
from eqflow.storage import sha256_of
from eqflow.train.checkpoint import newest_state, read_weights
from eqflow.train.digests import listed

SHORT = ["train.steps=4", "train.validate_every=2", "train.tensorboard=false"]
FORKED = str(Path(__file__).with_name("forked.py"))
KILLED = -9


def positions(base: Path) -> list[str]:
    return tiny.words(tiny.particles(base / "data.npy"), Path("{folder}"), *SHORT)


def molecules(base: Path) -> list[str]:
    return [
        "train",
        "run.dir={folder}",
        "model=joint_egnn",
        "model.dequantiser=argmax",
        *tiny.WHOLE,
        *SHORT,
        "train.log_every=1",
    ]


def nodes(base: Path) -> list[str]:
    return tiny_nodes.words(tiny_nodes.graph(base / "graph.npz"), Path("{folder}"), *SHORT[:1])


TASKS: dict[str, Callable[[Path], list[str]]] = {
    "positions": positions,
    "molecules": molecules,
    "nodes": nodes,
}


class Forked:
    """`forked.py` on its words: first the run that nobody disturbs, then those that die.

    Args:
        words: Of the command, with `{folder}` in them.
        base: Folder for the runs.
        options: Of Python.
    """

    def __init__(self, words: list[str], base: Path, *options: str) -> None:
        self._errors = base / "errors"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *options, FORKED, json.dumps({"words": words, "base": str(base)})],
                env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.whole: dict[str, Any] = json.loads(self._process.stdout.readline() or self._failed())

    def killed_at(self, points: list[int]) -> list[dict[str, Any]]:
        """What was found of each run that died; the end of the program."""
        told, _ = self._process.communicate(json.dumps(points) + "\n", timeout=850)
        assert self._process.returncode == 0, self._failed()
        assert not self._errors.read_text()
        return [json.loads(line) for line in told.splitlines()]

    def end(self) -> None:
        """Where no point was asked for."""
        if self._process.poll() is None:
            self.killed_at([])

    def _failed(self) -> str:
        raise AssertionError(self._errors.read_text())


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    base = tmp_path_factory.mktemp("forked")
    forked = Forked(positions(base), base)
    yield forked
    forked.end()


def of_second_save(names: list[str]) -> range:
    """The points from the second state's beginning to the end of its save."""
    first = next(k for k, name in enumerate(names) if "checkpoints/000000004" in name)
    beginning = max(k for k, name in enumerate(names[:first]) if "before open" in name)
    end = max(k for k, name in enumerate(names) if "weights.safetensors" in name)
    return range(beginning, end + 1)


def saved_before(names: list[str], point: int) -> int:
    """The step of the newest state whose file had its name before a point."""
    steps = [
        int(name.split("/")[-1].removesuffix(".pt"))
        for name in names[:point]
        if name.startswith("after replace") and name.endswith(".pt")
    ]
    return max(steps, default=0)


def assert_survived(whole: dict[str, Any], fact: dict[str, Any]) -> None:
    point, names = fact["point"], whole["names"]
    where = f"{point}: {names[point] if point < len(names) else 'end'}: {fact}"
    assert fact["killed"] == KILLED, where
    assert fact["unlisted"] == [], where
    assert fact["warnings"] == [], where
    assert fact["step"] >= saved_before(names, point), where
    replaced = [name.endswith("replace run/weights.safetensors") for name in names[:point]]
    assert (fact["weights"] is not None) >= any(replaced), where
    assert fact["code"] == 0, where
    assert "warning" not in fact["printed"], where
    assert fact["same"], where
    assert fact["strays"] == [], where


@pytest.mark.fault(
    2,
    "`kill -9` before, within or after a write, flush or rename of a save",
    "the state before it loads, the same command ends bitwise the same, nothing stray is left",
)
def test_killed_at_any_step_of_a_save_the_run_ends_bitwise_the_same(
    short: Forked, injected: Callable[[], None]
) -> None:
    names = short.whole["names"]
    # Here what is renamed or half written; the slow test is about all.
    points = [
        k for k in of_second_save(names) if "before replace" in names[k] or "in w" in names[k]
    ]
    facts = short.killed_at(points)
    assert len(facts) == len(points) > 6
    for fact in facts:
        assert_survived(short.whole, fact)
        injected()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(
    2,
    "`kill -9` before, within or after a write, flush or rename of a save",
    "the state before it loads, the same command ends bitwise the same, nothing stray is left",
)
@pytest.mark.parametrize(
    ("task", "every", "options"),
    [("positions", 1, []), ("positions", 5, ["-O"]), ("molecules", 4, []), ("nodes", 4, [])],
)
def test_killed_at_any_point_of_any_task_the_run_ends_bitwise_the_same(
    tmp_path: Path, task: str, every: int, options: list[str], injected: Callable[[], None]
) -> None:
    forked = Forked(TASKS[task](tmp_path), tmp_path, *options)
    # After one write the disk is as before the next: either stands for both.
    names = forked.whole["names"]
    points = [k for k, name in enumerate(names) if not name.startswith("after")][::every]
    facts = forked.killed_at(points)
    assert len(facts) == len(points)
    for fact in facts:
        assert_survived(forked.whole, fact)
        injected()


class Disk:
    """What may be on a disk when the power goes, from what a run asked of it.

    The content of a file is there once it was flushed; before, it may be anything. A change of a
    folder's entries is there once the folder was flushed; before, any of those under way may be.
    """

    def __init__(self, root: str) -> None:
        self.live: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.folders = {root}  # whose own entry is on the disk
        self.content: dict[int, bytes | None] = {}
        self.pending: list[tuple[str, dict[str, int | None]]] = []  # folder, entries after it

    def apply(self, event: list[str]) -> None:
        kind, path, *rest = event
        folder = str(Path(path).parent)
        if kind == "open":
            self.live[path] = number = len(self.content)
            self.content[number] = None
            self.pending.append((folder, {path: number}))
        elif kind == "fsync":
            self.content[self.live[path]] = base64.b64decode(rest[0])
        elif kind in ("replace", "rename"):
            self.live[rest[0]] = number = self.live.pop(path)
            self.pending.append((folder, {path: None, rest[0]: number}))
        elif kind in ("unlink", "remove"):
            del self.live[path]
            self.pending.append((folder, {path: None}))
        elif kind == "mkdir":
            self.pending.append((folder, {f"{path}/": -1}))
        elif kind == "fsync folder":
            for done in [one for one in self.pending if one[0] == path]:
                self._take(self.durable, self.folders, done[1])
                self.pending.remove(done)

    @staticmethod
    def _take(files: dict[str, int], folders: set[str], change: dict[str, int | None]) -> None:
        for path, number in change.items():
            if path.endswith("/"):
                folders.add(path[:-1])
            elif number is None:
                files.pop(path, None)
            else:
                files[path] = number

    def after_the_power_cut(self) -> Iterator[dict[str, bytes | None]]:
        """Every set of files that may be there: path and content, None for anything at all."""
        for chosen in itertools.product((False, True), repeat=len(self.pending)):
            files, folders = dict(self.durable), set(self.folders)
            for (_, change), taken in zip(self.pending, chosen, strict=True):
                if taken:
                    self._take(files, folders, change)
            yield {
                path: self.content[number]
                for path, number in files.items()
                if {str(above) for above in Path(path).parents} & folders
                and str(Path(path).parent) in folders
            }


def put(files: dict[str, bytes | None], root: str, folder: Path) -> None:
    for path, content in files.items():
        place = folder / Path(path).relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"anything" if content is None else content)


@pytest.mark.fault(
    2,
    "the power goes between two writes: what is not flushed is lost or garbage",
    "a whole state and weights with their SHA-256 are there, never older than the last save",
)
def test_whatever_a_power_cut_leaves_is_whole_and_listed(
    short: Forked, tmp_path: Path, injected: Callable[[], None]
) -> None:
    events = short.whole["events"]
    root = str(Path(events[0][1]).parent)
    disk, seen, saved, has_weights, renamed = Disk(root), set(), 0, False, ""
    for event in events:
        disk.apply(event)
        if event[0] == "replace":
            renamed = Path(event[2]).name
        elif event[0] == "fsync folder":
            saved = int(renamed[:9]) if renamed.endswith(".pt") else saved
            has_weights |= renamed == "weights.safetensors"
        assert len(disk.pending) < 12, "so many changes under way have too many outcomes"
        for files in disk.after_the_power_cut():
            key = (saved, has_weights, frozenset(files.items()))
            if key in seen:
                continue
            seen.add(key)
            folder = tmp_path / str(len(seen))
            put(files, root, folder)
            assert_whole(folder / "run", saved, has_weights)
            injected()
    assert saved == 4
    assert has_weights
    assert len(seen) > 20


def assert_whole(folder: Path, saved: int, has_weights: bool) -> None:
    def fail(line: str) -> None:
        raise AssertionError(line)

    for path in [*folder.glob("checkpoints/*.pt"), *folder.glob("*.safetensors")]:
        assert sha256_of(path) in (listed(path) or []), path
    state = newest_state(folder / "checkpoints", fail)
    assert (0 if state is None else state["progress"]["step"]) >= saved
    if has_weights:
        assert read_weights(folder / "weights.safetensors")[0]
    if state is not None:
        rows = (folder / "metrics.csv").read_text().splitlines()
        assert len(rows) > state["progress"]["step"]


def test_the_check_of_power_cuts_finds_a_rename_without_a_flush(tmp_path: Path) -> None:
    root = str(tmp_path)
    path, temporary = f"{root}/run/checkpoints/000000002.pt", f"{root}/run/checkpoints/.eqflow-1"
    disk = Disk(root)
    for event in (
        ["mkdir", f"{root}/run"],
        ["fsync folder", root],
        ["mkdir", f"{root}/run/checkpoints"],
        ["fsync folder", f"{root}/run"],
        ["open", temporary],
        ["replace", temporary, path],
        ["fsync folder", f"{root}/run/checkpoints"],
    ):
        disk.apply(event)
    (files,) = disk.after_the_power_cut()
    put(files, root, tmp_path)
    with pytest.raises(CheckpointError):
        newest_state(tmp_path / "run" / "checkpoints", lambda line: None)
