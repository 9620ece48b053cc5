"""Every preset composes, understands the keys of the contract, steps, samples and scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from eqflow import rng
from eqflow.chem.g2 import load_g2
from eqflow.cli.compose import composed, experiments
from eqflow.cli.main import main
from eqflow.data import read, write
from eqflow.train import load
from eqflow.train.config import (
    ExactConfig,
    FlowMatchingConfig,
    HutchinsonConfig,
    HutchPlusPlusConfig,
    MaximumLikelihoodConfig,
)

PRESETS = (
    "druglike",
    "dw4",
    "lj13",
    "lj55",
    "mnist2d",
    "molecules",
    "point_cloud",
    "qm9",
    "qm9_positions",
)
SMALL = [*tiny.MODEL, "train.steps=1", "train.device=cpu", "train.batch_size=4"]
SMALL += ["train.final_structures=2", "train.validation_structures=4"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Words that give each preset little data, made here."""
    folder = tmp_path_factory.mktemp("presets")
    molecules = load_g2(["H", "C", "N", "O", "F"], min_atoms=2)
    assert molecules.numbers is not None
    np.savez(
        folder / "qm9.npz",
        num_atoms=molecules.sizes.numpy(),
        charges=molecules.numbers.numpy(),
        positions=molecules.x.numpy(),
    )
    pixels = rng.uniform((30, 8, 8), torch.zeros(1), rng.generator(0, "pixels"))
    images = (pixels > 0.8).to(torch.uint8).numpy() * 255
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    (folder / "images-idx3-ubyte").write_bytes(header + images.tobytes())
    return {
        "dw4": ["data.structures=60"],
        "lj13": [f"data.path={tiny.particles(folder / 'lj13.npy', 24, 13, 3)}"],
        "lj55": [
            f"data.path={tiny.particles(folder / 'lj55.npy', 24, 55, 3)}",
            "divergence=hutchinson",
        ],
        "mnist2d": [f"data.path={folder / 'images-idx3-ubyte'}"],
        "point_cloud": ["data.structures=24", "data.points=12"],
        "qm9_positions": [f"data.path={folder / 'qm9.npz'}"],
        "qm9": [f"data.path={folder / 'qm9.npz'}"],
        "druglike": [f"data.path={folder / 'qm9.npz'}", "data.validation=0.2", "data.test=0.2"],
        "molecules": [f"data.path={folder / 'qm9.npz'}", "data.validation=0.2", "data.test=0.2"],
    }


