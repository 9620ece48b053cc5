"""Pickles that leave a mark when they are opened, in all the forms in which files hold pickles."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import eqflow

# Runs many commands of the real command line in one process, and says of each how it ended.
DRIVER = """
import contextlib, io, json, pathlib, sys
from eqflow.cli.main import main
cases, mark = json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2])
ends = []
for words in cases:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = int(main(words))
        except BaseException as error:
            code = repr(error)
    ends.append([code, out.getvalue(), err.getvalue(), mark.exists()])
    mark.unlink(missing_ok=True)
print(json.dumps(ends))
"""


class Canary:
    """Whoever unpickles one makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.mark)!r}, 'w').close()",)


def forms(mark: Path) -> dict[str, bytes]:
    """What a file may hold, by the name of the form."""
    canary = Canary(mark)
    found = {f"pickle {number}": pickle.dumps(canary, number) for number in range(6)}
    found["pickle of a dict"] = pickle.dumps({"x": np.zeros(3), "y": canary}, 0)
    state = {"format": 1, "model": {"w": torch.zeros(3)}, "y": canary}
    found["state"] = _written(lambda file: torch.save(state, file))
    found["old state"] = _written(
        lambda file: torch.save(state, file, _use_new_zipfile_serialization=False)
    )
    objects = np.array([canary], dtype=object)
    found["npy"] = _written(lambda file: np.save(file, objects, allow_pickle=True))
    arrays: dict[str, Any] = {"x": np.zeros((3, 2)), "ptr": np.array([0, 3]), "positions": objects}
    arrays |= {"edge_index": objects, "y": objects, "packed": objects, "flow.x": objects}
    found["npz"] = _written(lambda file: np.savez(file, allow_pickle=True, **arrays))
    found["gzip"] = gzip.compress(found["pickle 2"])
    return found


def openings() -> dict[str, Callable[[bytes], Any]]:
    """How a careless program would open each form."""

    def arrays(content: bytes) -> None:
        with np.load(io.BytesIO(content), allow_pickle=True) as archive:
            for name in archive.files:
                archive[name]

    def state(content: bytes) -> None:
        torch.load(io.BytesIO(content), weights_only=False)

    return {
        "state": state,
        "old state": state,
        "npy": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
        "npz": arrays,
        "gzip": lambda content: pickle.loads(gzip.decompress(content)),  # noqa: S301 - our own
    }


def ends_of(cases: Sequence[Sequence[str]], folder: Path, mark: Path, **options: Any) -> list[Any]:
    """Code, output, errors and whether the canary sang, of each command."""
    listed = folder / "cases.json"
    listed.write_text(json.dumps(cases))
    code, out, err = eqflow(
        [str(listed), str(mark)], program=["-c", DRIVER], **({"cwd": folder} | options)
    )
    assert code == 0, err
    ends: list[Any] = json.loads(out.splitlines()[-1])
    return ends


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()
