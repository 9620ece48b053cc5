"""What a run leaves on disk: weights to share, and states to resume from.

`weights.safetensors` holds the weights of the flow and, as metadata, everything needed to rebuild
it: the resolved configuration and the statistics of the data. `checkpoints/<step>.pt` adds what
resuming needs. Next to each file stands its SHA-256, since neither format notices a flipped byte.
Nothing is ever unpickled: states load with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from eqflow import storage
from eqflow.errors import CheckpointError

WEIGHTS = "weights.safetensors"
FORMAT = 1
KEPT = 2  # states kept: if the newest is damaged, the one before it still resumes


def save_weights(
    path: Path, module: nn.Module, config: Mapping[str, Any], statistics: Mapping[str, Any]
) -> None:
    """Write a module's weights with what is needed to rebuild it."""
    metadata = {
        "format": str(FORMAT),
        "config": json.dumps(config),
        "statistics": json.dumps(statistics),
    }
    tensors = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    _write_with_digest(path, save(tensors, metadata))


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
    if "config" not in metadata or "statistics" not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file without eqflow's metadata; expected weights written by "
            "eqflow train."
        )
    try:
        newer = int(metadata.get("format", "0")) > FORMAT
        config, statistics = json.loads(metadata["config"]), json.loads(metadata["statistics"])
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error}).") from error
    if newer:
        raise CheckpointError(
            f"{path}: format {metadata['format']}, but this eqflow reads up to {FORMAT}; "
            "install a newer eqflow."
        )
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


def save_state(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the state after `step` updates; keep it and the one before, delete all others.

    Later states are left from before a fallback to an earlier one, and superseded.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    path = folder / f"{step:09d}.pt"
    _write_with_digest(path, buffer.getvalue())
    paths = sorted(folder.glob("*.pt"))
    kept = [earlier for earlier in paths if earlier.name <= path.name][-KEPT:]
    for old in set(paths) - set(kept):
        old.unlink()
        _digest_path(old).unlink(missing_ok=True)


def newest_state(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state that is whole, or None where there is none.

    Args:
        folder: Where states are.
        warn: Called with a line for each damaged state, which is passed over.

    Raises:
        CheckpointError: If there are states and none of them is whole.
    """
    storage.remove_strays(folder)
    paths = sorted(folder.glob("*.pt"), reverse=True)
    problems = []
    for path in paths:
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


def read_state(path: Path) -> dict[str, Any]:
    """A state as written by `save_state`.

    Raises:
        CheckpointError: If it is damaged or no such file; its content is never executed.
    """
    _require_whole(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path}: found a damaged file or another format, expected a state written by eqflow "
            "train."
        ) from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path}: not a state written by eqflow train.")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: format {state['format']}, but this eqflow reads up to {FORMAT}."
        )
    return state


def _write_with_digest(path: Path, content: bytes) -> None:
    """Write a file and its SHA-256; killed in between, there is no digest, not a wrong one."""
    _digest_path(path).unlink(missing_ok=True)
    storage.write_bytes(path, content)
    storage.write_text(_digest_path(path), f"{storage.sha256_of(path)}  {path.name}\n")


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _require_whole(path: Path) -> None:
    """Refuse what is no checkpoint at first sight, or differs from its stored SHA-256.

    A file sent without its SHA-256 is taken as it is.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a run folder or its {WEIGHTS}.")
    if stranger := _stranger(path):
        raise CheckpointError(f"{path}: found {stranger}.")
    digest = _digest_path(path)
    if not digest.is_file():
        return
    expected = digest.read_text("utf-8", "replace").split()[:1]
    found = storage.sha256_of(path)
    if expected != [found]:
        raise CheckpointError(
            f"{path}: its SHA-256 is {found[:12]}…, but {digest.name} says "
            f"{(expected or ['nothing'])[0][:12]}…: the file is damaged. Copy it again."
        )


def _stranger(path: Path) -> str:
    """What a file is if it can be no checkpoint, for messages; empty where it may be one."""
    with path.open("rb") as file:
        start = file.read(200)
    what = f"expected {WEIGHTS} of a run"
    if not start:
        return f"an empty file, {what}; copy it again"
    if start.lstrip()[:1] == b"<":
        return f"an HTML page, {what}; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return f"a Git LFS pointer, {what}; run git lfs pull where it came from"
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return (
            f"a pickle, {what}. Pickles are never opened because they can run code; convert it "
            "where it was made: torch.load(…, weights_only=True), then safetensors.torch.save_file"
        )
    if start.startswith(b"PK") and path.suffix != ".pt":
        return f"a zip archive or PyTorch file, {what}"
    return ""
