"""sample, score, check and help: what they write, and the exit code of what goes wrong."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from eqflow import __version__
from eqflow.cli.compose import experiments, keys
from eqflow.cli.main import VERBS, main
from eqflow.cli.score import _of_convergence
from eqflow.data import read

WATER = "3\nwater\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
HEADER = (
    "index,n,log_prob,log_prob_se,nfe,status,divergence,"
    "log_prob_base,log_det_flow,log_det_scale,time,solver,solver_error,log_prob_change,source"
)

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on triangles in the plane."""
    base = tmp_path_factory.mktemp("planar")
    assert tiny.train(tiny.particles(base / "data.npy"), base / "run") == 0
    return base / "run"


@pytest.fixture(scope="module")
def molecular(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on molecules of H, O and F in space."""
    base = tmp_path_factory.mktemp("molecular")
    words = ["data.dimension=3", "data.elements=H,O,F", "data.validation=0.1", "data.test=0.1"]
    assert tiny.train(tiny.molecules(base / "molecules.xyz"), base / "run", *words) == 0
    return base / "run"


def sample(run: Path, out: Path, *words: str) -> int:
    return main(["sample", f"run={run}", f"out={out}", "n=4", *words])


def score(run: Path, data: Path, out: Path, *words: str) -> int:
    return main(["score", f"run={run}", f"data.path={data}", f"out={out}", *words])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# sample


@pytest.mark.parametrize("ending", [".xyz", ".extxyz", ".sdf", ".npz", ".XYZ"])
def test_samples_of_molecules_are_read_back(molecular: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"samples{ending}"
    assert sample(molecular, out, "formula=H2O") == 0
    clouds = read(out)
    assert len(clouds) == 4
    assert clouds.numbers is not None
    assert clouds.numbers.tolist() == [1, 1, 8] * 4
    assert not list(tmp_path.glob(".eqflow-*"))


@pytest.mark.parametrize("ending", [".xyz", ".extxyz", ".sdf", ".npz", ".npy"])
def test_samples_of_points_are_read_back(planar: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"samples{ending}"
    assert sample(planar, out) == 0
    assert read(out, dimension=2).sizes.tolist() == [3] * 4


def test_the_same_seed_gives_the_same_samples(planar: Path, tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.npy" for name in "abc")
    assert sample(planar, a) == sample(planar, b) == sample(planar, c, "seed=1") == 0
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()


def test_sizes_and_make_ups_follow_the_data_or_what_is_asked(
    molecular: Path, planar: Path, tmp_path: Path
) -> None:
    assert sample(planar, tmp_path / "five.npy", "sizes=5") == 0
    assert np.load(tmp_path / "five.npy").shape == (4, 5, 2)
    assert sample(molecular, tmp_path / "any.npz", "n=20") == 0
    assert set(read(tmp_path / "any.npz").sizes.tolist()) == {2, 3}
    assert sample(molecular, tmp_path / "two.npz", "sizes=2") == 0
    numbers = read(tmp_path / "two.npz").numbers
    assert numbers is not None
    assert numbers.tolist() == [1, 9] * 4


def test_samples_come_in_batches_that_differ(planar: Path, tmp_path: Path) -> None:
    assert sample(planar, tmp_path / "s.npy", "n=5", "batch=2") == 0
    x = np.load(tmp_path / "s.npy")
    assert x.shape == (5, 3, 2)
    assert len(np.unique(x.round(6), axis=0)) == 5


def test_the_solver_can_be_chosen_anew(planar: Path, tmp_path: Path, capsys: Captured) -> None:
    assert sample(planar, tmp_path / "s.npy", "solver.method=euler", "solver.steps=7") == 0
    assert "at most 7 evaluations" in capsys.readouterr().out
    assert sample(planar, tmp_path / "s.npy", "solver.method=magic") == 2
    assert sample(planar, tmp_path / "s.npy", "solver.rtol=-1") == 2


@pytest.mark.parametrize("verb", ["sample", "score"])
def test_a_solver_key_without_effect_is_refused_before_anything_is_written(
    planar: Path, tmp_path: Path, capsys: Captured, verb: str
) -> None:
    """The run's own method, rk4 in two steps, counts where none is typed."""
    drawn, out = tmp_path / "drawn.npy", tmp_path / "new" / "out"
    assert sample(planar, drawn, "n=2") == 0

    def verb_with(*words: str) -> int:
        if verb == "sample":
            return sample(planar, out.with_suffix(".npy"), *words)
        given = [f"run={planar}", f"data.path={drawn}", f"out={out.with_suffix('.csv')}"]
        return main(["score", *given, *words])

    for method, key in (("rk4", "rtol=1e-3"), ("euler", "atol=1e-3"), ("dopri5", "steps=9")):
        typed = [] if method == "rk4" else [f"solver.method={method}"]
        assert verb_with(*typed, f"solver.{key}") == 2
        reason = f"solver.{key.partition('=')[0]}: found with solver.method={method}"
        assert reason in capsys.readouterr().err
    assert not out.parent.exists()
    assert verb_with("solver.method=dopri5", "solver.rtol=1e-3") == 0
    assert verb_with("solver.steps=3") == 0


def test_sampling_says_what_it_does_and_ends_with_the_path(
    planar: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "s.npy"
    assert sample(planar, out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(planar) in lines[0]
    assert str(out) in lines[0]
    assert lines[-1].endswith(str(out))
    assert not any("\r" in line or "\x1b" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["n=0"], 2, "n"),
        (["n=-3"], 2, "n"),
        (["batch=0"], 2, "batch"),
        (["sizes=0"], 2, "sizes"),
        (["formula=H2O"], 2, "knows no elements"),
        (["formula=H2O", "sizes=3"], 2, "contradict"),
        (["device=tpu"], 2, "expected auto, cpu or cuda"),
        (["threads=0"], 2, "threads"),
        (["solver.step_limit=1", "solver.method=dopri5"], 4, "none of 4"),
    ],
)
def test_a_wrong_request_writes_nothing(
    planar: Path, tmp_path: Path, capsys: Captured, words: list[str], code: int, expected: str
) -> None:
    out = tmp_path / "made" / "s.npz"
    assert sample(planar, out, *words) == code
    assert expected in capsys.readouterr().err
    assert not out.exists()
    if code == 2:
        assert "evaluations" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["formula=C2H6O"], 3, "C is not among"),
        (["formula=Xx2"], 3, "'Xx'"),
        (["formula=h2o"], 2, "formula"),
        (["formula=2"], 2, "formula"),
        (["sizes=9"], 2, "no training structure has 9 points"),
    ],
)
def test_a_make_up_the_model_cannot_draw_is_refused(
    molecular: Path, tmp_path: Path, capsys: Captured, words: list[str], code: int, expected: str
) -> None:
    assert sample(molecular, tmp_path / "s.xyz", *words) == code
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("name", ["s.txt", "s", "s.pdb", "s.csv", ".xyz"])
def test_an_unknown_ending_is_refused_before_the_run_is_read(
    tmp_path: Path, capsys: Captured, name: str
) -> None:
    assert sample(tmp_path / "no run", tmp_path / "new" / name) == 2
    assert ".extxyz" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_read_is_not_written(
    molecular: Path, tmp_path: Path, capsys: Captured
) -> None:
    mine = tmp_path / "mine.extxyz"
    assert sample(molecular, mine, "n=3") == 0
    before = mine.read_bytes()
    assert sample(molecular, tmp_path / "." / "mine.extxyz", f"like={mine}") == 2
    assert "which is read as like" in capsys.readouterr().err
    assert mine.read_bytes() == before
    assert sample(molecular, mine, "n=2") == 0
    assert f"{mine} is there already, and is replaced" in capsys.readouterr().out


