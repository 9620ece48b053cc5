"""From `key=value` words to a checked configuration, by Hydra's grammar and composition.

Wrong keys, types and options are all found before anything runs, and each is named with its nearest
neighbours.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eqflow.cli.schemas import CheckConfig, DemoConfig, SampleConfig, ScoreConfig
from eqflow.errors import UsageError
from eqflow.train.config import (
    Config,
    ExactConfig,
    FlowMatchingConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    MaximumLikelihoodConfig,
)

SCHEMAS: dict[str, type] = {
    "train": Config,
    "sample": SampleConfig,
    "score": ScoreConfig,
    "check": CheckConfig,
    "demo": DemoConfig,
}
GROUPS: dict[str, dict[str, type]] = {
    "objective": {
        "flow_matching": FlowMatchingConfig,
        "maximum_likelihood": MaximumLikelihoodConfig,
    },
    "divergence": {
        "exact": ExactConfig,
        "hutchinson": HutchinsonConfig,
        "hutch_plus_plus": HutchPlusPlusConfig,
    },
}

Schema = TypeVar("Schema")


def configs_folder() -> Path:
    """The folder of presets: inside an installed package, or at the top of a checkout."""
    installed = Path(str(files("eqflow"))) / "_configs"
    return installed if installed.is_dir() else Path(str(files("eqflow"))).parent / "configs"


def composed(verb: str, words: Sequence[str]) -> Any:
    """The configuration of a verb, as its schema's dataclass.

    Raises:
        UsageError: If a word is no `key=value`, a key or option is unknown, or a value has the
            wrong type; all wrong words are named in one message.
    """
    _register()
    with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
        try:
            return _composed(verb, list(words))
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(_explained(verb, list(words), error)) from error


def experiments() -> list[str]:
    """Names of the presets."""
    return sorted(path.stem for path in (configs_folder() / "experiment").glob("*.yaml"))


def keys(schema: type, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Every key of a schema with its default and its help."""
    found: dict[str, tuple[Any, str]] = {}
    for item in fields(schema):
        default = item.default_factory() if callable(item.default_factory) else item.default
        name = f"{prefix}{item.name}"
        if is_dataclass(default):
            if item.name in GROUPS:
                found[name] = (default.name, f"one of {', '.join(GROUPS[item.name])}")  # type: ignore[attr-defined]
            found |= keys(type(default), f"{name}.")
        else:
            found[name] = (default, item.metadata.get("help", ""))
    return found


def _register() -> None:
    store = ConfigStore.instance()
    for verb, schema in SCHEMAS.items():
        node = OmegaConf.structured(schema)
        for group in GROUPS:
            if group in node:
                node[group] = None  # filled by the option chosen, whatever its type
        store.store(name=f"{verb}_schema", node=node)
    for group, options in GROUPS.items():
        for name, node in options.items():
            store.store(group=group, name=name, node=node)


def _composed(verb: str, words: list[str]) -> Any:
    return OmegaConf.to_object(compose(config_name=verb, overrides=words))


def _explained(verb: str, words: list[str], error: Exception) -> str:
    """One line for each word that is wrong on its own, or else what Hydra said."""
    groups = [word for word in words if word.split("=")[0] in {*GROUPS, "experiment"}]
    lines = []
    for word in words:
        context = [] if word in groups else _usable(verb, groups)
        try:
            _composed(verb, [*context, word])
        except (HydraException, OmegaConfBaseException) as problem:
            lines.append(_explained_word(verb, word, problem))
    return "\n".join(lines) or _first_line(error)


def _usable(verb: str, words: list[str]) -> list[str]:
    try:
        _composed(verb, words)
    except (HydraException, OmegaConfBaseException):
        return []
    return words


def _explained_word(verb: str, word: str, problem: Exception) -> str:
    if "=" not in word:
        return f"{word!r}: expected key=value, such as seed=1."
    key, _, value = word.partition("=")
    key = key.lstrip("+~")
    text = f"{problem}\n{problem.__cause__ or ''}"
    if key in GROUPS or key == "experiment":
        options = list(GROUPS[key]) if key in GROUPS else experiments()
        if value not in options:
            return f"{word}: {key} has no option {value!r}{_nearest(value, options)}"
        return f"{word}: {_first_line(problem)}"
    known = keys(SCHEMAS[verb])
    for group in GROUPS.values():
        for option in group.values():
            prefix = next(name for name, options in GROUPS.items() if options is group)
            known |= keys(option, f"{prefix}.")
    if key not in known:
        return f"{word}: there is no key {key!r}{_nearest(key, list(known))}"
    reason = re.search(r"Value '.*?' .*|Key '.*?' .*|.*not convertible.*", text)
    return f"{word}: {reason.group(0) if reason else _first_line(problem)}"


def _nearest(name: str, known: list[str]) -> str:
    by_last = {key.split(".")[-1]: key for key in known}
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near += [
        by_last[last]
        for last in difflib.get_close_matches(name.split(".")[-1], by_last, n=2, cutoff=0.7)
    ]
    near = list(dict.fromkeys(near))[:3]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; expected one of {', '.join(known[:12])}{', …' if len(known) > 12 else ''}."


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
