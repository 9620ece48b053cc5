"""Whole molecules through the command line: train, resume, sample, score, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from tiny import WHOLE, contents

import eqflow
from eqflow.cli.main import main
from eqflow.flows import MolecularFlow
from eqflow.geometry import Clouds


def train(folder: Path, *more: str) -> int:
    return main(["train", *WHOLE, f"run.dir={folder}", *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "run"
    assert train(folder, "model=categorical_egnn") == 0
    return folder


def test_a_run_knows_its_atoms_sizes_and_scale(run: Path) -> None:
    flow = eqflow.load(run)
    assert isinstance(flow, MolecularFlow)
    assert flow.elements == (1, 6, 8)
    assert float(flow.sizes.log_probs.exp().sum()) == pytest.approx(1)
    assert 0.5 < flow.actnorm.position_log_scale.exp().item() < 3
    assert "atoms: H, C, O" in (run / "log.txt").read_text()


def test_the_summary_has_likelihoods_and_metrics_of_draws(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert {"val_nll", "test_nll_se", "atoms_stable", "molecules_stable", "valid"} <= set(summary)
    assert summary["drawn"] == 3
    low, high = summary["atoms_stable_interval"]
    assert low <= summary["atoms_stable"] <= high


def test_sampling_and_scoring_need_the_run_alone(run: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.extxyz"
    assert main(["sample", f"run={run}", "n=3", f"out={drawn}"]) == 0
    scores = tmp_path / "scores.csv"
    assert main(["score", f"run={run}", f"data.path={drawn}", "draws=2", f"out={scores}"]) == 0
    head, *rows = scores.read_text().splitlines()
    assert len(rows) == 3
    assert {"log_prob_size", "minus_log_q", "importance_gain"} <= set(head.split(","))


def test_a_run_in_two_parts_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    same = ["model=categorical_egnn", "train.schedule=constant"]
    assert train(whole, *same) == 0
    assert train(halves, *same, "train.steps=3") == 0
    assert train(halves, *same) == 0
    first, second = (eqflow.load(folder).state_dict() for folder in (whole, halves))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("dequantiser", ["argmax", "uniform", "gaussian"])
def test_the_published_field_is_trained_by_flow_matching(dequantiser: str, tmp_path: Path) -> None:
    words = [f"model.dequantiser={dequantiser}", "model.integers=[atomic_number]"]
    assert train(tmp_path / "run", "model=joint_egnn", *words) == 0
    assert eqflow.load(tmp_path / "run").integer_features == ("atomic_number",)


def test_the_published_flow_is_trained_by_maximum_likelihood(tmp_path: Path) -> None:
    words = ["model=joint_egnn", "objective=maximum_likelihood", "train.steps=2"]
    assert train(tmp_path / "run", *words, "model.dequantiser_layers=1") == 0
    metrics = (tmp_path / "run" / "metrics.csv").read_text()
    assert "nll" in metrics.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=joint_egnn"], "model.dequantiser: found variational"),
        (["model=categorical_egnn", "model.feature_spread=0"], "model.feature_spread: found 0"),
        (["model=categorical_egnn", "model.dequantiser=argmax"], "only with model=joint_egnn"),
        (["model=joint_egnn", "model.integers=[spin]"], "spin"),
        (["model=categorical_egnn", "objective.feature_weight=-1"], "objective.feature_weight"),
        (["model=joint"], "model has no option"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_contradicts_itself_is_refused_before_anything_is_made(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *words) == 2
    assert says in capsys.readouterr().err
    assert contents(tmp_path) == {}


def test_own_molecules_with_charges_by_path_alone(tmp_path: Path) -> None:
    """Ammonium, methoxide and methane in one file: types, sizes and scale are found in it."""
    path = tmp_path / "ions.npz"
    drawn = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    numbers, charges = torch.tensor([7, 1, 1, 6, 1]), torch.tensor([1, 0, 0, -1, 0])
    clouds = Clouds(drawn, torch.arange(0, 61, 5), numbers.repeat(12), charges=charges.repeat(12))
    clouds.write(path)
    words = [f"data.path={path}", "data.source=file", "data.elements=[]", "model=categorical_egnn"]
    assert train(tmp_path / "run", *words) == 0
    flow = eqflow.load(tmp_path / "run")
    assert flow.types.numbers == (1, 6, 7)
    assert flow.types.charges == (0, -1, 1)
    assert flow.sample(2, seed=0).charges is not None
    assert train(tmp_path / "neutral", *words, "data.charges=false") == 0
    assert eqflow.load(tmp_path / "neutral").types.charges is None


@pytest.fixture(scope="module")
def ions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on ions, in which nitrogen has two types."""
    folder = tmp_path_factory.mktemp("ions")
    numbers, charges = torch.tensor([7, 1, 1, 6, 7]), torch.tensor([1, 0, 0, -1, 0])
    drawn = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Clouds(drawn, torch.arange(0, 61, 5), numbers.repeat(12), charges=charges.repeat(12)).write(
        folder / "ions.npz"
    )
    words = [f"data.path={folder / 'ions.npz'}", "data.source=file", "data.elements=[]"]
    assert train(folder / "run", *words, "model=categorical_egnn", "train.final_structures=0") == 0
    return folder


def test_the_laws_hold_on_a_model_of_charged_atoms(ions: Path) -> None:
    assert main(["check", f"run={ions / 'run'}", "structures=2"]) == 0


@pytest.mark.parametrize("ending", ["extxyz", "sdf", "npz"])
def test_drawn_charges_are_those_in_the_file(ions: Path, ending: str, tmp_path: Path) -> None:
    drawn, expected = tmp_path / f"drawn.{ending}", eqflow.load(ions / "run").sample(6, seed=0)
    assert main(["sample", f"run={ions / 'run'}", "n=6", f"out={drawn}"]) == 0
    assert torch.equal(eqflow.read(drawn).charges, expected.charges)


def test_what_becomes_of_charges_is_said(
    ions: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "drawn.xyz"
    assert main(["sample", f"run={ions / 'run'}", "n=2", f"out={drawn}"]) == 0
    assert ".xyz holds no formal charges" in capsys.readouterr().out
    charged = Clouds(
        torch.eye(3), torch.tensor([0, 3]), torch.tensor([8, 1, 6]), charges=torch.tensor([1, 0, 0])
    )
    charged.write(tmp_path / "ion.npz")
    words = ["draws=1", "divergence=hutchinson", f"out={tmp_path / 'scores.csv'}"]
    main(["score", f"run={run}", f"data.path={tmp_path / 'ion.npz'}", *words])
    assert "formal charges of 1 structures are ignored" in capsys.readouterr().out


def test_sizes_beyond_training_are_said_to_be_extrapolated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", f"run={run}", "n=2", "sizes=60", f"out={tmp_path / 'a.npz'}"]) == 0
    assert "no training molecule has 60 atoms" in capsys.readouterr().out


def test_a_joint_model_needs_elements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Clouds(torch.randn(20, 3), torch.arange(0, 21, 5)).write(tmp_path / "bare.npz")
    words = [f"data.path={tmp_path / 'bare.npz'}", "data.source=file", "data.elements=[]"]
    assert train(tmp_path / "run", *words, "model=categorical_egnn") == 3
    assert "without elements" in capsys.readouterr().err
