"""Fields beside EGNN through the command line: presets train, sample, score and check."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import eqflow
from eqflow.chem.g2 import load_g2
from eqflow.cli.compose import composed, configs_folder, unused_words
from eqflow.cli.main import main
from eqflow.errors import UsageError
from eqflow.nn import FrameField, IrrepsField
from eqflow.train.config import FrameModelConfig, IrrepsModelConfig
from eqflow.train.tasks import ineffective, problems_of

MODELS = {
    "e3nn": (IrrepsField, ["model=e3nn", "model.radial=4"]),
    "frame_transformer": (FrameField, ["model=frame_transformer", "model.heads=2"]),
}
every_model = pytest.mark.parametrize("model", MODELS)
SMALL = [
    "model.layers=1",
    "model.width=4",
    "solver.method=rk4",
    "solver.steps=2",
    "train.steps=1",
    "train.batch_size=4",
    "train.final_structures=2",
    "train.validation_structures=4",
    "train.device=cpu",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Words that give each preset little data, made here."""
    folder = tmp_path_factory.mktemp("fields")
    molecules = load_g2(["H", "C", "N", "O", "F"], min_atoms=2)[:40]
    assert molecules.numbers is not None
    np.savez(
        folder / "qm9.npz",
        num_atoms=molecules.sizes.numpy(),
        charges=molecules.numbers.numpy(),
        positions=molecules.x.numpy(),
    )
    return {
        "dw4": ["data.structures=60"],
        "lj13": [f"data.path={tiny.particles(folder / 'lj13.npy', 24, 13, 3)}"],
        "qm9_positions": [
            f"data.path={folder / 'qm9.npz'}",
            "data.validation=0.2",
            "data.test=0.2",
        ],
        "point_cloud": ["data.structures=24", "data.points=12"],
    }


def train(preset: str, model: str, data: dict[str, list[str]], run: Path, *more: str) -> int:
    words = [f"experiment={preset}", f"run.dir={run}", *data[preset], *MODELS[model][1], *SMALL]
    return main(["train", *words, *more])


