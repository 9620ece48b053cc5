"""YAML and JSON of a run folder as plain values, whoever wrote them.

A folder may come from someone else. What a few lines can make of a reader, a billion values out of
names for each other, or a tower of brackets that no recursion climbs down, is refused before it
grows: a document has no aliases, which no writer of ours makes, and its size and depth are bounded.
Nothing is interpolated, and no tag of YAML makes an object.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from eqflow.errors import CheckpointError

LARGEST = 1 << 20  # bytes
LONGEST = 4096  # characters of a value that is not quoted: digits of a number, perhaps
DEEPEST = 64


def yaml_of(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        CheckpointError: If it is none, or one that is made to grow.
    """
    try:
        return _plain_yaml(_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not YAML ({_shortly(error)}).") from error


def json_of(path: Path) -> Any:
    """The plain values of a JSON file.

    Raises:
        CheckpointError: If it is none, or one that is made to grow.
    """
    try:
        return json_in(_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({_shortly(error)}).") from error


def json_in(text: str) -> Any:
    """The plain values of a JSON text.

    Raises:
        ValueError: If it is none, or one whose brackets are nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets are nested too deep") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes")
    return content.decode("utf-8")


def _plain_yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases, which a run never writes")
        if isinstance(event, yaml.ScalarEvent) and not event.style and len(event.value) > LONGEST:
            raise ValueError(f"a value of {len(event.value):,} characters")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")
    return yaml.safe_load(text)


def _shortly(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
