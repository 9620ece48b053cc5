"""What a run folder says of the run it holds, and how that differs from the one asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from eqflow.errors import CheckpointError
from eqflow.train.documents import json_of, yaml_of
from eqflow.train.folder import CONFIG, PROVENANCE


def earlier_configuration(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run that the folder holds, if it holds one.

    Raises:
        CheckpointError: If there is a file of that name that is none.
    """
    path = folder / CONFIG
    advice = (
        "Where the run is of this command, delete the file: the same command writes it again and "
        "goes on. Else give another run.dir."
    )
    if not path.is_file():
        return None
    try:
        earlier = yaml_of(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {advice}") from error
    if not isinstance(earlier, dict):
        found = "an empty file" if earlier is None else type(earlier).__name__
        raise CheckpointError(
            f"{path}: found {found}, expected the configuration of a run. {advice}"
        )
    return earlier


def earlier_fingerprint(folder: Path) -> str | None:
    """SHA-256 of the data when the run of a folder began; None if unknown."""
    try:
        return str(json_of(folder / PROVENANCE)["data"]["sha256"])
    except (CheckpointError, LookupError, TypeError):
        return None


def changed_keys(
    config: Any, plain: Mapping[str, Any], earlier: Mapping[str, Any], may_change: Collection[str]
) -> list[str]:
    """What differs between a configuration and that of an earlier run: `key: before → now`.

    A key that an earlier version did not know had the effect of its default.

    Args:
        config: The configuration, a dataclass.
        plain: The same as plain values, resolved.
        earlier: Plain values of the earlier run.
        may_change: Keys that are left out.
    """
    before, now = flat(_defaults(config)) | flat(earlier), flat(plain)
    return [
        f"{key}: {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in may_change
    ]


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under their full names, such as `train.steps`."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _defaults(config: Any) -> dict[str, Any]:
    """What each key of a configuration is where nothing is said, its options as chosen."""
    found = asdict(type(config)())
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            found[item.name] = _defaults(value)
    return found
