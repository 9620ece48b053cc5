"""Molecules with masked elements through the command line: train, resume, sample, check."""

import json
from pathlib import Path

import pytest
import torch
from tiny import WHOLE, contents

import eqflow
from eqflow.cli.main import main
from eqflow.flows import MaskedMolecularFlow

TINY = [*WHOLE, "model=masked_egnn", "solver.method=euler", "solver.steps=5"]


def train(folder: Path, *more: str) -> int:
    return main(["train", *TINY, f"run.dir={folder}", *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked") / "run"
    assert train(folder) == 0
    return folder


def test_a_run_knows_its_atoms_sizes_and_scale(run: Path) -> None:
    flow = eqflow.load(run)
    assert isinstance(flow, MaskedMolecularFlow)
    assert flow.elements == (1, 6, 8)
    assert float(flow.sizes.log_probs.exp().sum()) == pytest.approx(1)
    assert 0.5 < flow.scale < 3
    assert "atoms: H, C, O" in (run / "log.txt").read_text()
    assert "loss_features" in (run / "metrics.csv").read_text().splitlines()[0]


def test_the_summary_has_metrics_of_draws_and_no_likelihood(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert {"atoms_stable", "molecules_stable", "valid"} <= set(summary)
    assert summary["drawn"] == 3
    assert summary["sampling_evaluations"] == 5
    assert not {"val_nll", "test_nll", "divergence"} & set(summary)


def test_a_run_in_two_parts_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train(whole, "train.schedule=constant") == 0
    assert train(halves, "train.schedule=constant", "train.steps=3") == 0
    assert train(halves, "train.schedule=constant") == 0
    first, second = (eqflow.load(folder).state_dict() for folder in (whole, halves))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_sampling_needs_the_run_alone(run: Path, tmp_path: Path) -> None:
    flow = eqflow.load(run)
    out = tmp_path / "drawn.npz"
    for options in ({}, {"temperature": 0.5, "remasking": 2.0}):
        words = [f"{name}={value}" for name, value in options.items()]
        assert main(["sample", f"run={run}", "n=5", "sizes=4", f"out={out}", *words]) == 0
        drawn, expected = eqflow.read(out), flow.sample(5, sizes=4, **options)
        assert torch.equal(drawn.numbers, expected.numbers)
        assert float((drawn.x - expected.x).abs().max()) < 1e-6


def test_laws_hold(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"run={run}", "structures=3"]) == 0
    assert "all 9 laws hold" in capsys.readouterr().out


def test_scores_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "scores.csv"
    assert main(["score", f"run={run}", "data.path=any.xyz", f"out={out}"]) == 2
    assert "has no log-likelihood that can be computed" in capsys.readouterr().err
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["temperature=0"], "temperature: found 0"),
        (["remasking=-1"], "remasking: found -1"),
        (["formula=H2O"], "draws the elements itself"),
        (["fixed=any.xyz"], "grows nothing around a fragment"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_drawn_is_refused_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    out = tmp_path / "new" / "drawn.xyz"
    assert main(["sample", f"run={run}", "n=2", f"out={out}", *words]) == 2
    assert says in capsys.readouterr().err
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["objective=maximum_likelihood"], "model=masked_egnn, which has no likelihood"),
        (["model.feature_spread=0.1"], "only with model=categorical_egnn"),
        (["objective.feature_weight=-1"], "objective.feature_weight"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_contradicts_itself_is_refused_before_anything_is_made(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *words) == 2
    assert says in capsys.readouterr().err
    assert contents(tmp_path) == {}


def test_a_model_of_another_kind_has_no_temperature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train(folder, "model=categorical_egnn", "train.final_structures=0") == 0
    assert main(["sample", f"run={folder}", f"out={tmp_path / 'a.xyz'}", "temperature=0.5"]) == 2
    assert "only for a run of model=masked_egnn" in capsys.readouterr().err
