"""Runs of `eqflow sample` and `eqflow score` that are killed, each many times, in little time.

A program of its own: it imports everything once and forks a child for each run. A child kills
itself by SIGKILL when it is about to write, in the middle of a write, or just after, at the point
it is told (see `forked`), or is killed after a part of the time that an undisturbed run takes.

    python forked_outputs.py '{"words": […], "out": path, "printed": path, "setup": […]}'

prints a JSON line about the run that nobody disturbs, and then, for each JSON list of deaths that
it reads (points, or parts of the time as text), a line about the runs that died like this, one
after another on the same output, and about the last one, which was left alone.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from forked import Points, in_child, run, tell, watch


def disturbed(
    words: list[str], printed: Path, out: Path, death: int | str | None, seconds: float = 0.0
) -> int:
    """The exit code of one run; its points go to a file beside what it printed."""
    if isinstance(death, str):
        return killed_after(float(death) * seconds, words, printed)

    def act() -> int:
        points = Points(out.parent, death)
        watch(points)
        code = run(words, printed)
        printed.with_suffix(".points").write_text(json.dumps(points.names))
        return code

    return in_child(act)


def killed_after(seconds: float, words: list[str], printed: Path) -> int:
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = run(words, printed)
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def state_of(out: Path) -> dict[str, Any]:
    """What is there after a run."""
    content = base64.b64encode(out.read_bytes()).decode() if out.exists() else None
    return {"content": content, "names": sorted(path.name for path in out.parent.iterdir())}


def cleared(out: Path) -> None:
    for path in out.parent.iterdir():
        path.unlink()


def main() -> None:
    job = json.loads(sys.argv[1])
    words, out, printed = job["words"], Path(job["out"]), Path(job["printed"])
    for module, name, value in job["setup"]:
        setattr(importlib.import_module(module), name, value)
    # The first run, of the parent, imports all that is imported on the way.
    code = run(words, printed)
    first = {"code": code, "printed": printed.read_text(), **state_of(out)}
    cleared(out)
    began = time.monotonic()
    code = disturbed(words, printed, out, None)
    seconds = time.monotonic() - began
    points = json.loads(printed.with_suffix(".points").read_text())
    tell({"first": first, "code": code, "points": points, **state_of(out)})
    for line in sys.stdin:
        cleared(out)
        deaths = []
        for death in json.loads(line):
            code = disturbed(words, printed, out, death, seconds)
            deaths.append({"code": code, **state_of(out)})
        code = disturbed(words, printed, out, None)
        tell({"deaths": deaths, "code": code, "printed": printed.read_text(), **state_of(out)})


if __name__ == "__main__":
    main()
