"""import-enf: the published weights become a run, or nothing is made."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from enf_files import archive, folder, found, published

import eqflow
from eqflow import storage
from eqflow.cli.main import main
from eqflow.train.enf import load_enf

MOLECULES = """\
3
water
O 0 0 0.119
H 0 0.763 -0.477
H 0 -0.763 -0.477
5
methane
C 0 0 0
H 0.629 0.629 0.629
H -0.629 -0.629 0.629
H -0.629 0.629 -0.629
H 0.629 -0.629 -0.629
"""

Captured = pytest.CaptureFixture[str]


def imported(weights: Path, run: Path, *words: str) -> int:
    return main(["import-enf", f"weights={weights}", f"run.dir={run}", *words])


def test_an_import_is_a_run_with_everything_in_it(tmp_path: Path, capsys: Captured) -> None:
    weights, run = archive(tmp_path / "weights.npz", published()), tmp_path / "ä b" / "run"
    assert imported(weights, run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(weights) in lines[0]
    assert str(run) in lines[0]
    assert lines[-1] == f"done: {run}"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "provenance.json",
        "weights.safetensors",
        "weights.safetensors.sha256",
    }
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["name"] == "joint_egnn"
    assert (config["model"]["layers"], config["model"]["width"]) == (2, 4)
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["weights"][0]["sha256"] == storage.sha256_of(weights)


@pytest.mark.parametrize("write", [archive, folder])
def test_a_run_holds_the_very_flow(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "published"
    source.mkdir()
    weights = write(source / "weights.npz" if write is archive else source, published())
    assert imported(weights, tmp_path / "run") == 0
    flow, expected = eqflow.load(tmp_path / "run"), load_enf(weights)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, flow.state_dict()[name]), name
    assert torch.equal(flow.sizes.log_probs, expected.sizes.log_probs)
    assert torch.equal(flow.sizes.sizes, expected.sizes.sizes)
    assert flow.elements == expected.elements
    assert flow.integer_features == expected.integer_features


def test_choices_of_an_import_are_those_of_its_run(tmp_path: Path) -> None:
    small = {name: 0.1 * tensor for name, tensor in published().items()}
    weights = archive(tmp_path / "weights.npz", small)
    words = ["published_actnorm=true", "solver.method=euler", "solver.steps=1"]
    assert imported(weights, tmp_path / "run", *words, "divergence=hutchinson") == 0
    flow = eqflow.load(tmp_path / "run")
    assert flow.published_actnorm
    assert (flow.solver.method, flow.solver.steps) == ("euler", 1)
    data, out = tmp_path / "molecules.xyz", tmp_path / "scores.csv"
    data.write_text(MOLECULES)
    words = ["score", f"run={tmp_path / 'run'}", f"data.path={data}", f"out={out}", "draws=1"]
    assert main(words) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    clouds = eqflow.read(data)
    expected = flow.actnorm.log_det(clouds.segments, 3, published=True).tolist()
    assert [float(row["log_det_actnorm"]) for row in rows] == pytest.approx(expected, rel=1e-6)


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path, capsys: Captured) -> None:
    weights, run = archive(tmp_path / "weights.npz", published()), tmp_path / "run"
    run.mkdir()
    assert imported(weights, run) == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert imported(weights, run) == 2
    assert "is not empty" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    assert imported(weights, weights) == 6
    assert "it is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "damaged file"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_text("<!doctype html>"), "web page"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: np.savez(path, x=np.zeros(3)), "expected the published flow"),
        (lambda path: np.savez(path, **{"flow.x": np.array(["text"])}), "expected numbers"),
        (lambda path: archive(path, without("flow.transformations.0.h_t")), "missing"),
        (lambda path: archive(path, with_nan()), "not finite"),
        (
            lambda path: archive(path, published(), **{"n_nodes.keys": [3], "n_nodes.prob": [0.5]}),
            "histogram of sizes",
        ),
    ],
)
def test_wrong_weights_are_named_and_nothing_is_made(
    tmp_path: Path, capsys: Captured, change, message: str
) -> None:
    weights = archive(tmp_path / "weights.npz", published())
    change(weights)
    assert imported(weights, tmp_path / "new" / "run") == 3
    text = capsys.readouterr().err
    assert message in text
    assert str(weights) in text
    assert not (tmp_path / "new").exists()


def without(name: str) -> dict:
    tensors = published()
    del tensors[name]
    return tensors


def with_nan() -> dict:
    return published() | {"flow.transformations.0.x_log_s": torch.tensor([[float("nan")]])}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["weights=x.npz"], "run.dir: needed"),
        (["run.dir=new"], "weights: needed"),
        (["weights=x.npz", "run.dir=new", "solver.method=magic"], "magic"),
        (["weights=x.npz", "run.dir=new", "draws=2"], "no key 'draws'"),
    ],
)
def test_a_wrong_request_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, words, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import-enf", *words]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_published_flow_samples_and_scores_as_a_run(tmp_path: Path, capsys: Captured) -> None:
    weights, run = found("EQFLOW_ENF_WEIGHTS", "enf_qm9_weights.npz"), tmp_path / "run"
    assert imported(weights, run) == 0
    assert "H, C, N, O, F" in capsys.readouterr().out
    data, out = tmp_path / "molecules.xyz", tmp_path / "scores.csv"
    data.write_text(MOLECULES)
    assert main(["score", f"run={run}", f"data.path={data}", f"out={out}", "draws=2"]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    expected = load_enf(weights).score(eqflow.read(data), draws=2)
    for name, values in ({"log_prob": expected.log_prob} | expected.terms).items():
        assert [float(row[name]) for row in rows] == pytest.approx(values.tolist(), rel=1e-6)
    drawn = tmp_path / "drawn.sdf"
    words = ["sample", f"run={run}", "n=4", f"out={drawn}", "solver.rtol=1e-4", "solver.atol=1e-4"]
    assert main(words) == 0
    assert set(eqflow.read(drawn).numbers.tolist()) <= {1, 6, 7, 8, 9}
