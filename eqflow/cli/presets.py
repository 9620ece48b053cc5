"""A preset under words of one's own: what it says that the options chosen do not have is left out.

Who takes a preset and another model means its data, its split and its loop. What the preset says of
its own model has then no meaning; what was typed has, and is never left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eqflow.cli.words import Key
from eqflow.train.resuming import flat


@dataclass(frozen=True)
class Preset:
    """A file of `configs/experiment`.

    Attributes:
        plain: What is in it but its defaults, nested as there.
        options: The option it chooses of each group.
    """

    plain: Mapping[str, Any]
    options: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Preset:
        """The preset of a file, on top of those that it names in its defaults."""
        plain = yaml.safe_load(path.read_text("utf-8"))
        defaults = plain.pop("defaults", [])
        options: dict[str, str] = {}
        for entry in defaults:
            if isinstance(entry, str) and entry != "_self_":
                below = cls.read(path.with_name(f"{entry}.yaml"))
                plain, options = _merged(below.plain, plain), {**options, **below.options}
        return cls(plain, options | options_of(defaults))

    @property
    def keys(self) -> list[str]:
        """What it sets, by full names."""
        return list(flat(self.plain))

    def without(self, keys: Collection[str]) -> Preset:
        """The same preset without some keys, or choices of groups."""
        options = {group: option for group, option in self.options.items() if group not in keys}
        return Preset(_without(self.plain, keys, ""), options)

    def node(self) -> dict[str, Any]:
        """As Hydra composes it, in the global package."""
        defaults = [{f"override /{group}": option} for group, option in self.options.items()]
        return {"defaults": defaults, **self.plain}


def options_of(defaults: Sequence[Any]) -> dict[str, str]:
    """The option of each group that a list of Hydra's defaults chooses."""
    return {
        group.removeprefix("override").strip().lstrip("/"): option
        for entry in defaults
        if isinstance(entry, Mapping)
        for group, option in entry.items()
    }


def strangers(
    keys: Collection[str], known: Mapping[str, Key], chosen: Mapping[str, str]
) -> list[str]:
    """Those of `keys` that the options chosen do not have.

    Args:
        keys: Full names, all of them known.
        known: Every key, of all options.
        chosen: The option of each group.
    """
    found = []
    for key in keys:
        group, having = key.partition(".")[0], known[key].option
        if having and f"{group}={chosen.get(group)}" not in having.split(" or "):
            found.append(key)
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        is_section = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _merged(both[key], value) if is_section else value
    return both


def _without(plain: Mapping[str, Any], keys: Collection[str], prefix: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            if inside := _without(value, keys, f"{prefix}{key}."):
                kept[key] = inside
        elif f"{prefix}{key}" not in keys:
            kept[key] = value
    return kept
