"""From `key=value` words to a checked configuration, by Hydra's grammar and composition.

Wrong keys, types and options are all found before anything runs, and each is named with its nearest
neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
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
    TuneConfig,
)
from eqflow.cli.words import Key, in_grammar, keys_of, nearest
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
from eqflow.train.node_config import ENCODINGS, NODE_CLASSIFICATION, REWIRINGS, NodeConfig
from eqflow.train.node_models import NODE_MODELS

# Schemas by the name of what is composed: a verb, or a task of train that is not the first.
SCHEMAS: dict[str, type] = {
    "train": Config,
    "train_nodes": NodeConfig,
    "sample": SampleConfig,
    "score": ScoreConfig,
    "check": CheckConfig,
    "import-enf": ImportEnfConfig,
    "demo": DemoConfig,
    "tune": TuneConfig,
}
# What train composes for each task; a preset without `task:` is of the first.
STRUCTURES = "structures"
TASKS = {STRUCTURES: "train", NODE_CLASSIFICATION: "train_nodes"}

GROUPS: dict[str, Mapping[str, type]] = {
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
NODE_GROUPS: dict[str, Mapping[str, type]] = {
    "model": NODE_MODELS,
    "encoding": ENCODINGS,
    "rewiring": REWIRINGS,
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
    what = verb
    if verb == "train":
        task, words = _task_of(words)
        what = TASKS[task]
        options["experiment"] = [name for each in TASKS for name in experiments(each)]
    known = keys(what)
    options |= {
        group: list(choices) for group, choices in groups_of(what).items() if group in known
    }
    words = in_grammar(words, known, options)
    strangers: list[str] = []
    with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
        while True:
            try:
                config = compose(config_name=what, overrides=words)
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


def experiments(task: str | None = None) -> list[str]:
    """Names of the presets, of one task or of all."""
    paths = sorted((configs_folder() / "experiment").glob("*.yaml"))
    return [path.stem for path in paths if task in (None, _task_of_preset(path))]


def keys(what: str) -> dict[str, Key]:
    """Every key of a verb, or of a task of train, by its full name."""
    return keys_of(SCHEMAS[what], groups_of(what))


def task_of(words: Sequence[str]) -> str:
    """The task that the words of train are about: said by `task=`, or by the preset.

    Raises:
        UsageError: If there is no such task, or the preset is of another.
    """
    return _task_of(words)[0]


def train_keys(words: Sequence[str]) -> dict[str, Key]:
    """Every key of the task that words of train are about."""
    return keys(TASKS[task_of(words)])


def options_of_train(words: Sequence[str]) -> dict[str, Sequence[str]]:
    """What each group of the task may be that words of train are about."""
    return _options(TASKS[task_of(words)])


def split_off(words: Sequence[str], schema: type) -> tuple[list[str], list[str], list[str]]:
    """Words that set a key of a schema, those of `space.`, and all others."""
    own, space, others = [], [], []
    known = keys_of(schema, {})
    for word in words:
        key = word.partition("=")[0]
        (own if key in known else space if key.startswith("space.") else others).append(word)
    return own, space, others


def _options(what: str) -> dict[str, Sequence[str]]:
    """What each group of a verb may be, presets among them."""
    options: dict[str, Sequence[str]] = {}
    if what in TASKS.values():
        options["experiment"] = [name for each in TASKS for name in experiments(each)]
    known = keys(what)
    return options | {
        group: list(choices) for group, choices in groups_of(what).items() if group in known
    }


def _task_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """The task, and the words without `task=`, which chooses a schema and is no key of it."""
    said = [word.partition("=")[2] for word in words if word.startswith("task=")]
    rest = [word for word in words if not word.startswith("task=")]
    presets = [word.partition("=")[2] for word in rest if word.startswith("experiment=")]
    of_preset = None
    if presets and presets[-1] in experiments():
        of_preset = _task_of_preset(configs_folder() / "experiment" / f"{presets[-1]}.yaml")
    task = said[-1] if said else of_preset or _task_of_groups(rest)
    if task not in TASKS:
        raise UsageError(f"task={task}: there is no such task; {nearest(task, TASKS)}")
    if of_preset not in (None, task):
        raise UsageError(f"task={task}: experiment={presets[-1]} is a preset of {of_preset}.")
    return task, rest


def _task_of_groups(words: Sequence[str]) -> str:
    """Without a preset a model tells its task."""
    chosen = {word.partition("=")[2] for word in words if word.startswith("model=")}
    return NODE_CLASSIFICATION if chosen & set(NODE_MODELS) else STRUCTURES


def _task_of_preset(path: Path) -> str:
    # One line of it: reading all presets as YAML would take longer than composing one.
    found = re.search(r"^task: *(\w+)", path.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else STRUCTURES


def groups_of(what: str) -> dict[str, Mapping[str, type]]:
    """The options of each group that a verb, or a task of train, may have."""
    return NODE_GROUPS if what == "train_nodes" else GROUPS


@cache
def _register() -> None:
    store = ConfigStore.instance()
    for what, schema in SCHEMAS.items():
        node = OmegaConf.structured(schema)
        for group in groups_of(what):
            if group in node:
                node[group] = None  # filled by the option chosen, whatever its type
        store.store(name=f"{what}_schema", node=node)
    for groups in (GROUPS, NODE_GROUPS):
        for group, options in groups.items():
            for name, node in options.items():
                store.store(group=group, name=name, node=node)


def _key_of_another_option(error: Exception) -> str:
    """The key that the option chosen does not have, if that is what Hydra says."""
    found = re.search(r"full_key: (\S+)", f"{error}\n{error.__cause__ or ''}")
    return found.group(1) if found else ""


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
