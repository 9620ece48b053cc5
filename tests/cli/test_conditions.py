"""The verbs on properties and fixed atoms: train, sample, score and check."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import tiny
import torch

import eqflow
from eqflow.cli.compose import composed
from eqflow.cli.conditions import properties_of
from eqflow.cli.main import main
from eqflow.errors import UsageError
from eqflow.train import Run

Captured = pytest.CaptureFixture[str]
MODELS = ["egnn", "categorical_egnn", "joint_egnn"]
OF_MODEL = {
    "egnn": ["data.elements=[H,O,F]"],
    "joint_egnn": ["model.dequantiser=argmax"],
    "categorical_egnn": [],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Waters and hydrogen fluorides whose size is their property, unknown of every tenth."""
    folder = tmp_path_factory.mktemp("data")
    clouds = eqflow.read(tiny.molecules(folder / "plain.xyz"))
    spread = clouds.segments.mean(clouds.x.norm(dim=1)) + torch.arange(len(clouds)) / 1000
    spread[::10] = torch.nan
    path = folder / "molecules.extxyz"
    eqflow.Clouds(clouds.x, clouds.ptr, clouds.numbers, properties={"spread": spread}).write(path)
    return path


def words(data: Path, folder: Path, model: str, *more: str) -> list[str]:
    options = ["data.dimension=3", "data.properties=[spread]", f"model={model}"]
    return tiny.words(data, folder, *options, *OF_MODEL[model], *more)


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / request.param
    assert main(words(data, folder, request.param, "train.final_structures=2")) == 0
    return folder


def sample(run: Path, out: Path, *words: str) -> int:
    return main(["sample", f"run={run}", f"out={out}", "n=6", *words])


def test_a_run_says_what_it_is_conditioned_on_and_keeps_it(run: Path) -> None:
    assert "conditioned on: spread (" in (run / "log.txt").read_text()
    flow = eqflow.load(run)
    assert flow.properties is not None
    assert flow.properties.names == ("spread",)


def test_structures_are_drawn_with_what_was_asked(run: Path, tmp_path: Path) -> None:
    plain, given, more = (tmp_path / f"{name}.extxyz" for name in ("plain", "given", "more"))
    sizes = "sizes=3"
    assert sample(run, plain, sizes) == 0
    assert sample(run, given, sizes, "properties=[spread=0.6]") == 0
    assert sample(run, more, sizes, "properties=spread=0.6", "guidance=2", "batch=4") == 0
    read = [eqflow.read(path) for path in (plain, given, more)]
    assert [set(each.properties) for each in read] == [set(), {"asked_spread"}, {"asked_spread"}]
    assert (read[1].properties["asked_spread"] == 0.6).all()
    assert not torch.equal(read[0].x, read[1].x)
    assert not torch.equal(read[1].x, read[2].x)


def test_what_was_asked_is_said_and_extrapolation_with_it(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert sample(run, tmp_path / "s.xyz", "properties=[spread=9]") == 0
    said = capsys.readouterr().out
    assert "given spread=9, guidance 1" in said
    assert "notice: spread=9 is beyond the training structures" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["properties=[mass=1]"], "expected some of spread"),
        (["properties=[spread]"], "expected name=number"),
        (["properties=[spread=1,spread=2]"], "twice"),
        (["properties=[spread=1]", "guidance=-1"], "guidance: found -1"),
        (["guidance=2"], "expected properties"),
        (["fixed=water.xyz", "sizes=2"], "at least the 3 atoms"),
        (["fixed=HF.xyz", "sizes=3", "fixed_rounds=-1"], "rounds=-1"),
        (["fixed=both.xyz", "sizes=3"], "found 2 structures"),
    ],
)
def test_wrong_conditions_are_refused_first(
    run: Path, tmp_path: Path, capsys: Captured, options: list[str], expected: str
) -> None:
    one = "2\n\nH 0 0 0\nF 0 0 0.92\n"
    (tmp_path / "HF.xyz").write_text(one)
    (tmp_path / "both.xyz").write_text(one + one)
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0\nH 0 .7 .5\nH 0 -.7 .5\n")
    options = [word.replace("fixed=", f"fixed={tmp_path}/") for word in options]
    assert sample(run, tmp_path / "new" / "s.xyz", *options) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_fragment_that_is_none_is_refused(run: Path, tmp_path: Path, capsys: Captured) -> None:
    fragment, out = tmp_path / "f.xyz", tmp_path / "new" / "s.xyz"
    fragment.write_text("1\n\nNe 0 0 0\n")
    assert sample(run, out, f"fixed={fragment}", "sizes=3") == 3
    assert "Ne" in (said := capsys.readouterr().err) or "atomic number 10" in said
    fragment.write_text("0\n\n")
    assert sample(run, out, f"fixed={fragment}", "sizes=3") == 3
    assert "found 0 atoms" in capsys.readouterr().err
    assert not out.parent.exists()