@every_model
@pytest.mark.parametrize("preset", ["dw4", "lj13", "qm9_positions", "point_cloud"])
def test_a_preset_steps_samples_and_scores(
    preset: str, model: str, data: dict[str, list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(preset, model, data, run) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 1
    assert np.isfinite(summary["val_nll"])
    flow = eqflow.load(run)
    assert isinstance(flow.continuous.field, MODELS[model][0])
    drawn = tmp_path / "drawn.npz"
    assert main(["sample", f"run={run}", "n=3", f"out={drawn}"]) == 0
    scores = tmp_path / "scores.csv"
    words = ["score", f"run={run}", f"data.path={drawn}", f"out={scores}"]
    assert main([*words, "divergence=exact"]) == 0
    rows = list(csv.DictReader(scores.read_text().splitlines()))
    assert all(row["status"] == "success" for row in rows)
    expected = flow.log_prob(eqflow.read(drawn)).tolist()
    assert [float(row["log_prob"]) for row in rows] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("e3nn", ["model.lmax=1", "model.width=2", "model.cutoff=3.0"]),
        pytest.param("frame_transformer", ["model.frame=pca"], marks=pytest.mark.slow),
        pytest.param("frame_transformer", [], marks=pytest.mark.slow),
    ],
)
def test_a_trained_run_keeps_all_laws(
    model: str,
    more: list[str],
    data: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert train("dw4", model, data, run, "train.steps=5", *more) == 0
    capsys.readouterr()
    assert main(["check", f"run={run}", "structures=3"]) == 0
    assert "laws hold" in capsys.readouterr().out


@every_model
@pytest.mark.parametrize("trace", ["hutchinson", "exact"])
def test_maximum_likelihood_takes_a_step(
    trace: str, model: str, data: dict[str, list[str]], tmp_path: Path
) -> None:
    choice = [
        "objective=maximum_likelihood",
        f"objective.trace={trace}",
        "train.final_structures=0",
    ]
    choice += ["model.training_draws=null"] if model == "frame_transformer" else []
    assert train("dw4", model, data, tmp_path / "run", *choice) == 0
    header, row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[:2]
    assert np.isfinite(float(dict(zip(header.split(","), row.split(","), strict=True))["nll"]))


def test_a_likelihood_is_not_trained_on_drawn_poses(
    data: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train("dw4", "frame_transformer", data, run, "objective=maximum_likelihood") == 2
    assert "model.training_draws: found 1 with objective=maximum_likelihood" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "model", [pytest.param("e3nn", marks=pytest.mark.slow), "frame_transformer"]
)
def test_a_run_in_two_parts_ends_with_the_same_weights(
    model: str, data: dict[str, list[str]], tmp_path: Path
) -> None:
    more = ["train.steps=4", "train.schedule=constant", "train.checkpoint_every=2"]
    more += ["train.final_structures=0"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder, steps in ((whole, 4), (halves, 2), (halves, 4)):
        assert train("dw4", model, data, folder, *more, f"train.steps={steps}") == 0
    first, second = (eqflow.load(folder).state_dict() for folder in (whole, halves))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_words_become_the_configuration_of_the_model() -> None:
    words = ["data.path=x.npy", "model=e3nn", "model.lmax=3", "model.radial=8", "model.cutoff=5"]
    model = composed("train", words).model
    assert model == IrrepsModelConfig(lmax=3, radial=8, cutoff=5.0)
    words = ["data.path=x.npy", "model=frame_transformer", "model.threshold=0.5"]
    assert composed("train", words).model == FrameModelConfig(threshold=0.5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=frame_transformer", "model.frame=orbit"], "model.frame: found 'orbit', expected"),
        (["model=frame_transformer", "model.threshold=1"], "model.threshold: found 1.0"),
        (
            ["model=frame_transformer", "model.frame=pca", "model.threshold=0.5"],
            "model.threshold: found with model.frame=pca, which has no threshold",
        ),
        (["model=frame_transformer", "model.heads=3"], "model.heads: found 3 with model.width=64"),
        (["model=frame_transformer", "model.training_draws=0"], "model.training_draws: found 0"),
        (["model=frame_transformer", "model.cutoff=3"], "model.cutoff: only with"),
        (["model.lmax=0"], "model.lmax: found 0, expected 1 (vectors) to 6"),
        (["model.lmax=7"], "model.lmax: found 7, expected 1 (vectors) to 6"),
        (["model.radial=1"], "model.radial: found 1, expected at least 2"),
        (["model.layers=0"], "model.layers: found 0"),
        (["model.cutoff=-1"], "model.cutoff: found -1"),
        (["model.attention=true"], "model.attention: only with model=egnn"),
        (["data.dimension=4"], "moves points in space or in the plane, found data of 4"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_made(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    model = [] if words[0].startswith("model=") else ["model=e3nn"]
    assert main(["train", "data.path=x.npy", f"run.dir={run}", *model, *words]) == 2
    assert says in capsys.readouterr().err
    assert not run.exists()


def test_an_order_out_of_range_is_named_together_with_other_problems() -> None:
    words = ["data.path=x.npy", "model=e3nn", "model.lmax=7", "model.width=0", "train.steps=0"]
    assert [line.partition(":")[0] for line in problems_of(composed("train", words))] == [
        "train.steps",
        "model.width",
        "model.lmax",
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["model=e3nn"], "no message passes of EGNN"),
        (["model=frame_transformer"], "no message passes of EGNN"),
        (["model=egnn", "train.device=cuda"], "only message passes on a CPU"),
        (["model=egnn", "train.device=cpu"], None),
    ],
)
def test_compiling_where_there_is_nothing_to_compile_is_told(words, reason) -> None:
    found = unused_words(["data.path=x.npy", *words, "train.compile=true"])
    assert (reason in found["train.compile"]) if reason else "train.compile" not in found


def test_a_threshold_that_nobody_typed_is_no_problem_of_principal_axes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data.path=x.npy", "model=frame_transformer", "model.frame=pca"]
    others = set(ineffective(composed("train", words[:2])))
    assert others == {"solver.steps"}  # of dopri5
    config = composed("train", words)  # with the default
    assert config.model == FrameModelConfig(frame="pca")
    assert problems_of(config) == []
    assert set(ineffective(config)) - others == {"model.threshold"}
    folder = shutil.copytree(configs_folder(), tmp_path / "configs")
    (folder / "experiment" / "framed.yaml").write_text(
        "# @package _global_\n# framed\ndefaults:\n  - override /model: frame_transformer\n"
        "name: framed\nmodel:\n  threshold: 0.5\n"
    )
    monkeypatch.setattr("eqflow.cli.compose.configs_folder", lambda: folder)
    preset = ["experiment=framed", "data.path=x.npy", "model.frame=pca"]
    assert composed("train", preset).model == FrameModelConfig(frame="pca", threshold=0.5)
    with pytest.raises(UsageError, match=r"threshold: found with model\.frame=pca"):
        composed("train", [*preset, "model.threshold=0.5"])


def test_irreps_are_of_no_use_to_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "experiment=dw4", "model.lmax=2", f"run.dir={tmp_path / 'run'}"]
    assert main(words) == 2
    assert "model.lmax: only with model=e3nn" in capsys.readouterr().err