def test_npy_cannot_hold_several_sizes(molecular: Path, tmp_path: Path, capsys: Captured) -> None:
    assert sample(molecular, tmp_path / "new" / "s.npy") == 2
    assert "several sizes" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# where to write


@pytest.mark.parametrize("verb", ["sample", "score", "check"])
def test_a_place_that_cannot_be_written_is_refused_before_computing(
    planar: Path, tmp_path: Path, capsys: Captured, verb: str
) -> None:
    name = {"sample": "s.npy", "score": "s.csv", "check": "c.json"}[verb]
    (tmp_path / "file").write_text("")
    tiny.particles(tmp_path / "d.npy", count=3)
    more = [f"data.path={tmp_path / 'd.npy'}"] if verb == "score" else []
    words = [verb, f"run={planar}", *more]
    assert main([*words, f"out={tmp_path / 'file' / name}"]) == 6
    (tmp_path / name).mkdir()
    assert main([*words, f"out={tmp_path / name}"]) == 2
    assert "is a folder" in capsys.readouterr().err
    if verb != "check":
        assert main(words) == 2
        assert "out: needed" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sample", "score", "check"])
def test_a_run_that_is_none_is_refused_and_no_folder_made(
    planar: Path, tmp_path: Path, capsys: Captured, verb: str
) -> None:
    name = {"sample": "s.npy", "score": "s.csv", "check": "c.json"}[verb]
    tiny.particles(tmp_path / "d.npy", count=3)
    more = [f"data.path={tmp_path / 'd.npy'}"] if verb == "score" else []
    words = [verb, f"out={tmp_path / 'new' / name}", *more]
    assert main(words) == 2
    assert "run: needed" in capsys.readouterr().err
    assert main([*words, f"run={tmp_path / 'missing'}"]) == 3
    assert "no such file" in capsys.readouterr().err
    page = tmp_path / "weights.safetensors"
    page.write_text("<!DOCTYPE html><html></html>")
    assert main([*words, f"run={page}"]) == 3
    assert "an HTML page" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_weights_alone_sample_and_score_from_any_folder(
    planar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "ä b, (日本)"
    place.mkdir()
    shutil.copy(planar / "weights.safetensors", place / "my weights.safetensors")
    monkeypatch.chdir(place)
    weights = Path("my weights.safetensors")
    assert sample(weights, Path("it's.npy")) == 0
    assert score(weights, Path("it's.npy"), Path("scores = ü.csv")) == 0
    assert {path.name for path in place.iterdir()} == {
        "my weights.safetensors",
        "it's.npy",
        "scores = ü.csv",
    }


# score


def test_scores_have_a_row_a_structure_with_every_term(planar: Path, tmp_path: Path) -> None:
    data = tiny.particles(tmp_path / "d.npy", count=5)
    assert score(planar, data, tmp_path / "s.csv") == 0
    assert (tmp_path / "s.csv").read_text().splitlines()[0] == HEADER
    found = rows(tmp_path / "s.csv")
    assert [row["index"] for row in found] == list("01234")
    assert {(row["n"], row["status"], row["log_prob_se"]) for row in found} == {
        ("3", "success", "0")
    }
    for row in found:
        terms = sum(float(row[name]) for name in HEADER.split(",")[7:10])
        assert float(row["log_prob"]) == pytest.approx(terms, abs=1e-4)
        assert int(row["nfe"]) > 0


def test_an_estimate_comes_with_its_error_and_agrees_with_the_exact_trace(
    planar: Path, tmp_path: Path
) -> None:
    data = tiny.particles(tmp_path / "d.npy", count=20)
    assert score(planar, data, tmp_path / "exact.csv") == 0
    words = ["divergence=hutchinson", "divergence.probes=16"]
    assert score(planar, data, tmp_path / "estimate.csv", *words) == 0
    for exact, estimate in zip(
        rows(tmp_path / "exact.csv"), rows(tmp_path / "estimate.csv"), strict=True
    ):
        error = abs(float(exact["log_prob"]) - float(estimate["log_prob"]))
        assert float(estimate["log_prob_se"]) > 0
        assert error < 6 * float(estimate["log_prob_se"]) + 1e-4
    assert (
        score(planar, data, tmp_path / "one.csv", "divergence=hutchinson", "divergence.probes=1")
        == 0
    )
    assert all(math.isnan(float(row["log_prob_se"])) for row in rows(tmp_path / "one.csv"))


def test_scores_do_not_depend_on_batches_of_progress(
    planar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.particles(tmp_path / "d.npy", count=7)
    assert score(planar, data, tmp_path / "whole.csv") == 0
    monkeypatch.setattr("eqflow.cli.score.BATCH", 3)
    assert score(planar, data, tmp_path / "parts.csv") == 0
    for a, b in zip(rows(tmp_path / "whole.csv"), rows(tmp_path / "parts.csv"), strict=True):
        assert a["index"] == b["index"]
        assert float(a["log_prob"]) == pytest.approx(float(b["log_prob"]), abs=1e-4)


def test_only_the_first_structures_are_scored_if_asked(planar: Path, tmp_path: Path) -> None:
    data = tiny.particles(tmp_path / "d.npy", count=7)
    assert score(planar, data, tmp_path / "s.csv", "data.structures=2") == 0
    assert len(rows(tmp_path / "s.csv")) == 2
    assert score(planar, data, tmp_path / "s.csv", "data.structures=0") == 2


def test_one_point_has_a_density_and_coincident_points_too(planar: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones((1, 2)), ptr=np.array([0, 1]))
    assert score(planar, tmp_path / "one.npz", tmp_path / "one.csv") == 0
    assert float(rows(tmp_path / "one.csv")[0]["log_prob"]) == 0
    np.savez(tmp_path / "same.npz", x=np.ones((3, 2)), ptr=np.array([0, 3]))
    assert score(planar, tmp_path / "same.npz", tmp_path / "same.csv") == 0
    assert math.isfinite(float(rows(tmp_path / "same.csv")[0]["log_prob"]))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (WATER.replace("O 0", "Og 0"), "element Og"),
        (WATER.replace("O 0", "Xx 0"), ":3"),
        (WATER.replace("0.119", "nan"), ":3"),
        (WATER.replace("0.119", "inf"), ":3"),
        (WATER.replace("0.119", "1e9"), "Check the unit"),
        (WATER.replace("-0.763", "0.763"), "atom"),
        (WATER.replace("0.119", "zero"), ":3"),
        (WATER[:40], ":"),
        ("", "empty file"),
        ("0\n\n", "found 0 atoms"),
        ("<!doctype html>", "web page"),
    ],
)
def test_bad_structures_are_refused_with_their_place(
    molecular: Path, tmp_path: Path, capsys: Captured, content: str, expected: str
) -> None:
    data = tmp_path / "bad.xyz"
    data.write_text(content)
    assert score(molecular, data, tmp_path / "new" / "s.csv") == 3
    text = capsys.readouterr().err
    assert expected in text
    assert str(data) in text
    assert not (tmp_path / "new").exists()


