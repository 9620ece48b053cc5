"""Runs of the real command that die at the k-th step of writing, hundreds in a minute.

A program of its own: it imports everything once and forks a child for each run. In a child, every
call that changes the disk below one folder is a *point*: opening to write, the middle of a write,
fsync, chmod, rename, unlink, mkdir, each before and after; so is every training step. A child kills
itself by SIGKILL at the point it is told, or writes down all of them, with what was on its way to
the disk.

    python forked.py '{"words": […], "base": folder}'

prints a JSON line about the run that nobody disturbs, reads a JSON list of points, and prints a
line about each run that died there and was started again by the same words.
"""

from __future__ import annotations

import base64
import builtins
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATHS = ("open", "chmod", "replace", "rename", "unlink", "remove", "mkdir", "rmdir")


class Points:
    """What happens below a folder, in order; at one of them the process may die.

    Args:
        folder: Only what is below it counts.
        last: The point at which to die, from 0; None to go on to the end.
    """

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder = str(folder)
        self.last = last
        self.names: list[str] = []
        self.events: list[list[Any]] = []

    def reached(self, name: str, path: str) -> None:
        if len(self.names) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(f"{name} {os.path.relpath(path, self.folder)}")

    def counts(self, path: str) -> bool:
        return path == self.folder or path.startswith(f"{self.folder}/")

    def event(self, *what: Any) -> None:
        self.events.append(list(what))


def path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


class Watched:
    """A file that is open to be written: a process may die in the middle of a write."""

    def __init__(self, file: Any, points: Points, path: str) -> None:
        self.file, self.points, self.path = file, points, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        self.points.reached("before write", self.path)
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.points.reached("within write", self.path)
        self.file.write(content[half:])
        self.file.flush()
        self.points.reached("after write", self.path)
        return len(content)


