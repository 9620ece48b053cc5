"""A preset with another model than its own, words without effect, and all that is wrong at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_nodes

from eqflow.cli.compose import composed, configs_folder, experiments
from eqflow.cli.main import main
from eqflow.cli.presets import Preset
from eqflow.errors import UsageError
from eqflow.train.config import CategoricalModelConfig, MaskedModelConfig
from eqflow.train.node_models import NODE_MODELS
from eqflow.train.tasks import problems_of

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nodes.graph(tmp_path_factory.mktemp("data") / "graph.npz")


def refused(*words: str) -> list[str]:
    """The lines with which words of train are refused."""
    with pytest.raises(UsageError) as error:
        composed("train", words)
    return str(error.value).splitlines()


@pytest.mark.parametrize("model", NODE_MODELS)
@pytest.mark.parametrize("preset", ["cora", "photo", "texas"])
def test_a_preset_serves_every_model(preset: str, model: str) -> None:
    told: list[str] = []
    words = [f"experiment={preset}", f"model={model}", "data.path=x.npz"]
    words += ["encoding=laplacian"] if model == "blend" else []
    config = composed("train", words, told.append)
    own = composed("train", [f"experiment={preset}", "data.path=x.npz"])
    assert problems_of(config) == []
    assert config.model.name == model
    assert (config.name, config.data) == (own.name, own.data)
    assert config.train == own.train
    for name in ("width", "dropout", "input_dropout"):  # what every model has
        assert getattr(config.model, name) == getattr(own.model, name)
    if model == own.model.name:
        assert told == []


def test_what_is_left_out_is_told_in_one_line_and_nothing_else_is() -> None:
    told: list[str] = []
    config = composed("train", ["experiment=cora", "model=gcn"], told.append)
    assert told == [
        "notice: of the preset, encoding, model.attention_width, model.diffusivity, model.heads, "
        "model.normaliser, model.over, model.time, solver.method are left out beside model=gcn"
    ]
    assert config.encoding.name == "none"
    assert (config.train.steps, config.train.optimizer) == (100, "adamax")
    told.clear()
    assert composed("train", ["experiment=cora"], told.append).encoding.name == "ppr"
    same = composed("train", ["experiment=cora", "model=blend"], told.append)
    assert same == composed("train", ["experiment=cora"])
    assert told == []


def test_an_encoding_stays_for_what_has_a_use_for_it() -> None:
    told: list[str] = []
    words = ["experiment=cora", "model=gcn", "rewiring=knn", "encoding=laplacian"]
    config = composed("train", words, told.append)
    assert (config.encoding.name, config.rewiring.name) == ("laplacian", "knn")
    assert "encoding," not in told[0]
    # A typed one without a use is no affair of the preset.
    config = composed("train", ["experiment=cora", "model=gcn", "encoding=laplacian"])
    assert problems_of(config)[0].startswith("encoding: found laplacian with model=gcn")
    config = composed("train", ["experiment=cora", "model=gcn", "encoding.width=4"])
    assert problems_of(config)[0].startswith("encoding: found ppr with model=gcn")


def test_a_preset_of_structures_serves_another_model_and_objective() -> None:
    told: list[str] = []
    config = composed("train", ["experiment=qm9", "model=masked_egnn"], told.append)
    assert isinstance(config.model, MaskedModelConfig)
    own = composed("train", ["experiment=qm9"])
    assert isinstance(own.model, CategoricalModelConfig)
    assert (config.data, config.train) == (own.data, own.train)


@pytest.mark.parametrize("preset", experiments())
def test_a_preset_read_here_is_the_one_that_hydra_reads(preset: str) -> None:
    """With nothing left out the file and what is made of it compose alike."""
    from eqflow.cli.compose import TASKS, _by_hydra, _register, task_of

    _register()
    what, word = TASKS[task_of([f"experiment={preset}"])], [f"experiment={preset}"]
    read = Preset.read(configs_folder() / "experiment" / f"{preset}.yaml")
    assert _by_hydra(what, word, read) == _by_hydra(what, word)


def test_a_preset_on_top_of_another_is_both(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text(
        "defaults:\n  - override /model: egnn\nname: low\ntrain:\n  steps: 1\n  clip: 2\n"
    )
    (tmp_path / "high.yaml").write_text(
        "defaults:\n  - low\n  - _self_\nname: high\ntrain:\n  steps: 3\n"
    )
    preset = Preset.read(tmp_path / "high.yaml")
    assert preset.plain == {"name": "high", "train": {"steps": 3, "clip": 2}}
    assert preset.options == {"model": "egnn"}


def test_keys_are_left_out_of_sections_and_groups_alone() -> None:
    plain: dict[str, Any] = {"name": "x", "model": {"width": 1, "heads": 2}, "data": {"path": "p"}}
    preset = Preset(plain, {"model": "grand", "encoding": "ppr"})
    assert preset.keys == ["name", "model.width", "model.heads", "data.path"]
    left = preset.without({"model.heads", "data.path", "encoding"})
    assert left.plain == {"name": "x", "model": {"width": 1}}
    assert left.node()["defaults"] == [{"override /model": "grand"}]
    assert preset.plain["model"]["heads"] == 2


def test_keys_that_were_typed_and_the_model_lacks_are_refused_all_at_once() -> None:
    lines = refused("experiment=cora", "model=gcn", "model.heads=2", "model.time=3", "seed=1")
    assert [line.partition(":")[0] for line in lines] == ["model.heads", "model.time"]
    assert all("only with model=grand" in line for line in lines)


def test_unknown_keys_strangers_and_values_come_in_one_message() -> None:
    lines = refused(
        "experiment=cora",
        "model=gcn",
        "train.stps=3",
        "model.heads=2",
        "encoding.tleport=1",
        "solver.rtol=1e-3",
        "train.learning_rate=x",
        "train.patience=0",
        "model.layers=1",
        "model.dropout=2",
    )
    starts = [
        "train.stps=3: there is no key",
        "encoding.tleport=1: there is no key",
        "train.learning_rate=x: expected a number",
        "model.heads: only with",
        "solver.rtol: found with model=gcn, a network of layers, which has no solver",
        "train.patience: found 0",
        "model.layers: found 1, expected at least 2",
        "model.dropout: found 2.0",
    ]
    assert len(lines) == len(starts), lines
    for start in starts:
        assert any(line.startswith(start) for line in lines), start


def test_what_follows_from_a_word_not_understood_is_no_problem_of_its_own() -> None:
    lines = refused("task=node_classification", "data.pth=x.npz", "train.steps=0")
    assert len(lines) == 2
    assert lines[0].startswith("data.pth=x.npz: there is no key 'data.pth'; did you mean data.path")
    assert lines[1].startswith("train.steps: found 0")


def test_structures_have_their_values_named_with_the_rest_too() -> None:
    lines = refused("experiment=dw4", "train.stps=3", "train.steps=0", "objective.kinetic=1")
    assert lines[0].startswith("train.stps=3: there is no key")
    assert lines[1] == "objective.kinetic: only with objective=maximum_likelihood."
    assert lines[2] == "train.steps: found 0, expected at least 1."


BASE = ["task=node_classification", "data.path=x.npz"]
OF_NODES = "model=grand"
# A word that says which task it is about, of each.
TASK_WORDS = ("model=egnn", OF_NODES)
WITHOUT_EFFECT = [
    *((f"model={model}", "solver.steps=3", "no solver") for model in ("gcn", "gated_gcn")),
    ("model=pair_norm_gcn", "solver.method=euler", "no solver"),
    ("", "data.train_per_class=5", "expected data.split=planetoid or per_class or development"),
    ("data.split=fraction", "data.train_per_class=5", "found with data.split=fraction"),
    ("data.split=planetoid", "data.development=50", "expected data.split=development with it"),
    ("experiment=texas", "solver.steps=9", "found with model.layers=6, which are the steps"),
    ("", "model.layers=3", "found with solver.method=dopri5, which chooses its own steps"),
    ("solver.method=exponential", "model.layers=3", "is exact here, without steps"),
    ("model=graff solver.method=exponential", "model.layers=3", "is exact here, without steps"),
    *(
        (f"{task} solver.method={method}", "solver.steps=3", "chooses its own steps")
        for task in TASK_WORDS
        for method in ("dopri5", "adaptive_heun")
    ),
    *(
        (f"{task} solver.method={method}", f"solver.{key}=1e-3", "whose steps are fixed")
        for task in TASK_WORDS
        for method, key in (("rk4", "rtol"), ("euler", "atol"), ("heun", "rtol"))
    ),
    (OF_NODES, "solver.steps=3", "chooses its own steps"),  # the method of who says none
    ("experiment=dw4", "solver.steps=3", "chooses its own steps"),
    ("experiment=cora", "solver.steps=3", "is exact here, without steps"),
    ("experiment=cora", "solver.atol=1e-3", "whose one tolerance is solver.rtol"),
    ("experiment=texas solver.method=dopri5", "solver.steps=9", "chooses its own steps"),
    (f"{OF_NODES} solver.method=exponential_euler", "solver.steps=3", "is exact here"),
    (f"{OF_NODES} solver.method=implicit", "solver.atol=1e-3", "whose one tolerance"),
    ("experiment=molecules model=masked_egnn solver.method=euler", "solver.rtol=1e-3", "are fixed"),
]


def _of_task(others: str) -> list[str]:
    """Words that the others need; those of structures say their task themselves."""
    is_of_structures = any(word in others for word in ("egnn", "experiment=dw4"))
    return ["data.path=x.npz"] if is_of_structures else BASE


@pytest.mark.parametrize(("others", "word", "reason"), WITHOUT_EFFECT)
def test_a_word_without_effect_is_refused_with_the_reason(
    others: str, word: str, reason: str
) -> None:
    (line,) = refused(*_of_task(others), *others.split(), word)
    assert line.startswith(f"{word.partition('=')[0]}: found with ")
    assert reason in line


@pytest.mark.parametrize(
    "words",
    [
        "data.split=planetoid data.train_per_class=5",
        "data.split=development data.development=50 data.train_per_class=3",
        "experiment=texas model.layers=null solver.steps=9",
        "solver.method=euler model.layers=3",
        "solver.method=exponential model.nonlinear=true model.layers=3",
        "model=graff model.matrices=3 model.layers=3 solver.method=exponential",
        "model=blend encoding=ppr model.neighbours=3 model.layers=3 solver.method=exponential",
        "solver.method=implicit model.layers=3",
        "model=gde solver.method=rk4 model.layers=3 model.source=true",
        "experiment=cora model=gde solver.rtol=1e-3 solver.atol=1e-3",  # by dopri5 again
        "solver.method=rk4 solver.steps=20",
        "solver.rtol=1e-6 solver.atol=1e-6",
        "solver.method=implicit solver.steps=4 solver.rtol=1e-6",
        "solver.method=exponential solver.rtol=1e-6",
        "model.nonlinear=true solver.method=exponential solver.steps=4",
        "experiment=cora solver.method=rk4 solver.steps=20",
        "experiment=cora solver.method=dopri5 solver.rtol=1e-3 solver.atol=1e-3",
        "model=egnn solver.method=rk4 solver.steps=20",
        "model=egnn solver.rtol=1e-6 solver.atol=1e-6",
        "experiment=dw4 solver.method=euler solver.steps=5",
        "model=masked_egnn solver.steps=5",  # stretches, whatever the method
        "model=masked_egnn solver.steps=5 solver.rtol=1e-3",
    ],
)
def test_a_word_with_an_effect_is_taken(words: str) -> None:
    assert problems_of(composed("train", [*_of_task(words), *words.split()])) == []


def test_what_a_preset_says_without_effect_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there for who sets another method beside it."""
    folder = shutil.copytree(configs_folder(), tmp_path / "configs")
    for name, task in (("flow", ""), ("graph", "task: node_classification\n")):
        (folder / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\n# both\n{task}name: {name}\n"
            "solver:\n  method: rk4\n  rtol: 0.001\n  atol: 0.01\n  steps: 7\n"
        )
    monkeypatch.setattr("eqflow.cli.compose.configs_folder", lambda: folder)
    for name in ("flow", "graph"):
        preset = f"experiment={name}"
        solver = composed("train", [preset]).solver
        assert (solver.method, solver.rtol, solver.atol, solver.steps) == ("rk4", 0.001, 0.01, 7)
        solver = composed("train", [preset, "solver.method=dopri5"]).solver
        assert (solver.method, solver.rtol, solver.atol, solver.steps) == ("dopri5", 0.001, 0.01, 7)
        assert composed("train", [preset, "solver.steps=9"]).solver.steps == 9
        for words in (["solver.rtol=0.1"], ["solver.method=dopri5", "solver.steps=9"]):
            with pytest.raises(UsageError, match="found with solver"):
                composed("train", [preset, *words])