def test_bad_records_can_be_left_out_and_are_listed(
    molecular: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = tmp_path / "mixed.xyz"
    data.write_text(WATER + WATER.replace("0.119", "nan") + WATER)
    assert score(molecular, data, tmp_path / "s.csv", "data.on_problem=skip") == 7
    assert "skipped: " in capsys.readouterr().out
    assert len(rows(tmp_path / "s.csv")) == 2
    assert score(molecular, data, tmp_path / "s.csv", "data.on_problem=ask") == 2


def test_structures_without_elements_are_no_molecules(
    molecular: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = tiny.particles(tmp_path / "d.npy", dimension=3)
    assert score(molecular, data, tmp_path / "s.csv") == 3
    assert "no elements" in capsys.readouterr().err


def test_another_dimension_is_refused(
    planar: Path, molecular: Path, tmp_path: Path, capsys: Captured
) -> None:
    solid = tiny.particles(tmp_path / "solid.npy", dimension=3)
    assert score(planar, solid, tmp_path / "s.csv") == 3
    flat = tiny.particles(tmp_path / "flat.npy", dimension=2)
    assert score(molecular, flat, tmp_path / "s.csv") == 3
    assert "dimension" in capsys.readouterr().err


def test_scoring_without_data_or_into_data_is_refused(
    planar: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["score", f"run={planar}", f"out={tmp_path / 's.csv'}"]) == 2
    assert "data.path: needed" in capsys.readouterr().err
    data = tiny.particles(tmp_path / "d.npy", count=3)
    before = data.read_bytes()
    assert score(planar, data, data) == 2
    assert data.read_bytes() == before


def test_structures_whose_integration_fails_are_marked(
    planar: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = tiny.particles(tmp_path / "d.npy", count=3)
    words = ["solver.method=dopri5", "solver.step_limit=1"]
    assert score(planar, data, tmp_path / "s.csv", *words) == 4
    assert {row["status"] for row in rows(tmp_path / "s.csv")} == {"step_limit"}
    assert "failed: 3 structures" in capsys.readouterr().out


def test_convergence_is_told_with_how_many_it_is_known_of(
    planar: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = tiny.particles(tmp_path / "d.npy", count=3)
    assert score(planar, data, tmp_path / "s.csv", "convergence=true") == 0
    assert re.search(r"in the mean over 3 structures, each by at most", capsys.readouterr().out)
    words = ["convergence=true", "fallback=false", "solver.method=dopri5", "solver.step_limit=1"]
    assert score(planar, data, tmp_path / "s.csv", *words) == 4
    assert "convergence: unknown for all 3 structures" in capsys.readouterr().out
    nan = math.nan
    line = _of_convergence(torch.tensor([nan, 0.25, -0.75, nan, 0.0, math.inf]))
    assert "-0.17 nats in the mean over 3 structures, each by at most 0.75; unknown for 3" in line
    assert "notice: 2 of 3 by more than 0.01" in line
    assert "unknown" not in _of_convergence(torch.tensor([0.25]))


def test_a_path_that_is_no_utf8_is_spelled_out_in_the_column_of_sources(
    planar: Path, tmp_path: Path
) -> None:
    data = tmp_path / os.fsdecode(b"d\xff \xc3\xa4.xyz")
    try:
        data.write_text("3\n\nO 0 0 0\nH 0 1 0\nH 1 0 0\n")
    except OSError:
        pytest.skip("the file system takes names in UTF-8 only")
    out = tmp_path / "s.csv"
    assert score(planar, data, out) == 0
    (row,) = rows(out)  # read as UTF-8
    assert row["source"] == f"{tmp_path}/d\\udcff ä.xyz:1"


# check


def test_the_laws_are_measured_and_written(planar: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["check", f"run={planar}", "structures=3", f"out={tmp_path / 'check.json'}"]
    assert main(words) == 0
    laws = json.loads((tmp_path / "check.json").read_text())
    assert all(law["holds"] for law in laws)
    of_its_own = [law for law in laws if "failing" not in law]
    text = capsys.readouterr().out
    assert f"all {len(of_its_own)} laws hold" in text
    assert "worst: E(2)" in text


def test_a_law_that_fails_is_exit_code_4(
    planar: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from eqflow.nn import EGNNField

    forward = EGNNField.forward

    def broken(self: EGNNField, t, x, edges, context=None):  # type: ignore[no-untyped-def]
        return forward(self, t, x, edges, context) + torch.tensor([0.1, 0.0], dtype=x.dtype) * x

    monkeypatch.setattr(EGNNField, "forward", broken)
    assert main(["check", f"run={planar}", "structures=3"]) == 4
    assert "laws fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["structures=1"], ["structures=0"], ["out=c.txt"], ["threads=0"], ["seed=x"]]
)
def test_check_refuses_what_makes_no_sense(planar: Path, words: list[str]) -> None:
    assert main(["check", f"run={planar}", *words]) == 2


# help


def test_help_lists_every_verb_preset_and_key(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*VERBS, *experiments()])
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        text = capsys.readouterr().out
        assert all(f"  {key} " in text for key in keys(verb))
    assert main(["train", "seed=1", "-h"]) == 0
    assert "objective.kinetic" in capsys.readouterr().out


def test_no_verb_and_a_wrong_one_are_usage_errors(capsys: Captured) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out
    assert main(["tarin"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_a_bug_is_code_1_with_a_report_and_memory_is_code_5(
    planar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def failing(error: Exception):  # type: ignore[no-untyped-def]
        def draw(*_: object, **__: object) -> None:
            raise error

        return draw

    monkeypatch.chdir(tmp_path)  # where crash reports go
    for error, code in (
        (ZeroDivisionError("x"), 1),
        (RuntimeError("shape mismatch"), 1),
        (MemoryError(), 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5),
        (KeyboardInterrupt(), 130),
    ):
        monkeypatch.setattr("eqflow.flows.Flow.draw", failing(error))
        assert sample(planar, tmp_path / "s.npy") == code
        assert ("please report" in capsys.readouterr().err) == (code == 1)
