"""From `key=value` words to a checked configuration, by Hydra's grammar and composition.

Wrong keys, types and options are all found before anything runs, and each is named with its nearest
neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eqflow.cli.schemas import (
    CheckConfig,
    DemoConfig,
    ImportEnfConfig,
    SampleConfig,
    ScoreConfig,
)
from eqflow.cli.words import Key, in_grammar, keys_of
from eqflow.errors import UsageError
from eqflow.train.config import (
    CategoricalModelConfig,
    Config,
    ExactConfig,
    FlowMatchingConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    JointModelConfig,
    MaskedModelConfig,
    MaximumLikelihoodConfig,
    ModelConfig,
)

SCHEMAS: dict[str, type] = {
    "train": Config,
    "sample": SampleConfig,
    "score": ScoreConfig,
    "check": CheckConfig,
    "import-enf": ImportEnfConfig,
    "demo": DemoConfig,
}
GROUPS: dict[str, dict[str, type]] = {
    "model": {
        "egnn": ModelConfig,
        "joint_egnn": JointModelConfig,
        "categorical_egnn": CategoricalModelConfig,
        "masked_egnn": MaskedModelConfig,
    },
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
    options: dict[str, Sequence[str]] = {}
    if verb == "train":
        options["experiment"] = experiments()
    known = keys(verb)
    options |= {group: list(choices) for group, choices in GROUPS.items() if group in known}
    words = in_grammar(words, known, options)
    strangers: list[str] = []
    with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
        while True:
            try:
                config = compose(config_name=verb, overrides=words)
                break
            except (HydraException, OmegaConfBaseException) as error:
                key = _key_of_another_option(error)
                if key not in known or not known[key].option:
                    raise UsageError(_first_line(error)) from error
                strangers.append(f"{key}: only with {known[key].option}.")
                kept = [word for word in words if not word.startswith(f"{key}=")]
                if kept == words:
                    raise UsageError("\n".join(strangers)) from error
                words = kept
    if strangers:
        raise UsageError("\n".join(strangers))
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UsageError(_first_line(error)) from error


def experiments() -> list[str]:
    """Names of the presets."""
    return sorted(path.stem for path in (configs_folder() / "experiment").glob("*.yaml"))


def keys(verb: str) -> dict[str, Key]:
    """Every key of a verb by its full name."""
    return keys_of(SCHEMAS[verb], GROUPS)


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


def _key_of_another_option(error: Exception) -> str:
    """The key that the option chosen does not have, if that is what Hydra says."""
    found = re.search(r"full_key: (\S+)", f"{error}\n{error.__cause__ or ''}")
    return found.group(1) if found else ""


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
