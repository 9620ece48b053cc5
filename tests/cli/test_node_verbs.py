"""score, check, sample, load and help of a run that classifies nodes."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_nodes
import torch

import eqflow
from eqflow.cli.compose import keys
from eqflow.cli.main import main
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.nn.diffusion import GRAND

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nodes.graph(tmp_path_factory.mktemp("data") / "graph.npz")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert tiny_nodes.train(data, folder, "train.steps=20", "train.learning_rate=0.1") == 0
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_have_a_row_a_node_with_its_class_and_probabilities(
    run: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    assert main(["score", f"run={run}", f"data.path={data}", f"out={out}"]) == 0
    found, arrays = rows(out), tiny_nodes.arrays()
    assert [int(row["index"]) for row in found] == list(range(36))
    assert [int(row["label"]) for row in found] == arrays["y"].tolist()
    model = eqflow.load(run)
    graph = tiny_nodes.run(data, tmp_path / "unused").prepare().graph
    expected = model(graph).detach().double().softmax(1)
    for row, probability in zip(found, expected, strict=True):
        each = torch.tensor([float(row[f"probability_{k}"]) for k in range(3)]).double()
        assert torch.allclose(each, probability, atol=1e-6)
        assert int(row["predicted"]) == int(probability.argmax())
        assert float(row["confidence"]) == pytest.approx(float(probability.max()), rel=1e-5)
        entropy = -float((probability * probability.log()).sum())
        assert float(row["entropy"]) == pytest.approx(entropy, rel=1e-4)


def test_accuracies_of_the_parts_are_those_of_the_summary(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "scores.csv"
    assert main(["score", f"run={run}", f"out={out}"]) == 0  # its own graph
    summary = json.loads((run / "summary.json").read_text())
    for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        chosen = [row for row in rows(out) if row["part"] == part]
        right = sum(row["predicted"] == row["label"] for row in chosen)
        assert right / len(chosen) == pytest.approx(summary[f"{name}_accuracy"])
    assert f"test: accuracy {summary['test_accuracy']:.4f}" in capsys.readouterr().out


def test_another_graph_is_scored_and_its_unknown_labels_are_left_empty(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    arrays = tiny_nodes.arrays(nodes=20, seed=5)
    bare = {name: value for name, value in arrays.items() if "mask" not in name}
    bare["y"] = np.where(np.arange(20) < 5, -1, bare["y"])
    np.savez(tmp_path / "other.npz", **bare)
    out = tmp_path / "s.csv"
    assert main(["score", f"run={run}", f"data.path={tmp_path / 'other.npz'}", f"out={out}"]) == 0
    found = rows(out)
    assert len(found) == 20
    assert [row["label"] for row in found[:5]] == [""] * 5
    assert {row["part"] for row in found} == {""}
    text = capsys.readouterr().out
    assert "another graph than that of the run" in text
    assert "over 15 nodes" in text


def test_a_graph_without_labels_gets_predictions_and_no_accuracy(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    arrays = tiny_nodes.arrays(nodes=20, seed=5)
    labelled = {name: value for name, value in arrays.items() if "mask" not in name}
    bare = {name: value for name, value in arrays.items() if name != "y"}
    found = {}
    for name, content in (("labelled", labelled), ("bare", bare)):
        np.savez(tmp_path / f"{name}.npz", **content)
        out = tmp_path / f"{name}.csv"
        words = [f"run={run}", f"data.path={tmp_path / name}.npz", f"out={out}"]
        assert main(["score", *words]) == 0
        found[name] = rows(out)
    text = capsys.readouterr().out
    assert text.count("accuracy") == 2
    assert "no node has a label: these are predictions, without an accuracy" in text
    for row, other in zip(found["bare"], found["labelled"], strict=True):
        assert row == other | {"label": ""}
    # To train needs labels.
    assert tiny_nodes.train(tmp_path / "bare.npz", tmp_path / "run") == 3
    assert "expected labels" in capsys.readouterr().err


def test_labels_beyond_the_classes_of_the_run_are_counted(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    y = tiny_nodes.arrays()["y"].copy()
    y[:4] = [3, 5, 3, 2]
    path, out = tiny_nodes.graph(tmp_path / "more.npz", y=y), tmp_path / "s.csv"
    assert main(["score", f"run={run}", f"data.path={path}", f"out={out}"]) == 0
    text = capsys.readouterr().out
    assert "notice: 3 nodes have labels up to 5, beyond the 3 classes of the run (0 to 2)" in text
    assert "over 36 nodes" in text


def test_weights_of_edges_are_told_not_to_be_used(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    weights = np.arange(tiny_nodes.arrays()["edge_index"].shape[1]) + 0.5
    path = tiny_nodes.graph(tmp_path / "weighted.npz", edge_weight=weights)
    out = tmp_path / "s.csv"
    assert main(["score", f"run={run}", f"data.path={path}", f"out={out}"]) == 0
    assert "notice: edge_weight of the file is not used" in capsys.readouterr().out


def test_a_graph_given_to_the_task_of_structures_is_told_its_task(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["train", f"data.path={data}", f"run.dir={tmp_path / 'run'}"]) == 3
    assert "task=node_classification" in capsys.readouterr().err


def test_a_graph_of_other_features_is_exit_code_3_and_nothing_is_written(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    narrow = tiny_nodes.graph(tmp_path / "n.npz", x=tiny_nodes.arrays()["x"][:, :4])
    out = tmp_path / "new" / "s.csv"
    assert main(["score", f"run={run}", f"data.path={narrow}", f"out={out}"]) == 3
    assert "found 4 features" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["draws=3"], "draws"),
        (["divergence=exact"], "divergence"),
        (["data.structures=3"], "data.structures"),
        (["data.source=file"], "data.source: found without data.path"),
        (["solver.method=magic"], "solver.method"),
    ],
)
def test_options_of_densities_are_refused(
    run: Path, tmp_path: Path, capsys: Captured, words: list[str], expected: str
) -> None:
    assert main(["score", f"run={run}", f"out={tmp_path / 's.csv'}", *words]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


def test_the_solver_can_be_chosen_anew(run: Path, tmp_path: Path) -> None:
    words = ["score", f"run={run}", f"out={tmp_path / 's.csv'}"]
    assert main([*words, "solver.method=dopri5", "solver.rtol=1e-6"]) == 0
    assert main([*words, "solver.method=dopri5", "solver.step_limit=2"]) == 4


def test_a_solver_key_without_effect_is_refused(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = ["score", f"run={run}", f"out={tmp_path / 's.csv'}"]
    for method, key in (
        ("dopri5", "steps=3"),
        ("rk4", "rtol=1e-3"),
        ("exponential", "steps=3"),  # the model is linear
        ("exponential", "atol=1e-3"),
    ):
        assert main([*words, f"solver.method={method}", f"solver.{key}"]) == 2
        reason = f"solver.{key.partition('=')[0]}: found with solver.method={method}"
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()
    assert main([*words, "solver.method=exponential", "solver.rtol=1e-3"]) == 0


def test_layers_have_no_solver_to_choose(data: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "run"
    words = [f"data.path={data}", f"run.dir={folder}", "model=gcn", "model.width=8"]
    assert main(["train", *words, *tiny_nodes.LOOP, "train.steps=1"]) == 0
    score = ["score", f"run={folder}", f"out={tmp_path / 's.csv'}"]
    assert main([*score, "solver.steps=3"]) == 2
    assert "has no solver" in capsys.readouterr().err
    assert main(score) == 0
    assert main(["check", f"run={folder}"]) == 0


def test_nodes_beside_the_largest_component_are_not_scored(tmp_path: Path) -> None:
    pairs = np.array([np.arange(30), np.arange(1, 31)])
    data = tiny_nodes.graph(tmp_path / "g.npz", edge_index=pairs)
    words = ["data.largest_component=true", "data.split=fraction"]
    assert tiny_nodes.train(data, tmp_path / "run", *words) == 0
    assert main(["score", f"run={tmp_path / 'run'}", f"out={tmp_path / 's.csv'}"]) == 0
    assert [int(row["index"]) for row in rows(tmp_path / "s.csv")] == list(range(31))


def test_weights_alone_are_loaded_and_score_from_any_folder(
    run: Path, data: Path, tmp_path: Path
) -> None:
    place = tmp_path / "ä b, (日本)"
    place.mkdir()
    shutil.copy(run / "weights.safetensors", place / "weights.safetensors")
    weights = place / "weights.safetensors"
    assert isinstance(eqflow.load(weights), DiffusionClassifier)
    assert main(["score", f"run={weights}", f"data.path={data}", f"out={place / 's.csv'}"]) == 0
    assert main(["check", f"run={weights}"]) == 0


def test_damaged_weights_are_named(run: Path, tmp_path: Path, capsys: Captured) -> None:
    weights = tmp_path / "weights.safetensors"
    content = bytearray((run / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    shutil.copy(run / "weights.safetensors.sha256", tmp_path / "weights.safetensors.sha256")
    for verb in ("score", "check"):
        out = tmp_path / ("s.csv" if verb == "score" else "c.json")
        more = [f"data.path={run}/none.npz"] if verb == "score" else []
        assert main([verb, f"run={weights}", f"out={out}", *more]) == 3
        assert "the file is damaged" in capsys.readouterr().err


def test_a_classifier_has_nothing_to_draw(run: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["sample", f"run={run}", f"out={tmp_path / 's.npy'}"]) == 2
    assert "eqflow score and eqflow check" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_flow_is_no_classifier(tmp_path: Path, capsys: Captured) -> None:
    points = tiny.particles(tmp_path / "d.npy")
    assert tiny.train(points, tmp_path / "run") == 0
    words = ["score", f"run={tmp_path / 'run'}", f"data.path={points}"]
    assert main([*words, f"out={tmp_path / 's.csv'}", "data.source=cora"]) == 2
    assert "data.source: only for a run that classifies nodes" in capsys.readouterr().err


def test_the_laws_are_measured_and_written(run: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "check.json"
    assert main(["check", f"run={run}", f"out={out}"]) == 0
    laws = json.loads(out.read_text())
    assert len(laws) == 3
    assert all(law["holds"] for law in laws)
    assert "all 3 laws hold" in capsys.readouterr().out


def test_a_law_that_fails_is_exit_code_4(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    coefficients = GRAND.coefficients

    def broken(self, t, x, edges, context=None):  # type: ignore[no-untyped-def]
        found = coefficients(self, t, x, edges, context)
        return type(found)(found.edges, found.weight, torch.arange(len(x)) / len(x))

    monkeypatch.setattr(GRAND, "coefficients", broken)
    assert main(["check", f"run={run}"]) == 4
    assert "laws fail" in capsys.readouterr().out


def test_help_lists_the_keys_of_the_task_that_is_meant(capsys: Captured) -> None:
    for words in (["task=node_classification"], ["experiment=cora"], ["model=graff"]):
        assert main(["train", *words, "--help"]) == 0
        text = capsys.readouterr().out
        assert all(f"  {key} " in text for key in keys("train_nodes"))
        assert "objective" not in text
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "eqflow train task=node_classification --help" in text
    assert "wisconsin" in text
    assert main(["train", "task=other", "--help"]) == 2
    assert "there is no such task" in capsys.readouterr().err


def test_every_leaf_of_the_task_is_explained() -> None:
    for key, leaf in keys("train_nodes").items():
        assert leaf.help, key


def test_a_model_of_probability_one_has_no_entropy(run: Path, tmp_path: Path) -> None:
    from eqflow.cli.score_nodes import _csv

    logits = torch.tensor([[2000.0, 0.0, 0.0]]).double()
    text = _csv(logits, torch.tensor([-1]), torch.tensor([7]), None).splitlines()[1]
    index, predicted, label, part, confidence, entropy, *_ = text.split(",")
    assert (index, predicted, label, part, confidence) == ("7", "0", "", "", "1")
    assert math.isclose(float(entropy), 0, abs_tol=1e-12)