def watch(points: Points) -> None:
    """Put points around everything that writes, for the rest of this process."""
    originals = {name: getattr(os, name) for name in PATHS}

    def around(name: str) -> Callable[..., Any]:
        original = originals[name]

        def call(path: Any, *more: Any, **options: Any) -> Any:
            place = os.path.abspath(os.fspath(path))
            if name == "open" and not (more and more[0] & os.O_CREAT):
                return original(path, *more, **options)
            made = name == "mkdir" and os.path.isdir(place)
            if made or not points.counts(place):
                return original(path, *more, **options)
            shown = os.path.abspath(more[0]) if name in ("replace", "rename") else place
            points.reached(f"before {name}", shown)
            is_there = name == "open" and os.path.lexists(place)
            result = original(path, *more, **options)
            if not is_there:
                points.event(name, place, *([shown] if shown != place else []))
            points.reached(f"after {name}", shown)
            return result

        return call

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = path_of(number)
        if not points.counts(path):
            return original_fsync(descriptor)
        points.reached("before fsync", path)
        original_fsync(descriptor)
        if os.path.isdir(path):
            points.event("fsync folder", path)
        else:
            content = base64.b64encode(Path(path).read_bytes()).decode()
            points.event("fsync", path, content)
        points.reached("after fsync", path)
        return None

    def fdopen(descriptor: int, *more: Any, **options: Any) -> Any:
        file = original_fdopen(descriptor, *more, **options)
        path = path_of(descriptor)
        return Watched(file, points, path) if points.counts(path) else file

    def open_by_path(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        opened = None
        if isinstance(file, str | os.PathLike) and set(mode) & set("wax+"):
            path = os.path.abspath(os.fspath(file))
            if points.counts(path):
                points.reached("before open", path)
                new = not os.path.exists(path)
                opened = Watched(original_open(file, mode, *more, **options), points, path)
                if new:
                    points.event("open", path)
        return opened or original_open(file, mode, *more, **options)

    original_fsync, original_fdopen, original_open = os.fsync, os.fdopen, io.open
    for name in PATHS:
        setattr(os, name, around(name))
    os.fsync, os.fdopen = fsync, fdopen
    io.open = builtins.open = open_by_path  # type: ignore[assignment]


def watch_steps(points: Points) -> None:
    """A point before and after every training step."""
    from eqflow.train.abstract_loop import AbstractTrainer

    original = AbstractTrainer.step

    def step(trainer: Any) -> dict[str, float]:
        points.reached("before step", points.folder)
        figures = original(trainer)
        points.reached("after step", points.folder)
        return figures

    AbstractTrainer.step = step  # type: ignore[method-assign]


def run(words: list[str], printed: Path) -> int:
    """`eqflow words…`, with what it prints in a file."""
    from eqflow.cli.main import main

    sys.stdout.flush()
    before = os.dup(1), os.dup(2)
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.argv = ["eqflow", *words]
    try:
        for place in (1, 2):
            os.dup2(descriptor, place)
        return int(main(words))
    finally:
        sys.stdout.flush()
        for place, earlier in zip((1, 2), before, strict=True):
            os.dup2(earlier, place)


def in_child(act: Callable[[], int]) -> int:
    """The exit code of a forked child; minus the signal it was killed by."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = act()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def state_of(folder: Path) -> dict[str, Any]:
    """What a run folder holds: the newest state, the weights, and what is listed of each file."""
    from eqflow.errors import CheckpointError
    from eqflow.storage import sha256_of
    from eqflow.train.checkpoint import newest_state, read_weights
    from eqflow.train.digests import listed

    warnings: list[str] = []
    files = [*folder.glob("checkpoints/*.pt"), *folder.glob("*.safetensors")]
    unlisted = [path.name for path in files if sha256_of(path) not in (listed(path) or [])]
    found: dict[str, Any] = {"unlisted": unlisted, "warnings": warnings, "weights": None}
    try:
        # `newest_state` clears temporary files: what a dying process leaves is looked at first.
        state = newest_state(folder / "checkpoints", warnings.append)
        found["step"] = 0 if state is None else state["progress"]["step"]
        if (folder / "weights.safetensors").exists():
            found["weights"] = len(read_weights(folder / "weights.safetensors")[0])
    except CheckpointError as error:
        warnings.append(str(error))
    return found


def ended(folder: Path) -> dict[str, Any]:
    """What a finished run leaves that is the same however it came there."""
    from tiny import without_seconds

    weights = (folder / "weights.safetensors").read_bytes()
    return {
        "tensors": base64.b64encode(weights[8 + int.from_bytes(weights[:8], "little") :]).decode(),
        "metrics": without_seconds((folder / "metrics.csv").read_text()),
        "names": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    }


@contextmanager
def folder_of(base: Path, number: object) -> Iterator[tuple[Path, Path]]:
    """A run folder, and a file for what is printed."""
    import shutil

    folder = base / f"at {number}" / "run"
    folder.parent.mkdir(parents=True)
    yield folder, base / "printed"
    shutil.rmtree(folder.parent)


def trained(words: list[str], folder: Path, printed: Path, last: int | None, told: Path) -> int:
    points = Points(folder.parent, last)
    watch(points)
    watch_steps(points)
    code = run([word.format(folder=folder) for word in words], printed)
    told.write_text(json.dumps({"names": points.names, "events": points.events}))
    return code


def tell(fact: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def main() -> None:
    job = json.loads(sys.argv[1])
    words, base = job["words"], Path(job["base"])
    told = base / "told"
    # A run of its own before the first fork imports all that is imported on the way.
    with folder_of(base, "first") as (folder, printed):
        code = run([word.format(folder=folder) for word in words], printed)
        assert code == 0, printed.read_text()
        whole = ended(folder)
    with folder_of(base, "whole") as (folder, printed):
        code = in_child(lambda: trained(words, folder, printed, None, told))
        assert code == 0, printed.read_text()
        assert ended(folder) == whole
    tell({"whole": whole, **json.loads(told.read_text())})
    for point in json.loads(sys.stdin.readline()):
        with folder_of(base, point) as (folder, printed):
            fact: dict[str, Any] = {"point": point}
            fact["killed"] = in_child(
                lambda point=point, folder=folder, printed=printed: trained(
                    words, folder, printed, point, told
                )
            )
            fact |= state_of(folder)
            fact["code"] = in_child(
                lambda folder=folder, printed=printed: run(
                    [word.format(folder=folder) for word in words], printed
                )
            )
            fact["printed"] = printed.read_text()
            fact["same"] = fact["code"] == 0 and ended(folder) == whole
            fact["strays"] = [str(path) for path in folder.parent.rglob(".eqflow-*")]
        tell(fact)


if __name__ == "__main__":
    main()
