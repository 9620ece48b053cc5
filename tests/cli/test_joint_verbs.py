"""The verbs on a joint flow of molecules: what they write, and what they do with odd molecules."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import tiny

import eqflow
from eqflow.cli.main import main
from eqflow.errors import CheckpointError
from eqflow.flows import MolecularFlow, Status
from eqflow.train.checkpoint import WEIGHTS, read_weights, save_weights

WATER = "3\nwater\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
METHANE = "5\nmethane\nC 0 0 0\nH .6 .6 .6\nH -.6 -.6 .6\nH -.6 .6 -.6\nH .6 -.6 -.6\n"
CARBON = "1\none atom\nC 4 5 6\n"
FLUORIDE = "2\nan element of another model\nH 0 0 0\nF 0 0 0.92\n"
HYDROGEN = "2\na size of probability 0\nH 0 0 0\nH 0 0 0.74\n"
TERMS = ["log_prob_size", "log_prob_base", "log_det_flow", "log_det_actnorm", "minus_log_q"]
HEADER = ["index", "n", "log_prob", "log_prob_se", "nfe", "status", "divergence", *TERMS]
HEADER += ["importance_gain", "time", "solver", "solver_error", "log_prob_change", "source"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.joint_run(tmp_path_factory.mktemp("joint") / "run")


def sample(run: Path, out: Path, *words: str) -> int:
    return main(["sample", f"run={run}", f"out={out}", "n=6", *words])


def score(run: Path, content: str, folder: Path, *words: str) -> tuple[int, list[dict[str, str]]]:
    """The exit code, and the rows written if any."""
    data, out = folder / "data.xyz", folder / "scores.csv"
    data.write_text(content)
    out.unlink(missing_ok=True)
    code = main(["score", f"run={run}", f"data.path={data}", f"out={out}", *words])
    if not out.is_file():
        return code, []
    with out.open(newline="", encoding="utf-8") as file:
        return code, list(csv.DictReader(file))


def test_a_joint_run_loads_as_what_it_is(joint: Path) -> None:
    flow = eqflow.load(joint)
    assert isinstance(flow, MolecularFlow)
    assert flow.elements == (1, 6, 8)
    assert not flow.training


@pytest.mark.parametrize("ending", [".xyz", ".extxyz", ".sdf", ".npz"])
def test_molecules_are_drawn_with_their_elements(joint: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"samples{ending}"
    assert sample(joint, out) == 0
    drawn, expected = eqflow.read(out), eqflow.load(joint).sample(6, seed=0)
    assert drawn.sizes.tolist() == expected.sizes.tolist()
    assert drawn.numbers.tolist() == expected.numbers.tolist()
    assert float((drawn.x - expected.x).abs().max()) < 1e-6


def test_sizes_come_from_the_histogram_or_as_asked(joint: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.npz"
    assert sample(joint, out, "n=40") == 0
    assert set(eqflow.read(out).sizes.tolist()) == {1, 3, 5}
    assert sample(joint, out, "sizes=4") == 0
    assert eqflow.read(out).sizes.tolist() == [4] * 6
    assert sample(joint, tmp_path / "samples.npy", "sizes=4") == 0
    (tmp_path / "like.xyz").write_text(WATER + HYDROGEN)
    assert sample(joint, out, f"like={tmp_path / 'like.xyz'}", "n=3") == 0
    assert eqflow.read(out).sizes.tolist() == [3, 2, 3]


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("s.xyz", "formula=H2O", "draws the elements itself"),
        ("s.xyz", "sizes=0", "expected at least 1"),
        ("s.npy", "seed=0", "several sizes"),
    ],
)
def test_what_a_joint_model_cannot_draw_is_refused_first(
    joint: Path, tmp_path: Path, capsys: Captured, name: str, word: str, expected: str
) -> None:
    assert sample(joint, tmp_path / "new" / name, word) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_integrations_that_fail_are_counted_and_the_others_kept(
    joint: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = MolecularFlow.draw

    def failing(self: MolecularFlow, *args: object, **options: object):  # type: ignore[no-untyped-def]
        drawn = draw(self, *args, **options)  # type: ignore[arg-type]
        object.__setattr__(drawn, "status", (Status.NON_FINITE, *drawn.status[1:]))
        return drawn

    monkeypatch.setattr(MolecularFlow, "draw", failing)
    assert sample(joint, tmp_path / "s.xyz") == 7
    assert "left out: 1 structures" in capsys.readouterr().out
    assert len(eqflow.read(tmp_path / "s.xyz")) == 5


def test_a_row_has_every_term_and_is_the_score_of_the_flow(
    joint: Path, tmp_path: Path, capsys: Captured
) -> None:
    code, rows = score(joint, WATER + METHANE + CARBON, tmp_path, "draws=3", "seed=4")
    assert code == 0
    assert list(rows[0]) == HEADER
    assert "3 draws of features each, exact divergence" in capsys.readouterr().out
    clouds = eqflow.read(tmp_path / "data.xyz")
    expected = eqflow.load(joint).score(clouds, draws=3, seed=4)
    for i, row in enumerate(rows):
        assert (row["index"], row["status"]) == (str(i), "success")
        assert float(row["log_prob"]) == pytest.approx(float(expected.log_prob[i]), rel=1e-7)
        assert float(row["log_prob_se"]) == pytest.approx(float(expected.log_prob_se[i]), rel=1e-7)
        total = sum(float(row[name]) for name in [*TERMS, "importance_gain"])
        assert float(row["log_prob"]) == pytest.approx(total, abs=1e-4)
        assert int(row["nfe"]) == 3 * 8
    assert float(rows[2]["log_prob"]) == pytest.approx(float(expected.log_prob[2]), rel=1e-7)


def test_eight_draws_and_the_trace_of_the_run_where_nothing_is_said(
    joint: Path, tmp_path: Path, capsys: Captured
) -> None:
    _, rows = score(joint, WATER, tmp_path)
    assert int(rows[0]["nfe"]) == 8 * 8
    words = ["divergence=hutchinson", "divergence.probes=2", "draws=2"]
    code, rows = score(joint, WATER, tmp_path, *words)
    assert code == 0
    assert "hutchinson divergence" in capsys.readouterr().out
    assert (float(rows[0]["importance_gain"]), int(rows[0]["nfe"])) == (0.0, 2 * 8)


def test_the_published_constant_shifts_one_term(joint: Path, tmp_path: Path) -> None:
    scale = 3 * float(eqflow.load(joint).actnorm.position_log_scale.detach())
    _, (right,) = score(joint, WATER, tmp_path, "draws=1")
    _, (published,) = score(joint, WATER, tmp_path, "draws=1", "published_actnorm=true")
    for name in ("log_prob", "log_det_actnorm"):
        found = float(right[name]) - float(published[name])
        assert found == pytest.approx(scale, abs=1e-4)


def test_a_size_of_probability_0_is_a_row_that_says_so(
    joint: Path, tmp_path: Path, capsys: Captured
) -> None:
    large = "300\n\n" + "".join(f"C {i}.0 0 0\n" for i in range(300))
    code, rows = score(joint, WATER + HYDROGEN + large, tmp_path, "draws=2")
    assert code == 7
    assert "impossible: 2 structures" in capsys.readouterr().out
    assert [row["status"] for row in rows] == ["success", "impossible_size", "impossible_size"]
    assert [float(row["log_prob"]) for row in rows[1:]] == [-math.inf] * 2
    assert [float(row["log_prob_size"]) for row in rows[1:]] == [-math.inf] * 2
    assert [row["nfe"] for row in rows[1:]] == ["0", "0"]
    _, (alone,) = score(joint, WATER, tmp_path, "draws=2")
    assert float(alone["log_prob"]) == pytest.approx(float(rows[0]["log_prob"]), rel=1e-6)
    assert score(joint, HYDROGEN, tmp_path)[0] == 7


def test_an_unknown_element_stops_or_is_a_row_that_says_so(
    joint: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert score(joint, FLUORIDE + WATER, tmp_path) == (3, [])
    assert "element F is not one of" in capsys.readouterr().err
    words = ["data.on_problem=skip", "draws=1"]
    code, rows = score(joint, WATER + FLUORIDE + WATER, tmp_path, *words)
    assert code == 7
    assert "skipped: " in capsys.readouterr().out
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    assert [row["status"] for row in rows] == ["success", "unknown_element", "success"]
    assert math.isnan(float(rows[1]["log_prob"]))
    assert rows[1]["source"].endswith(":6")


def test_integrations_that_fail_are_rows_with_their_status(joint: Path, tmp_path: Path) -> None:
    words = ["solver.method=dopri5", "solver.step_limit=1", "draws=1"]
    code, rows = score(joint, WATER, tmp_path, *words)
    assert (code, rows[0]["status"], rows[0]["log_prob"]) == (4, "step_limit", "nan")


def test_options_of_joint_models_are_refused_where_they_say_nothing(
    joint: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert score(joint, WATER, tmp_path, "draws=0")[0] == 2
    data = tiny.particles(tmp_path / "points.npy")
    assert tiny.train(data, tmp_path / "run") == 0
    words = ["score", f"run={tmp_path / 'run'}", f"data.path={data}", f"out={tmp_path / 's.csv'}"]
    assert main([*words, "draws=2"]) == 2
    assert "draws: only for a joint model" in capsys.readouterr().err


def test_a_joint_run_obeys_its_laws(joint: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["check", f"run={joint}", "structures=2", f"out={tmp_path / 'check.json'}"]
    assert main(words) == 0, capsys.readouterr().out
    laws = json.loads((tmp_path / "check.json").read_text())
    assert {law["name"].split(":")[0] for law in laws} == {
        "velocity",
        "features",
        "dequantiser",
        "inverse",
        "divergence",
        "bound given the size",
    }


def test_weights_alone_are_enough(joint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "my weights.safetensors"
    shutil.copy(joint / WEIGHTS, weights)
    assert sample(weights, tmp_path / "s.xyz") == 0
    assert score(weights, WATER, tmp_path, "draws=1")[0] == 0


def test_a_kind_of_model_that_is_not_known_is_named(joint: Path, tmp_path: Path) -> None:
    _, config, statistics = read_weights(joint / WEIGHTS)
    config["model"]["name"] = "transformer"
    save_weights(tmp_path / WEIGHTS, eqflow.load(joint), config, statistics)
    with pytest.raises(CheckpointError, match="found 'transformer', expected egnn or joint_egnn"):
        eqflow.load(tmp_path)
    config["model"] |= {"name": "joint_egnn", "dequantiser": "magic"}
    save_weights(tmp_path / WEIGHTS, eqflow.load(joint), config, statistics)
    with pytest.raises(CheckpointError, match=r"model\.dequantiser: found 'magic'"):
        eqflow.load(tmp_path)
