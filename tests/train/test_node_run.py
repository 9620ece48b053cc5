"""A run that classifies nodes and its folder: resume, finish, refuse, fail."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_nodes
import torch
import yaml

from eqflow.cli.main import main
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.graphs import Graph, read_graph
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.train import load
from eqflow.train.node_data import digest, moved
from eqflow.train.node_loop import NodeTrainer

ALWAYS = {
    "config.yaml",
    "provenance.json",
    "metrics.csv",
    "summary.json",
    "log.txt",
    "checkpoints",
    "weights.safetensors",
    "weights.safetensors.sha256",
}

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nodes.graph(tmp_path_factory.mktemp("data") / "graph.npz")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert tiny_nodes.train(data, folder) == 0
    return folder


def metrics(folder: Path) -> list[object]:
    return list(tiny.without_seconds((folder / "metrics.csv").read_text()))


def summary(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "summary.json").read_text())
    return {name: value for name, value in found.items() if "seconds" not in name}


def test_a_run_folder_holds_what_the_contract_lists_and_nothing_else_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert tiny_nodes.train(data, tmp_path / "run") == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == ALWAYS
    assert not list(elsewhere.iterdir())


def test_the_files_of_a_run_say_what_it_was_and_how_well_it_does(whole: Path, data: Path) -> None:
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert (config["task"], config["train"]["steps"]) == ("node_classification", 6)
    assert json.loads((whole / "provenance.json").read_text())["data"]["path"] == str(data)
    found = json.loads((whole / "summary.json").read_text())
    assert {"cpu_seconds", "seconds", "split", "evaluations", "val_loss"} <= found.keys()
    assert (found["steps"], found["test_nodes"], found["split"]) == (6, 15, "0")
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == list("123456")
    best = max(float(row["val_accuracy"]) for row in rows)
    assert found["val_accuracy"] == pytest.approx(best)
    assert float(rows[found["best_step"] - 1]["val_accuracy"]) == pytest.approx(best)


def test_the_last_figures_are_those_of_the_weights_on_disk(whole: Path, data: Path) -> None:
    model, found = load(whole), json.loads((whole / "summary.json").read_text())
    assert isinstance(model, DiffusionClassifier)
    assert not model.training
    prepared = tiny_nodes.run(data, whole.parent / "unused").prepare()
    right = model(prepared.graph).argmax(1) == prepared.graph.y
    for part, mask in (("train", "train"), ("val", "validation"), ("test", "test")):
        accuracy = float(right[prepared.split.parts[mask]].double().mean())
        assert found[f"{part}_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("step", [2, 5, 6])
def test_stopped_and_resumed_a_run_ends_bitwise_like_the_uninterrupted_one(
    whole: Path, data: Path, tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "run"
    tiny_nodes.train_until(data, folder, step)
    assert not (folder / "summary.json").exists()
    assert tiny_nodes.train(data, folder) == 0
    assert tiny_nodes.tensors(folder) == tiny_nodes.tensors(whole)
    assert metrics(folder) == metrics(whole)
    assert summary(folder) == summary(whole)


@pytest.mark.parametrize("step", [1, 4])
def test_killed_at_any_step_a_run_ends_bitwise_like_the_uninterrupted_one(
    whole: Path, data: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception out of the step stands for a kill: nothing is saved after it."""
    folder = tmp_path / "run"
    take_step = NodeTrainer.step

    def killed(self: NodeTrainer) -> dict[str, float]:
        if self.progress.step + 1 == step:
            raise KeyboardInterrupt
        return take_step(self)

    monkeypatch.setattr(NodeTrainer, "step", killed)
    assert tiny_nodes.train(data, folder) == 130
    monkeypatch.undo()
    assert tiny_nodes.train(data, folder) == 0
    assert tiny_nodes.tensors(folder) == tiny_nodes.tensors(whole)
    assert metrics(folder) == metrics(whole)


