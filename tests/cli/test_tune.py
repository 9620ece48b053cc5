"""The search: what it tries, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

import pytest
import tiny
import tiny_nodes
import yaml

from eqflow.cli import tune
from eqflow.cli.compose import composed, configs_folder, options_of_train, train_keys
from eqflow.cli.main import main
from eqflow.cli.search_space import Choices, Range, parsed
from eqflow.errors import NumericalError, UsageError
from eqflow.train.folder import exclusive
from eqflow.train.node_loop import NodeTrainer
from eqflow.train.tasks import run_of

pytest.importorskip("optuna")

SPACE = ["space.train.learning_rate=[1e-3,0.3,log]", "space.model.normaliser=softmax|squareplus"]
NODES = ["task=node_classification", "data.path=x.npz"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nodes.graph(tmp_path_factory.mktemp("data") / "graph.npz")


def search(data: Path, folder: Path, *more: str, space: list[str] = SPACE) -> int:
    words = [f"data.path={data}", *tiny_nodes.MODEL, *tiny_nodes.LOOP, "train.steps=4"]
    return main(["tune", *words, f"dir={folder}", "trials=3", *space, *more])


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "whole"
    assert search(data, folder) == 0
    return folder


def space(**texts: str) -> object:
    known = {name.replace("__", "."): text for name, text in texts.items()}
    return parsed(known, train_keys(NODES), options_of_train(NODES))


def test_a_space_is_ranges_and_choices() -> None:
    assert space(train__learning_rate="[1e-3,0.1,log]") == {
        "train.learning_rate": Range(1e-3, 0.1, log=True, whole=False)
    }
    assert space(model__width="[8, 64]") == {"model.width": Range(8, 64, log=False, whole=True)}
    assert space(model__over="rows|columns") == {"model.over": Choices(("rows", "columns"))}
    assert space(model="grand|graff") == {"model": Choices(("grand", "graff"))}
    assert space(model__width="16|64") == {"model.width": Choices(("16", "64"))}


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.learning_rte", "[0,1]", "did you mean train.learning_rate"),
        ("train.learning_rate", "[1,0]", "with low < high"),
        ("train.learning_rate", "[0,1,log]", "low above 0 with log"),
        ("train.learning_rate", "[0,1,cubic]", "expected [low,high]"),
        ("train.learning_rate", "[0,inf]", "with low < high"),
        ("train.learning_rate", "[a,b]", "with low < high"),
        ("train.learning_rate", "0.1", "two or more choices"),
        ("train.learning_rate", "0.1|big", "expected a number"),
        ("model.width", "[1.5,4]", "whole numbers"),
        ("model.over", "[0,1]", "this key is no number"),
        ("model", "[0,1]", "this key is no number"),
        ("model", "grand|grnad", "did you mean grand"),
        ("model.over", "rows|rows", "two or more choices"),
    ],
)
def test_a_wrong_space_is_named_with_what_is_expected(key: str, text: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        parsed({key: text}, train_keys(NODES), options_of_train(NODES))
    assert str(error.value).startswith(f"space.{key}: ")
    assert expected in str(error.value)


def test_the_best_trial_is_that_of_the_best_validation(whole: Path) -> None:
    best, found = yaml.safe_load((whole / "best.yaml").read_text()), rows(whole)
    values = [float(row["val_accuracy"]) for row in found]
    assert best["value"] == pytest.approx(max(values))
    assert best["trial"] == values.index(max(values))
    rate = found[best["trial"]]["train.learning_rate"]
    assert f"train.learning_rate={rate}" in best["words"]
    assert all(1e-3 <= float(row["train.learning_rate"]) <= 0.3 for row in found)
    assert len({row["train.learning_rate"] for row in found}) == 3
    assert "test" not in (whole / "trials.csv").read_text()


def test_the_words_of_the_best_train_to_its_value(whole: Path, tmp_path: Path) -> None:
    best = yaml.safe_load((whole / "best.yaml").read_text())
    run = run_of(composed("train", [*best["words"], f"run.dir={tmp_path / 'r'}"]), lambda _: None)
    assert run.train(lambda: False, lambda trainer, figures: None)
    summary = yaml.safe_load((tmp_path / "r" / "summary.json").read_text())
    assert summary["val_accuracy"] == pytest.approx(best["value"])


def test_a_search_goes_on_as_if_it_had_not_ended(data: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    assert search(data, folder, "trials=1") == 0
    assert search(data, folder, "trials=2") == 0
    assert search(data, folder) == 0
    assert rows(folder) == rows(whole)
    assert search(data, folder) == 0  # nothing is left to do


def test_killed_within_a_trial_a_search_ends_the_same(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, taken = tmp_path / "killed", iter(range(1, 100))
    take_step = NodeTrainer.step

    def killed(self: NodeTrainer) -> dict[str, float]:
        if next(taken) == 7:  # the third step of the second trial
            raise KeyboardInterrupt
        return take_step(self)

    monkeypatch.setattr(NodeTrainer, "step", killed)
    assert search(data, folder) == 130
    monkeypatch.undo()
    assert len(rows(folder)) == 1
    assert search(data, folder) == 0
    assert rows(folder) == rows(whole)


def test_killed_between_the_study_and_its_files_a_search_ends_the_same(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, written = tmp_path / "killed", iter(range(1, 100))
    write = tune.Search._write

    def killed(self: tune.Search) -> None:
        if next(written) == 3:  # the last trial
            raise KeyboardInterrupt
        write(self)

    monkeypatch.setattr(tune.Search, "_write", killed)
    assert search(data, folder) == 130
    monkeypatch.undo()
    assert len(rows(folder)) == 2
    assert search(data, folder) == 0
    for name in ("trials.csv", "best.yaml"):
        assert (folder / name).read_text() == (whole / name).read_text()


def test_a_folder_in_use_or_in_the_way_is_named_by_its_key(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    with exclusive(folder, print):
        assert search(data, folder) == 2
    said = capsys.readouterr().err
    assert re.search(r"process \d+ on \S+ is tuning in this folder\. .* give another dir\.", said)
    (tmp_path / "file").write_text("")
    assert search(data, tmp_path / "file" / "search") == 6
    said = capsys.readouterr().err
    assert "tune: dir: found" in said
    assert "run.dir" not in said


def test_another_search_in_the_folder_is_refused(data: Path, whole: Path, capsys: Captured) -> None:
    before = (whole / "trials.csv").read_bytes()
    assert search(data, whole, "metric=val_loss") == 2
    assert search(data, whole, "seed=3") == 2
    assert "holds another search" in capsys.readouterr().err
    assert (whole / "trials.csv").read_bytes() == before


def test_a_loss_is_best_where_it_is_smallest_and_repeats_are_averaged(
    data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "t"
    assert search(data, folder, "metric=val_loss", "trials=2", "repeats=2") == 0
    values = [float(row["val_loss"]) for row in rows(folder)]
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["value"] == pytest.approx(min(values))
    each = [
        yaml.safe_load((folder / "trials" / f"0000-{repeat}" / "summary.json").read_text())
        for repeat in range(2)
    ]
    assert values[0] == pytest.approx(sum(one["val_loss"] for one in each) / 2)
    assert each[0]["val_loss"] != each[1]["val_loss"]


def test_flows_are_searched_by_their_loss(tmp_path: Path) -> None:
    words = tiny.words(tiny.particles(tmp_path / "d.npy"), tmp_path / "unused")[1:]
    words = [word for word in words if not word.startswith("run.dir")]
    space = ["space.train.learning_rate=[1e-3,0.1,log]", "trials=2"]
    assert main(["tune", *words, f"dir={tmp_path / 't'}", *space]) == 0
    best = yaml.safe_load((tmp_path / "t" / "best.yaml").read_text())
    assert best["metric"] == "val_loss"
    assert best["value"] == pytest.approx(
        min(float(row["val_loss"]) for row in rows(tmp_path / "t"))
    )


def test_a_trial_that_fails_is_listed_and_the_others_go_on(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Eight channels cannot be divided among three heads."""
    folder = tmp_path / "t"
    assert search(data, folder, "trials=5", space=["space.model.heads=2|3|4"]) == 7
    found = rows(folder)
    assert {row["model.heads"] for row in found if row["ended"] != "done"} == {"3"}
    assert all(row["val_accuracy"] for row in found if row["ended"] == "done")
    assert "multiple of the heads" in capsys.readouterr().out
    assert search(data, folder, "trials=5", space=["space.model.heads=2|3|4"]) == 7


