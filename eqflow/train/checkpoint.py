"""What a run leaves on disk: weights to share, and states to resume from.

`weights.safetensors` holds the weights of the flow and, as metadata, everything needed to rebuild
it: the resolved configuration and the statistics of the data. `checkpoints/<step>.pt` adds what
resuming needs. Next to each file stands its SHA-256 (`eqflow.train.digests`), since neither format
notices a flipped byte. Nothing is ever unpickled: states load with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from eqflow import storage
from eqflow.data.text import is_pickle
from eqflow.errors import CheckpointError
from eqflow.train.digests import damage, listed, remove_lone_digests, write_with_digest
from eqflow.train.documents import json_in
from eqflow.train.folder import version_of

WEIGHTS = "weights.safetensors"
FORMAT = 1
KEPT = 2  # states kept: if the newest is damaged, the one before it still resumes


def save_weights(
    path: Path, module: nn.Module, config: Mapping[str, Any], statistics: Mapping[str, Any]
) -> None:
    """Write a module's weights with what is needed to rebuild it."""
    metadata = {
        "format": str(FORMAT),
        "eqflow": version_of("eqflow"),
        "config": json.dumps(config),
        "statistics": json.dumps(statistics),
    }
    tensors = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    write_with_digest(path, _in_order(save(tensors, metadata)))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata by name: the library writes them in a random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Tensors, configuration and statistics of a weights file.

    Raises:
        CheckpointError: If the file is missing, damaged, no weights file of eqflow, or of a newer
            version; its content is never executed.
    """
    _require_whole(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: found a damaged file or another format, expected weights written by eqflow "
            f"train ({error})."
        ) from error
    _require_known_format(path, metadata.get("format", "0"), metadata.get("eqflow"))
    if "config" not in metadata or "statistics" not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file without eqflow's metadata; expected weights written by "
            "eqflow train."
        )
    try:
        config, statistics = json_in(metadata["config"]), json_in(metadata["statistics"])
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error}).") from error
    return tensors, config, statistics


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a module.

    Raises:
        CheckpointError: If keys are missing or unexpected, or a shape differs; all are named.
    """
    expected = module.state_dict()
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in tensors.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"{path}: weights of another architecture: {'; '.join(problems[:8])}"
            f"{f'; and {len(problems) - 8} more' if len(problems) > 8 else ''}."
        )
    module.load_state_dict(dict(tensors))


def state_path(folder: Path, step: int) -> Path:
    """Where the state after `step` updates is kept."""
    return Path(folder) / f"{step:09d}.pt"


def save_state(
    folder: Path, step: int, state: Mapping[str, Any], *, keep: Collection[int] = ()
) -> None:
    """Write the state after `step` updates; keep it and the one before, delete all others.

    Later states are left from before a fallback to an earlier one, and superseded. A state that is
    damaged does not count: the two that are kept are whole, if there are two.

    Args:
        folder: Where states are.
        step: Updates done.
        state: Plain values and tensors.
        keep: Steps whose states are not deleted either.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "eqflow": version_of("eqflow"), **state}, buffer)
    path = state_path(folder, step)
    write_with_digest(path, buffer.getvalue())
    others = [other for other in _states(folder) if other != path]
    spared = {state_path(folder, other) for other in keep}
    kept = 1
    for other in others:
        if other.name < path.name and kept < KEPT and _is_whole(other):
            spared.add(other)
            kept += 1
    for other in others:
        if other not in spared:
            other.unlink(missing_ok=True)
    remove_lone_digests(folder, "*.pt")


def newest_state(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state that is whole, or None where there is none.

    Args:
        folder: Where states are.
        warn: Called with a line for each damaged state, which is passed over.

    Raises:
        CheckpointError: If there are states and none of them is whole.
    """
    storage.remove_strays(folder)
    remove_lone_digests(folder, "*.pt")
    problems = []
    for path in _states(folder, folders=True):
        try:
            return read_state(path)
        except CheckpointError as error:
            warn(f"warning: {error} Falling back to the state before it.")
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            f"{folder}: no state can be resumed from. {' '.join(problems)} "
            "Start again with another run.dir."
        )
    return None


def read_state_at(folder: Path, step: int) -> dict[str, Any]:
    """The state after `step` updates.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    return read_state(state_path(folder, step))


def read_state(path: Path) -> dict[str, Any]:
    """A state as written by `save_state`.

    Raises:
        CheckpointError: If it is damaged or no such file; its content is never executed.
    """
    _require_whole(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a restricted unpickler meets in a damaged file
        raise CheckpointError(
            f"{path}: found a damaged file or another format, expected a state written by eqflow "
            "train."
        ) from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path}: not a state written by eqflow train.")
    _require_known_format(path, state["format"], state.get("eqflow"))
    return state


def _states(folder: Path, folders: bool = False) -> list[Path]:
    """The states in a folder, newest first; what else may lie there is not ours."""
    found = (path for path in Path(folder).glob("*.pt") if path.stem.isdecimal())
    return sorted((path for path in found if folders or path.is_file()), reverse=True)


def _require_known_format(path: Path, found: object, writer: object) -> None:
    """Refuse the file of a newer eqflow, and say which one wrote it."""
    try:
        number = int(str(found))
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error}).") from error
    if number > FORMAT:
        needed = f"eqflow {writer}, which wrote it, or newer" if writer else "a newer eqflow"
        raise CheckpointError(
            f"{path}: format {number}, but this eqflow reads up to {FORMAT}; install {needed} "
            f"(this is eqflow {version_of('eqflow')})."
        )


def _is_whole(path: Path) -> bool:
    """Whether a state can be resumed from; where its SHA-256 is known, it need not be loaded."""
    try:
        _require_whole(path)
        if listed(path) is None:
            read_state(path)
    except CheckpointError:
        return False
    return True


def _require_whole(path: Path) -> None:
    """Refuse what is no checkpoint at first sight, or differs from its stored SHA-256.

    A file sent without its SHA-256 is taken as it is.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: found a folder, expected the file of a run.")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a run folder or its {WEIGHTS}.")
    try:
        if stranger := _stranger(path):
            raise CheckpointError(f"{path}: found {stranger}.")
        if problem := damage(path):
            raise CheckpointError(f"{path}: {problem}: the file is damaged. Copy it again.")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}). Copy it again."
        ) from error


def _stranger(path: Path) -> str:
    """What a file is if it can be no checkpoint, for messages; empty where it may be one."""
    with path.open("rb") as file:
        start = file.read(200)
    what = f"expected {WEIGHTS} of a run"
    if not start:
        return f"an empty file, {what}; copy it again"
    if start[8:10] == b'{"':
        # A safetensors file; the length of its header may look like the start of anything.
        return ""
    if start.lstrip()[:1] == b"<":
        return f"an HTML page, {what}; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return f"a Git LFS pointer, {what}; run git lfs pull where it came from"
    convert = (
        "never opened because it can run code; convert it where it was made: torch.load(…, "
        "weights_only=True), then safetensors.torch.save_file"
    )
    if is_pickle(start):
        return f"a pickle, {what}. It is {convert}"
    if start.startswith(b"PK") and not path.stem.isdecimal():
        return f"a zip archive or PyTorch file, {what}. It is {convert}"
    if start.startswith(b"\x93NUMPY"):
        return f"a numpy array, {what}"
    return ""