@pytest.mark.parametrize(
    "words",
    [
        ["model=blend", "model.position_width=4", "encoding=laplacian", "encoding.width=4"],
        ["model=gated_gcn", "model.layers=3", "train.optimizer=rmsprop"],
        ["model.norm=true", "train.ema_decay=0.9", "train.schedule=cosine"],
        ["regularisation.jacobian=0.1", "model.nonlinear=true", "train.clip=0.5"],
    ],
)
def test_every_kind_of_run_resumes_bitwise(data: Path, tmp_path: Path, words: list[str]) -> None:
    is_layered = words[0].endswith("gcn")
    rest = [
        word
        for word in tiny_nodes.MODEL
        if not word.startswith(("model", "solver") if is_layered else "model")
    ]
    words = words if words[0].startswith("model=") else ["model=grand", *words]
    common = [f"data.path={data}", *rest, *tiny_nodes.LOOP, "model.width=8", *words]

    def train(folder: Path, until: int | None = None) -> None:
        from eqflow.cli.compose import composed
        from eqflow.train.tasks import run_of

        run = run_of(composed("train", [*common, f"run.dir={folder}"]), lambda line: None)
        asked = iter(range(1, 1000))
        done = run.train(
            lambda: until is not None and next(asked) >= until, lambda trainer, figures: None
        )
        assert done == (until is None)

    train(tmp_path / "whole")
    train(tmp_path / "parts", 3)
    train(tmp_path / "parts")
    assert tiny_nodes.tensors(tmp_path / "parts") == tiny_nodes.tensors(tmp_path / "whole")
    assert summary(tmp_path / "parts") == summary(tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    whole: Path, data: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "run"
    tiny_nodes.train_until(data, folder, 5)
    newest = max((folder / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:100])
    assert tiny_nodes.train(data, folder) == 0
    assert "warning: " in capsys.readouterr().out
    assert tiny_nodes.tensors(folder) == tiny_nodes.tensors(whole)


def test_a_finished_run_says_so_and_changes_nothing(
    whole: Path, data: Path, capsys: Captured
) -> None:
    before = tiny.contents(whole)
    assert tiny_nodes.train(data, whole) == 0
    assert "finished" in capsys.readouterr().out
    assert tiny.contents(whole) == before


def test_weights_of_edges_that_nothing_uses_are_told_in_the_log(
    tmp_path: Path, capsys: Captured
) -> None:
    count = tiny_nodes.arrays()["edge_index"].shape[1]
    for name, weights in (("same", np.ones(count)), ("weighted", np.arange(count) + 0.5)):
        path = tiny_nodes.graph(tmp_path / f"{name}.npz", edge_weight=weights)
        assert tiny_nodes.train(path, tmp_path / name) == 0
        is_told = "notice: edge_weight of the file is not used" in capsys.readouterr().out
        assert is_told == (name == "weighted")
        assert ("edge_weight" in (tmp_path / name / "log.txt").read_text()) == is_told


def test_more_steps_or_more_patience_continue_a_finished_run(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "run"
    assert tiny_nodes.train(data, folder) == 0
    assert tiny_nodes.train(data, folder) == 0
    assert "finished; a larger train.steps continues it" in capsys.readouterr().out
    assert tiny_nodes.train(data, folder, "train.steps=9") == 0
    assert (summary(folder)["steps"], summary(folder)["ended_by"]) == (9, "train.steps")
    straight = tmp_path / "straight"
    assert tiny_nodes.train(data, straight, "train.steps=9") == 0
    assert tiny_nodes.tensors(folder) == tiny_nodes.tensors(straight)
    patient = tmp_path / "patient"
    words = ["train.steps=200", "train.patience=2"]
    assert tiny_nodes.train(data, patient, *words) == 0
    reached = summary(patient)["steps"]
    assert reached < 200  # type: ignore[operator]
    assert summary(patient)["ended_by"] == "train.patience"
    assert "ended by train.patience=2: no better validation since" in capsys.readouterr().out
    assert tiny_nodes.train(data, patient, *words) == 0
    assert "finished; a larger train.patience continues it" in capsys.readouterr().out
    assert tiny_nodes.train(data, patient, "train.steps=300", "train.patience=2") == 0
    assert "ended by train.patience=2" in capsys.readouterr().out
    assert summary(patient)["steps"] == reached
    assert tiny_nodes.train(data, patient, "train.steps=200", "train.patience=6") == 0
    assert summary(patient)["steps"] > reached  # type: ignore[operator]


def test_what_ended_a_run_is_what_continues_it(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = ["train.steps=100000", "train.minutes=0.0005"]
    for _ in range(2):
        assert tiny_nodes.train(data, tmp_path / "run", *words) == 0
    assert summary(tmp_path / "run")["ended_by"] == "train.minutes"
    assert "finished; a larger train.minutes continues it" in capsys.readouterr().out


def test_other_changed_keys_are_refused_by_name_and_the_folder_is_untouched(
    whole: Path, data: Path, capsys: Captured
) -> None:
    before = tiny.contents(whole)
    assert tiny_nodes.train(data, whole, "seed=3", "data.split_index=1", "train.steps=9") == 2
    text = capsys.readouterr().err
    assert "seed: 0 → 3" in text
    assert "data.split_index: 0 → 1" in text
    assert "train.steps" not in text
    assert tiny.contents(whole) == before


def test_a_folder_of_another_task_is_refused(whole: Path, tmp_path: Path, capsys: Captured) -> None:
    before = tiny.contents(whole)
    assert tiny.train(tiny.particles(tmp_path / "d.npy"), whole) == 2
    assert "holds a run with another configuration" in capsys.readouterr().err
    assert tiny.contents(whole) == before


def test_data_that_changed_under_their_name_are_refused_and_moved_data_are_not(
    whole: Path, tmp_path: Path, capsys: Captured
) -> None:
    path, folder = tiny_nodes.graph(tmp_path / "g.npz"), tmp_path / "run"
    tiny_nodes.train_until(path, folder, 2)
    tiny_nodes.graph(path, x=tiny_nodes.arrays()["x"] + 1)
    assert tiny_nodes.train(path, folder) == 2
    assert "data.path" in capsys.readouterr().err
    assert tiny_nodes.train(tiny_nodes.graph(tmp_path / "moved.npz"), folder) == 0
    assert tiny_nodes.tensors(folder) == tiny_nodes.tensors(whole)


BAD_DATA = {
    "overlapping masks": ({"val_mask": tiny_nodes.arrays()["train_mask"]}, "in two"),
    "an empty part": ({"test_mask": np.zeros((36, 2), bool)}, "at least one"),
    "features that are not finite": (
        {"x": np.where(np.eye(36, 6) > 0, np.nan, tiny_nodes.arrays()["x"])},
        "numbers that are finite",
    ),
    "an index out of range": ({"edge_index": np.array([[0, 99], [1, 2]])}, "99"),
    "labels of one class": ({"y": np.zeros(36, np.int64)}, "at least 2"),
    "labels of another length": ({"y": np.zeros(7, np.int64)}, "36"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_data_that_cannot_be_used_are_exit_code_3_and_leave_no_folder(
    tmp_path: Path, capsys: Captured, what: str
) -> None:
    changes, expected = BAD_DATA[what]
    path = tiny_nodes.graph(tmp_path / "bad.npz", **changes)
    assert tiny_nodes.train(path, tmp_path / "new" / "run") == 3
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_files_that_are_no_graphs_are_exit_code_3(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "page.npz").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04K\x01.")
    for name in ("empty", "page", "pickle", "missing"):
        assert tiny_nodes.train(tmp_path / f"{name}.npz", tmp_path / "run") == 3
        text = capsys.readouterr().err
        assert f"{name}.npz" in text
    assert "data.path: found nothing at" in text
    assert tiny_nodes.train(tmp_path / "missing", tmp_path / "run", "data.source=texas") == 3
    assert "expected the file of texas, or the folder it is in" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_split_that_is_not_in_the_file_is_refused_with_what_is(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert tiny_nodes.train(data, tmp_path / "run", "data.split_index=2") == 2
    assert "data.split_index: found 2, expected 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    bare = {name: value for name, value in tiny_nodes.arrays().items() if "mask" not in name}
    np.savez(tmp_path / "bare.npz", **bare)
    assert tiny_nodes.train(tmp_path / "bare.npz", tmp_path / "run") == 3
    assert "data.split=planetoid" in capsys.readouterr().err
    for split, size in (("planetoid", "20"), ("per_class", "20"), ("development", "1500")):
        words = [f"data.split={split}"]
        assert tiny_nodes.train(tmp_path / "bare.npz", tmp_path / "run", *words) == 3
        text = capsys.readouterr().err
        assert f"({size})" in text
        assert "data.train_per_class" in text
        assert "data.split=fraction" in text
    drawn = ["data.split=fraction"]
    assert tiny_nodes.train(tmp_path / "bare.npz", tmp_path / "run", *drawn) == 0


def test_a_drawn_split_follows_its_own_seed_or_that_of_the_run(data: Path, tmp_path: Path) -> None:
    def split(*words: str) -> torch.Tensor:
        run = tiny_nodes.run(data, tmp_path / "run", "data.split=fraction", *words)
        return run.prepare().split.train

    assert torch.equal(split("seed=1"), split("seed=5", "data.split_seed=1"))
    assert not torch.equal(split("seed=1"), split("seed=2"))


def test_a_learning_rate_that_explodes_is_exit_code_4_with_finite_weights_on_disk(
    tmp_path: Path, capsys: Captured
) -> None:
    """Features of 1e30 and steps of 10 overflow float32 after a step or two."""
    data = tiny_nodes.graph(tmp_path / "large.npz", x=1e30 * tiny_nodes.arrays()["x"])
    words = ["train.learning_rate=10", "train.steps=60", "solver.method=euler", "model.time=50"]
    assert tiny_nodes.train(data, tmp_path / "run", *words) == 4
    text = capsys.readouterr()
    assert "no finite loss and gradient" in text.err + text.out
    model = load(tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_solver_out_of_steps_is_exit_code_4(data: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["solver.step_limit=3", "model.nonlinear=true"]
    assert tiny_nodes.train(data, tmp_path / "run", *words, "train.steps=30") == 4
    assert "no finite loss and gradient" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["exponential", "euler"])
def test_a_run_stopped_early_in_time_is_loaded_with_that_time(
    method: str, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ["train.stop_times=[0.2,3.0]", "train.learning_rate=0.1", "train.steps=12"]
    words += [f"solver.method={method}", "solver.steps=3"]
    words = tiny_nodes.words(data, folder, *words)
    if method == "exponential":  # exact, without steps
        words = [word for word in words if not word.startswith("solver.steps=")]
    assert main(words) == 0
    found, model = json.loads((folder / "summary.json").read_text()), load(folder)
    assert isinstance(model, DiffusionClassifier)
    assert model.time == found["stop_time"] in (0.2, 1.0, 3.0)
    prepared = tiny_nodes.run(data, folder).prepare()
    held_out = prepared.split.validation
    logits = model(prepared.graph)[held_out]
    loss = torch.nn.functional.cross_entropy(logits, prepared.graph.y[held_out]).item()
    assert found["val_loss"] == pytest.approx(loss, rel=1e-5)


def test_problems_of_a_configuration_come_all_at_once_before_any_folder(
    tmp_path: Path, capsys: Captured
) -> None:
    words = ["train.steps=0", "model.dropout=1.5", "train.optimizer=sgd", "data.split=other"]
    assert tiny_nodes.train(tmp_path / "missing.npz", tmp_path / "new" / "run", *words) == 2
    text = capsys.readouterr().err
    assert all(word.split("=")[0] in text for word in words)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError):
        tiny_nodes.run(tmp_path / "missing.npz", tmp_path / "run", *words)


def test_directed_graphs_isolated_nodes_loops_and_repeats_are_as_documented(
    tmp_path: Path, capsys: Captured
) -> None:
    pairs = np.array([[0, 0, 1, 2, 2, 3], [1, 1, 2, 3, 2, 0]])  # repeated 0 → 1, a loop at 2
    path = tiny_nodes.graph(tmp_path / "g.npz", edge_index=pairs)

    def graph(*words: str) -> Graph:
        return tiny_nodes.run(path, tmp_path / "run", *words).prepare().graph

    both = graph("data.self_loops=false")
    assert both.edges.count == 8
    assert graph().edges.count == 8 + 36
    directed = graph("data.undirected=false", "data.self_loops=false")
    assert directed.edges.count < both.edges.count * 2
    assert tiny_nodes.train(path, tmp_path / "run", "data.undirected=false") == 0
    assert "edges are directed" in capsys.readouterr().out


def test_a_part_without_nodes_in_the_largest_component_is_refused(
    tmp_path: Path, capsys: Captured
) -> None:
    path = tiny_nodes.graph(tmp_path / "g.npz", edge_index=np.array([[0], [1]]))
    assert tiny_nodes.train(path, tmp_path / "run", "data.largest_component=true") == 3
    assert "at least one" in capsys.readouterr().err


def test_a_class_without_training_nodes_is_told(tmp_path: Path, capsys: Captured) -> None:
    masks = tiny_nodes.arrays()
    lacking = masks["train_mask"] & (masks["y"] != 2)[:, None]
    path = tiny_nodes.graph(tmp_path / "g.npz", train_mask=lacking)
    assert tiny_nodes.train(path, tmp_path / "run") == 0
    assert "no training node is of class 2" in capsys.readouterr().out


def test_features_are_normalised_or_made_binary_if_asked(data: Path, tmp_path: Path) -> None:
    def graph(*words: str) -> Graph:
        return tiny_nodes.run(data, tmp_path / "run", *words).prepare().graph

    x = graph("data.normalise_features=true").x
    x = x.to_dense() if x.layout is torch.sparse_csr else x
    assert torch.allclose(x.sum(1), torch.ones(36))
    x = graph("data.binary_features=true").x
    assert set(x.to_dense().unique().tolist()) <= {0.0, 1.0}


def test_rewiring_changes_edges_as_asked(data: Path, tmp_path: Path) -> None:
    def graph(*words: str) -> Graph:
        words = ("data.self_loops=false", *words)
        return tiny_nodes.run(data, tmp_path / "run", *words).prepare().graph

    plain = graph()
    encoding = ["encoding=random_walk", "encoding.width=4"]
    knn = graph(*encoding, "rewiring=knn", "rewiring.neighbours=3")
    assert knn.edges.count == 3 * 36
    assert knn.encoding is None  # grand has no positions
    kept = graph(*encoding, "rewiring=knn", "rewiring.neighbours=3", "rewiring.keep=true")
    assert max(knn.edges.count, plain.edges.count) < kept.edges.count
    near = graph(*encoding, "rewiring=radius", "rewiring.radius=1e3")
    assert near.edges.count == 36 * 35
    assert graph("rewiring=two_hop").edges.count > plain.edges.count
    top = graph("rewiring=ppr_top_k", "rewiring.neighbours=2")
    assert top.edges.count <= 2 * 36


@pytest.mark.parametrize(
    ("encoding", "width"),
    [("ppr", 5), ("ppr", None), ("deepwalk", 5), ("laplacian", 5), ("random_walk", 5)],
)
def test_each_encoding_reaches_blend_in_its_width(
    data: Path, tmp_path: Path, encoding: str, width: int | None
) -> None:
    words = [f"encoding={encoding}", f"encoding.width={'null' if width is None else width}"]
    words += ["model=blend", "model.position_width=4", "train.steps=1"]
    run = tiny_nodes.run(data, tmp_path / "run", *words)
    trainer = run.prepare()
    assert trainer.graph.encoding is not None
    assert trainer.graph.encoding.shape == (36, 36 if width is None else width)
    assert math.isfinite(trainer.step()["loss"])


def test_a_poincare_encoding_is_where_hyperbolic_positions_start(
    data: Path, tmp_path: Path
) -> None:
    words = ["encoding=poincare", "encoding.width=4", "model=blend", "model.position_width=4"]
    words += ["model.diffusivity=position_and_feature", "model.space=hyperbolic", "train.steps=1"]
    assert tiny_nodes.train(data, tmp_path / "run", *words) == 0
    load(tmp_path / "run")


def test_a_digest_tells_graphs_apart_wherever_they_are(data: Path, tmp_path: Path) -> None:
    graph = tiny_nodes.run(data, tmp_path / "run").prepare().graph
    again = tiny_nodes.run(data, tmp_path / "other", "seed=3").prepare().graph
    assert digest(graph) == digest(again)
    fewer = Edges.from_index(torch.stack([graph.edges.sender, graph.edges.receiver])[:, 1:], 36)
    assert digest(graph.with_edges(fewer)) != digest(graph)
    assert moved(graph, torch.device("cpu")) is graph


def test_of_a_folder_the_files_that_are_read_have_the_fingerprint(
    shared_data: Path, tmp_path: Path
) -> None:
    """Files of other data sets beside them may change."""
    for name in ("het_texas", "het_wisconsin"):
        (tmp_path / f"{name}.npz").write_bytes((shared_data / f"graphs/{name}.npz").read_bytes())
    words = ["data.source=texas", "model.width=4"]
    run = tiny_nodes.run(tmp_path, tmp_path / "run", *words)
    before = run.data_fingerprint()
    (tmp_path / "het_wisconsin.npz").write_bytes(b"other")
    assert run.data_fingerprint() == before
    (tmp_path / "het_texas.npz").write_bytes(b"other")
    assert run.data_fingerprint() != before


def test_a_loaded_classifier_gives_nodes_the_self_loops_it_was_trained_with(
    data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert tiny_nodes.train(data, folder, "train.steps=3") == 0
    model = load(folder)
    prepared = tiny_nodes.run(data, folder).prepare().graph
    bare = read_graph(data)
    assert bare.edges.count < prepared.edges.count
    assert torch.equal(model(bare), model(prepared))


def test_a_run_none_of_whose_steps_succeeded_is_a_numerical_failure(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = ["solver.method=euler", "model.time=1e30", "train.steps=3"]
    assert tiny_nodes.train(data, tmp_path / "run", *words) == 4
    assert "none of the 3 steps" in capsys.readouterr().err


def test_finite_figures_that_have_blown_up_and_tell_no_class_are_a_numerical_failure(
    data: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Steps of Euler ten times longer than it is stable for."""
    words = ["solver.method=euler", "solver.steps=20", "model.time=100", "train.steps=2"]
    assert tiny_nodes.train(data, tmp_path / "run", *words) == 4
    text = capsys.readouterr().err
    assert "a validation loss of" in text
    assert "they tell no class. Lower model.time" in text
    assert not (tmp_path / "run" / "summary.json").exists()


def large(sign: float, chosen: Callable[[NodeTrainer, Any], bool]) -> Callable[..., Any]:
    """Readings of a trainer whose logits are enormous where `chosen` says so."""
    readings = NodeTrainer.readings

    def found(self: NodeTrainer, model: Any) -> Any:
        factor = sign * 1e6 if chosen(self, model) else 1.0
        return [(time, factor * logits) for time, logits in readings(self, model)]

    return found


def test_blown_up_logits_that_tell_classes_are_a_notice_in_log_and_summary(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features show the class of every node but one of validation, whose loss is enormous."""
    y, validation = tiny_nodes.arrays()["y"], tiny_nodes.arrays()["val_mask"][:, 0]
    other = np.where(np.arange(36) == validation.argmax(), (y + 1) % 3, y)
    features = np.eye(3, 6, dtype=np.float32)[y]
    data = tiny_nodes.graph(tmp_path / "clear.npz", x=features, y=other)
    monkeypatch.setattr(NodeTrainer, "readings", large(1, lambda trainer, model: True))
    words = ["train.steps=8", "train.learning_rate=0.3", "model.dropout=0", "model.input_dropout=0"]
    assert tiny_nodes.train(data, tmp_path / "run", *words) == 0
    (line,) = summary(tmp_path / "run")["notices"]  # type: ignore[misc]
    assert "where a guess of all classes alike has 1.1: logits have blown up" in line
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_that_became_unstable_after_its_best_step_says_so(
    data: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train.steps=18", "train.learning_rate=0.1"]
    assert tiny_nodes.train(data, tmp_path / "calm", *words) == 0
    assert summary(tmp_path / "calm")["notices"] == []
    assert "notice" not in capsys.readouterr().out

    def late(trainer: NodeTrainer, model: Any) -> bool:
        return model is trainer.averaged and trainer.progress.step > 15

    monkeypatch.setattr(NodeTrainer, "readings", large(-1, late))
    assert tiny_nodes.train(data, tmp_path / "run", *words) == 0
    found = summary(tmp_path / "run")
    assert found["best_step"] <= 15  # type: ignore[operator]
    (line,) = found["notices"]  # type: ignore[misc]
    assert "after the best step the run became unstable" in line
    assert line in capsys.readouterr().out