def test_an_import_refuses_a_word_without_effect_too() -> None:
    assert composed("import-enf", ["solver.method=euler", "solver.steps=1"]).solver.steps == 1
    with pytest.raises(UsageError, match=r"solver\.steps: found with solver\.method=dopri5"):
        composed("import-enf", ["solver.steps=1"])
    with pytest.raises(UsageError, match=r"solver\.atol: found with solver\.method=euler"):
        composed("import-enf", ["solver.method=euler", "solver.atol=1"])


def test_a_run_of_another_model_than_the_presets_trains_and_resumes(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "run"
    words = ["experiment=cora", "model=gcn", "data.source=file", f"data.path={data}"]
    words += [f"run.dir={folder}", "train.device=cpu", "train.tensorboard=false"]
    for steps in (2, 3):
        assert main(["train", *words, f"train.steps={steps}"]) == 0
        assert "notice: of the preset, encoding, model.att" in capsys.readouterr().out
        assert json.loads((folder / "summary.json").read_text())["steps"] == steps
    # Both kinds of usage errors leave no folder.
    for word in ("model.heads=2", "solver.rtol=1e-3"):
        other = tmp_path / "other"
        assert main(["train", *words, f"run.dir={other}", word]) == 2
        assert word.partition("=")[0] in capsys.readouterr().err
        assert not other.exists()