def test_these_are_all_presets() -> None:
    assert tuple(experiments("structures")) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_understands_every_key_of_the_contract(preset: str) -> None:
    words = [
        f"experiment={preset}",
        "seed=5",
        "data.path=x.npz",
        "train.steps=7",
        "train.minutes=0.5",
        "train.checkpoint_every=3",
        "model.layers=2",
        "model.width=16",
        "objective=maximum_likelihood",
        "solver.method=adaptive_heun",
        "solver.rtol=1e-3",
        "solver.atol=1e-2",
        "divergence=hutch_plus_plus",
    ]
    config = composed("train", words)
    assert (config.name, config.seed, config.data.path) == (preset, 5, "x.npz")
    assert (config.train.steps, config.train.minutes, config.train.checkpoint_every) == (7, 0.5, 3)
    assert (config.model.layers, config.model.width) == (2, 16)
    assert (config.solver.method, config.solver.rtol, config.solver.atol) == (
        "adaptive_heun",
        1e-3,
        1e-2,
    )
    fixed = composed("train", [words[0], "solver.method=midpoint", "solver.steps=7"]).solver
    assert (fixed.method, fixed.steps) == ("midpoint", 7)
    assert isinstance(config.objective, MaximumLikelihoodConfig)
    assert isinstance(config.divergence, HutchPlusPlusConfig)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("divergence", "kind"),
    [("exact", ExactConfig), ("hutchinson", HutchinsonConfig)],
)
def test_a_word_wins_over_the_preset(preset: str, divergence: str, kind: type) -> None:
    words = [f"experiment={preset}", "objective=flow_matching", f"divergence={divergence}"]
    for order in (words, words[::-1]):
        config = composed("train", order)
        assert isinstance(config.divergence, kind)
        assert isinstance(config.objective, FlowMatchingConfig)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_a_step_samples_and_scores(
    preset: str, files: dict[str, list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(["train", f"experiment={preset}", f"run.dir={run}", *files[preset], *SMALL]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 1
    assert np.isfinite(summary["val_nll"])
    drawn = tmp_path / "drawn.npz"
    assert main(["sample", f"run={run}", "n=3", f"out={drawn}"]) == 0
    scores = tmp_path / "scores.csv"
    words = ["score", f"run={run}", f"data.path={drawn}", f"out={scores}"]
    method = "hutchinson" if preset == "lj55" else "exact"
    assert main([*words, f"divergence={method}"]) == 0
    rows = list(csv.DictReader(scores.read_text().splitlines()))
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    assert all(row["status"] == "success" for row in rows)
    if preset != "lj55":
        expected = load(run).log_prob(read(drawn)).tolist()
        assert [float(row["log_prob"]) for row in rows] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("preset", ["mnist2d", "point_cloud", "qm9_positions"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "hutch_plus_plus"])
def test_maximum_likelihood_goes_with_any_preset_and_divergence(
    preset: str, divergence: str, files: dict[str, list[str]], tmp_path: Path
) -> None:
    words = ["train", f"experiment={preset}", f"run.dir={tmp_path / 'run'}", *files[preset], *SMALL]
    choice = [
        "objective=maximum_likelihood",
        f"divergence={divergence}",
        "train.final_structures=0",
    ]
    assert main([*words, *choice]) == 0


def test_regularised_likelihood_by_the_adjoint(tmp_path: Path) -> None:
    data = f"data.path={tiny.particles(tmp_path / 'dw4.npy', points=4)}"
    words = ["train", "experiment=dw4", f"run.dir={tmp_path / 'run'}", data, *SMALL]
    choice = ["objective=maximum_likelihood", "divergence=hutchinson", "objective.kinetic=1e-2"]
    choice += ["objective.jacobian=1e-2", "solver.gradient=adjoint", "train.final_structures=0"]
    assert main([*words, *choice]) == 0
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert {"nll", "kinetic", "jacobian", "evaluations"} <= set(header.split(","))


@pytest.mark.parametrize(
    "target", ["gaussian_mixture", pytest.param("lj13", marks=pytest.mark.slow)]
)
def test_a_target_is_drawn_where_no_path_is_given(target: str, tmp_path: Path) -> None:
    words = ["train", f"data.source={target}", "data.structures=40", f"run.dir={tmp_path / 'run'}"]
    more = ["train.final_structures=0", f"data.dimension={3 if target == 'lj13' else 2}"]
    assert main([*words, *SMALL, *more]) == 0


def test_a_file_alone_is_enough_to_train_on(tmp_path: Path) -> None:
    data = tiny.molecules(tmp_path / "molecules.xyz")
    run = tmp_path / "run"
    words = [f"data.path={data}", f"run.dir={run}", "data.elements=H,O,F", *SMALL]
    fractions = ["data.validation=0.1", "data.test=0.1"]
    assert main(["train", *words, *fractions]) == 0
    drawn = tmp_path / "drawn.extxyz"
    assert main(["sample", f"run={run}", "n=2", "formula=H2O", f"out={drawn}"]) == 0
    assert drawn.read_text().splitlines()[0] == "3"


def test_bundled_molecules_need_no_path(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["data.source=g2", "data.elements=H,C,N,O,F", f"run.dir={run}", *SMALL]
    assert main(["train", *words]) == 0
    held_out = tmp_path / "held_out.sdf"
    write(load_g2(["H", "C"], min_atoms=2)[:2], held_out)
    scores = tmp_path / "scores.csv"
    assert main(["score", f"run={run}", f"data.path={held_out}", f"out={scores}"]) == 0
