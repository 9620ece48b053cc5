"""Presets of node classification: each composes, understands the common keys, and takes a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_nodes

from eqflow.cli.compose import composed, experiments
from eqflow.cli.main import main
from eqflow.errors import UsageError
from eqflow.train.node_config import NodeConfig
from eqflow.train.node_models import BlendConfig, GrandConfig
from eqflow.train.node_problems import problems_of

PRESETS = (
    "actor",
    "chameleon",
    "citeseer",
    "coauthor_cs",
    "computers",
    "cora",
    "cornell",
    "photo",
    "squirrel",
    "texas",
    "wisconsin",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nodes.graph(tmp_path_factory.mktemp("data") / "graph.npz")


def test_these_are_all_presets_of_the_task() -> None:
    assert tuple(experiments("node_classification")) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_no_problem_but_a_missing_path(preset: str) -> None:
    config = composed("train", [f"experiment={preset}"])
    assert isinstance(config, NodeConfig)
    assert config.name == preset
    # Of the Wikipedia pages those without duplicates are taken.
    assert config.data.source in (preset, f"{preset}_filtered")
    missing = [line for line in problems_of(config) if line.startswith("data.path: needed")]
    assert problems_of(config) == missing
    assert bool(missing) == (preset not in ("cora", "citeseer"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_understands_the_keys_of_every_training_preset(preset: str) -> None:
    words = [
        f"experiment={preset}",
        "seed=5",
        "data.path=x.npz",
        "train.steps=7",
        "train.minutes=0.5",
        "train.checkpoint_every=3",
        "model.width=16",
    ]
    adaptive = ["solver.method=adaptive_heun", "solver.rtol=1e-3", "solver.atol=1e-2"]
    solver = composed("train", [*words, *adaptive]).solver
    assert (solver.method, solver.rtol, solver.atol) == ("adaptive_heun", 1e-3, 1e-2)
    config = composed("train", [*words, "solver.method=midpoint", "model.layers=2"])
    assert (config.name, config.seed, config.data.path) == (preset, 5, "x.npz")
    assert (config.train.steps, config.train.minutes, config.train.checkpoint_every) == (7, 0.5, 3)
    assert (config.model.layers, config.model.width) == (2, 16)
    assert config.solver.method == "midpoint"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_a_step_on_a_graph_of_ones_own(
    preset: str, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [f"experiment={preset}", "data.source=file", f"data.path={data}", f"run.dir={run}"]
    words += ["data.split=published", "data.largest_component=false", "train.steps=1"]
    assert main(["train", *words, "train.device=cpu", "train.tensorboard=false"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 1
    assert 0 <= summary["test_accuracy"] <= 1


def test_a_preset_tells_the_task_and_a_word_may_repeat_it_but_not_deny_it() -> None:
    words = ["experiment=cora", "task=node_classification"]
    assert composed("train", words) == composed("train", words[:1])
    with pytest.raises(UsageError, match="a preset of node_classification"):
        composed("train", ["experiment=cora", "task=structures"])
    with pytest.raises(UsageError, match="a preset of structures"):
        composed("train", ["experiment=dw4", "task=node_classification"])
    with pytest.raises(UsageError, match="did you mean node_classification"):
        composed("train", ["task=node_clasification"])


def test_without_a_preset_the_task_or_a_model_of_it_is_enough() -> None:
    said = composed("train", ["task=node_classification", "data.path=x.npz"])
    assert isinstance(said, NodeConfig)
    assert isinstance(said.model, GrandConfig)
    assert isinstance(composed("train", ["model=blend"]).model, BlendConfig)
    assert not isinstance(composed("train", ["model=joint_egnn"]), NodeConfig)
    assert not isinstance(composed("train", []), NodeConfig)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["experiment=cora", "model.haeds=2"], "did you mean model.heads or"),
        (["experiment=cora", "objective=flow_matching"], "there is no key 'objective'"),
        (["experiment=texas", "model.heads=2"], "model.heads: only with model=grand or"),
        (["experiment=cora", "model=egnn"], "model has no option 'egnn'"),
        (["experiment=cora", "encoding.teleport=x"], "expected a number"),
        (["experiment=cora", "encoding=deepwlk"], "did you mean deepwalk?"),
        (["experiment=coar"], "did you mean cora?"),
        (["model=grand", "train.batch_size=3"], "there is no key 'train.batch_size'"),
    ],
)
def test_a_wrong_word_is_named_with_what_is_expected(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as error:
        composed("train", words)
    assert expected in str(error.value)
