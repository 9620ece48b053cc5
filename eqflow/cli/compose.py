"""From `key=value` words to a checked configuration, by Hydra's grammar and composition.

Wrong keys, types and options are all found before anything runs, and each is named with its nearest
neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eqflow.cli.presets import Preset, options_of, strangers
from eqflow.cli.schemas import (
    CheckConfig,
    DemoConfig,
    DoctorConfig,
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
    FrameModelConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    IrrepsModelConfig,
    JointModelConfig,
    MaskedModelConfig,
    MaximumLikelihoodConfig,
    ModelConfig,
)
from eqflow.train.node_config import ENCODINGS, NODE_CLASSIFICATION, REWIRINGS, NodeConfig
from eqflow.train.node_models import NODE_MODELS
from eqflow.train.solver_unused import without_effect as unused_of_solver
from eqflow.train.tasks import ineffective, problems_of, unused_from_preset

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
    "doctor": DoctorConfig,
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
        "e3nn": IrrepsModelConfig,
        "frame_transformer": FrameModelConfig,
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


def composed(
    verb: str,
    words: Sequence[str],
    notice: Callable[[str], None] | None = None,
    *,
    takes_unused: bool = False,
) -> Any:
    """The configuration of a verb, as its schema's dataclass.

    What a preset says of another option than the one chosen by a word is left out of it.

    Args:
        verb: Which.
        words: As typed, `key=value` each.
        notice: Called with a line about what was left out.
        takes_unused: Whether words may have no effect beside the others, as some of a search have
            in some of its trials.

    Raises:
        UsageError: If a word is no `key=value`, a key or option is unknown, a value has the wrong
            type, or a word has no effect beside the others; all wrong words are named in one
            message, with what is wrong about the values of the others.
    """
    _register()
    what = verb
    if verb == "train":
        task, words = _task_of(words)
        what = TASKS[task]
    known, options = keys(what), _options(what)
    problems, good = [], []
    for word in words:
        try:
            good += in_grammar([word], known, options)
        except UsageError as error:
            problems.append(str(error))
    preset, chosen = _chosen(what, good)
    typed = dict.fromkeys(word.partition("=")[0] for word in good)
    for key in strangers([key for key in typed if key in known], known, chosen):
        problems.append(f"{key}: only with {known[key].option}.")
        good = [word for word in good if not word.startswith(f"{key}=")]
    typed = dict.fromkeys(word.partition("=")[0] for word in good)
    try:
        config, left_out = _composed(what, good, preset, chosen)
    except UsageError as error:
        raise UsageError("\n".join([*problems, str(error)])) from error
    unused = {} if takes_unused else _unused(config, typed)
    # What follows from a word that was not understood is no problem of its own.
    named = typed if problems else None
    problems += [f"{key}: {why}" for key, why in unused.items()]
    if verb == "train" and problems:
        for line in problems_of(config):
            key = line.partition(":")[0]
            is_typed = named is None or any(part in named for part in key.split(" + "))
            if key not in unused and is_typed:
                problems.append(line)
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    if left_out and notice is not None:
        told = " ".join(f"{group}={option}" for group, option in chosen.items() if group in typed)
        verb = "is" if len(left_out) == 1 else "are"
        notice(f"notice: of the preset, {', '.join(left_out)} {verb} left out beside {told}")
    return config


def unused_words(words: Sequence[str]) -> dict[str, str]:
    """Keys of words of train that have no effect beside the others, and why.

    Raises:
        UsageError: If a word is wrong for another reason.
    """
    typed = {word.partition("=")[0] for word in words}
    return _unused(composed("train", words, takes_unused=True), typed)


def _unused(config: Any, typed: Collection[str]) -> dict[str, str]:
    """Those of the keys typed that have no effect, and why; what nobody typed may have none."""
    found: dict[str, str] = {}
    if isinstance(config, Config | NodeConfig):
        found = ineffective(config)
    elif isinstance(config, ImportEnfConfig):
        found = unused_of_solver(config.solver.method)
    return {key: why for key, why in found.items() if key in typed}


def _chosen(what: str, words: Sequence[str]) -> tuple[Preset | None, dict[str, str]]:
    """The preset of words that were understood, and the option of each group that they choose."""
    groups = groups_of(what)
    said = dict(word.partition("=")[::2] for word in words)
    plain = yaml.safe_load((configs_folder() / f"{what}.yaml").read_text("utf-8")) if groups else {}
    chosen = {
        group: option
        for group, option in options_of(plain.get("defaults", [])).items()
        if group in groups and isinstance(option, str)
    }
    preset = None
    if "experiment" in said:
        preset = Preset.read(configs_folder() / "experiment" / f"{said['experiment']}.yaml")
        chosen |= preset.options
    chosen |= {group: said[group] for group in groups if group in said}
    return preset, chosen


def _composed(
    what: str,
    words: Sequence[str],
    preset: Preset | None,
    chosen: Mapping[str, str],
) -> tuple[Any, list[str]]:
    """The configuration of words whose keys the options chosen have; what it leaves out."""
    typed = {word.partition("=")[0] for word in words}
    groups = [group for group in groups_of(what) if group in typed]
    if preset is None or all(preset.options.get(group) == chosen[group] for group in groups):
        return _by_hydra(what, words), []
    left_out = set(strangers(preset.keys, keys(what), chosen))
    config = _by_hydra(what, words, preset.without(left_out))
    # Who sets a key of a group means what the preset chose of it.
    spoken = {key.partition(".")[0] for key in typed}
    there = {*preset.keys, *(group for group in preset.options if group not in spoken)}
    if unused := unused_from_preset(config) & (there - left_out):
        left_out |= unused
        config = _by_hydra(what, words, preset.without(left_out))
    return config, sorted(left_out - typed)


def _by_hydra(what: str, words: Sequence[str], preset: Preset | None = None) -> Any:
    """What Hydra composes of words, with a preset in place of the one they name."""
    if preset is not None:
        name = "adapted"
        ConfigStore.instance().store(
            group="experiment", name=name, node=preset.node(), package="_global_"
        )
        words = [f"experiment={name}" if w.startswith("experiment=") else w for w in words]
    try:
        with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
            config = compose(config_name=what, overrides=list(words))
        return OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException) as error:
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


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