def test_structures_grow_around_fixed_atoms(run: Path, tmp_path: Path, capsys: Captured) -> None:
    fragment, out = tmp_path / "f.xyz", tmp_path / "s.extxyz"
    fragment.write_text("2\n\nO 1.1 2.2 3.3\nH 1.2 2.9 3.8\n")
    quick = ["fixed_times=3", "fixed_rounds=1"]
    assert sample(run, out, f"fixed={fragment}", "sizes=3", "properties=[spread=0.6]", *quick) == 0
    assert "around the 2 atoms" in capsys.readouterr().out
    given, drawn = eqflow.read(fragment), eqflow.read(out)
    for cloud in drawn:
        assert torch.equal(cloud.x[:2], given.x)
        assert torch.equal(cloud.numbers[:2], given.numbers)
    assert (drawn.sizes == 3).all()


def test_scores_are_given_what_the_file_says(
    run: Path, data: Path, tmp_path: Path, capsys: Captured
) -> None:
    clouds = eqflow.read(data)[1:4]
    plain = eqflow.Clouds(clouds.x, clouds.ptr, clouds.numbers)
    found = []
    for name, each in (("given", clouds), ("plain", plain)):
        path, out = tmp_path / f"{name}.extxyz", tmp_path / f"{name}.csv"
        each.write(path)
        assert main(["score", f"run={run}", f"data.path={path}", f"out={out}"]) == 0
        with out.open(newline="", encoding="utf-8") as file:
            found.append([row["log_prob"] for row in csv.DictReader(file)])
        said = capsys.readouterr().out
        assert ("given spread" in said) == (name == "given")
        assert ("no spread is known" in said) == (name == "plain")
    assert found[0] != found[1]


def test_laws_hold_for_models_given_properties(run: Path) -> None:
    assert main(["check", f"run={run}", "structures=3"]) == 0


@pytest.mark.parametrize("model", ["egnn", "categorical_egnn"])
def test_a_run_that_was_interrupted_ends_with_the_same_weights(
    data: Path, tmp_path: Path, model: str
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert main(words(data, whole, model)) == 0
    asked = iter(range(1, 100))
    first = Run(composed("train", words(data, halved, model)[1:]), lambda line: None)
    assert not first.train(lambda: next(asked) >= 3, lambda trainer, figures: None)
    assert main(words(data, halved, model)) == 0
    one, other = (eqflow.load(folder).state_dict() for folder in (whole, halved))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_file_does_not_have_is_named_with_what_it_has(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    run = tmp_path / "run"
    assert main(words(data, run, "egnn", "data.properties=[gap]")) == 3
    assert "no 'gap' in the training structures, whose properties are: spread" in (
        capsys.readouterr().err
    )
    assert not run.exists()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("objective.unconditional=1.5", "objective.unconditional: found 1.5"),
        ("data.properties=[spread,spread]", "expected each once"),
    ],
)
def test_wrong_training_options_are_named(
    data: Path, tmp_path: Path, capsys: Captured, word: str, expected: str
) -> None:
    assert main(words(data, tmp_path / "run", "egnn", word)) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("word", ["gap", "gap=", "=1", "gap=nan", "gap=inf", "gap=a", ""])
def test_words_that_say_no_property_are_named(word: str) -> None:
    with pytest.raises(UsageError, match="expected name=number"):
        properties_of([word])


def test_rounds_without_fixed_atoms_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny.joint_run(tmp_path / "run")
    words = ["sample", f"run={run}", "n=1", f"out={tmp_path / 'a.npz'}", "fixed_rounds=2"]
    assert main(words) == 2
    assert "fixed_rounds: found without fixed" in capsys.readouterr().err