def test_where_all_trials_fail_the_exit_code_is_4(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def failing(*_: object) -> None:
        raise NumericalError("steps in a row")

    monkeypatch.setattr(tune.train, "run", failing)
    assert search(data, tmp_path / "t", "trials=2") == 4
    assert "every trial failed" in capsys.readouterr().err


def test_a_key_with_an_effect_in_some_trials_is_searched_for_those(
    data: Path, tmp_path: Path
) -> None:
    """What is told to train with has none that is without."""
    space = ["space.solver.method=euler|dopri5", "space.solver.steps=[2,3]"]
    space.append("space.solver.rtol=[1e-4,1e-2,log]")
    assert search(data, tmp_path / "t", "trials=4", space=space) == 0
    found = rows(tmp_path / "t")
    assert {row["solver.method"] for row in found} == {"euler", "dopri5"}
    assert {row["ended"] for row in found} == {"done"}
    best = yaml.safe_load((tmp_path / "t" / "best.yaml").read_text())["words"]
    typed = dict(word.split("=", 1) for word in best)
    assert ("solver.steps" in typed) == (typed["solver.method"] == "euler")
    assert ("solver.rtol" in typed) == (typed["solver.method"] == "dopri5")
    composed("train", best)


def test_what_has_no_effect_in_any_trial_is_refused(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The tiny model takes two steps of rk4."""
    folder = tmp_path / "t"
    assert search(data, folder, space=["space.solver.rtol=[1e-4,1e-2,log]"]) == 2
    assert "solver.rtol: found with solver.method=" in capsys.readouterr().err
    assert search(data, folder, "solver.method=dopri5") == 2  # beside its steps
    assert "solver.steps: found with solver.method=dopri5" in capsys.readouterr().err
    assert not folder.exists()
    assert search(data, folder, "trials=1", space=["space.solver.method=heun|dopri5"]) == 0


def test_a_preset_may_say_how_to_search(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(configs_folder(), tmp_path / "configs")
    plain = {"trials": 2, "repeats": 2, "space": {"model.over": "rows|columns"}}
    (folder / "tune" / "own.yaml").write_text(yaml.safe_dump(plain))
    monkeypatch.setattr(tune, "configs_folder", lambda: folder)
    own, words, space = tune.parsed_words(["seed=1", "preset=own", "trials=3"])
    config = composed("tune", own)
    assert (config.trials, config.repeats, words) == (3, 2, ["seed=1"])
    assert space == plain["space"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["metric=test_accuracy"], "test data choose nothing"),
        (["metric=val_nll"], "expected val_accuracy or val_loss"),
        (["trials=0"], "trials: found 0"),
        (["repeats=0"], "repeats: found 0"),
        (["preset=nosuch"], "preset: found 'nosuch', expected one of"),
        (["space.train.stepz=[1,2]"], "did you mean train.steps"),
        (["train.steps=0"], "train.steps: found 0"),
        (["model.heads=x"], "expected a whole number"),
        (["trials=many"], "expected a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_folder(
    data: Path, tmp_path: Path, capsys: Captured, words: list[str], expected: str
) -> None:
    assert search(data, tmp_path / "new" / "t", *words) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_a_space_there_is_nothing_to_search(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert search(data, tmp_path / "t", space=[]) == 2
    assert "nothing to search" in capsys.readouterr().err


def test_without_optuna_it_says_how_to_get_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search(data, tmp_path / "t") == 2
    assert "pip install 'eqflow[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("attention", "cora"),
        ("attention", "photo"),
        ("citations", "cora"),
        ("citations", "citeseer"),
        ("graff", "texas"),
    ],
)
def test_each_space_of_the_presets_fits_its_models(name: str, preset: str) -> None:
    own, words, texts = tune.parsed_words([f"preset={name}", f"experiment={preset}"])
    assert own == [f"preset={name}"]
    assert parsed(texts, train_keys(words), options_of_train(words)).keys() == texts.keys()
    assert {path.stem for path in (configs_folder() / "tune").glob("*.yaml")} == {
        "attention",
        "citations",
        "graff",
    }
