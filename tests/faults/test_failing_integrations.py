"""Fields that are not finite, or whose solutions blow up, for some structures and not for others.

The weights of a run are written by hand: the velocity of a point is `c Σ (x_i − x_j) d² / (d + 1)`,
so that large structures grow the faster the larger they are, and reach infinity within the way.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import COMMAND, eqflow

from eqflow import rng
from eqflow.data import read
from eqflow.train.build import build_flow
from eqflow.train.checkpoint import WEIGHTS, save_weights
from eqflow.train.config import ModelConfig, SolverConfig

OPTIMISED = ("-O", *COMMAND)
RK4 = ["solver.method=rk4", "solver.steps=20", "solver.step_limit=100"]


def run_folder(folder: Path, growth: float, largest: float = 1.0) -> Path:
    """A run on triangles in the plane; d² overflows in float32 beyond about `3e38 / largest`."""
    model = ModelConfig(layers=1, width=8, coordinate_range=None)
    solver = SolverConfig()
    statistics = {
        "dimension": 2,
        "scale": 1.0,
        "compositions": {"elements": [], "counts": [[3]], "weights": [1]},
    }
    flow = build_flow(model, solver, statistics, seed=0)
    weights = {name: torch.zeros_like(value) for name, value in flow.state_dict().items()}
    layer = "continuous.field.egnn.layers.0."
    weights[layer + "scalars.weight"][0, 0] = largest
    weights[layer + "message.weight"][0, 0] = 1 / largest
    weights[layer + "attention.bias"][:] = 30.0
    weights[layer + "coordinate.weight"][0, 0] = 1.0
    weights[layer + "coordinate_out.weight"][0, 0] = growth
    flow.load_state_dict(weights)
    config = {"model": asdict(model), "solver": asdict(solver), "divergence": {"name": "exact"}}
    save_weights(folder / WEIGHTS, flow, config, statistics)
    return folder


def structures(path: Path, large: Sequence[int], size: float) -> Path:
    """Six triangles, those at some places `size` times as large."""
    x = torch.randn(6, 3, 2, generator=rng.generator(0, "triangles"))
    x[list(large)] *= size
    np.save(path, x.numpy())
    return path


def without(path: Path, data: Path, places: Sequence[int]) -> Path:
    np.save(path, np.delete(np.load(data), list(places), axis=0))
    return path


def score(run: Path, data: Path, out: Path, *words: str, program: Sequence[str] = COMMAND) -> tuple:
    """The exit code, rows without their index, and what was printed."""
    command = ["score", f"run={run}", f"data.path={data}", f"out={out}", *words]
    code, printed, errors = eqflow(command, program=program)
    assert "Traceback" not in errors
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["index"], row["source"]
    return code, rows, printed + errors


def sample(
    run: Path, out: Path, *words: str, program: Sequence[str] = COMMAND
) -> tuple[int, str, np.ndarray | None]:
    code, printed, errors = eqflow(
        ["sample", f"run={run}", f"out={out}", "n=24", *words], program=program
    )
    assert "Traceback" not in errors
    return code, printed + errors, np.load(out) if out.exists() else None


@pytest.mark.fault(
    8,
    "a field that is not finite for 2 of 6 structures, scored",
    "both named with the time, the others bitwise as without them, exit 7",
)
def test_a_field_that_is_not_finite_for_some_is_told_and_harms_no_other(
    tmp_path: Path, injected: Callable[[], None]
) -> None:
    run = run_folder(tmp_path / "run", 0.001, largest=1e37)
    data = structures(tmp_path / "data.npy", (1, 4), 50.0)
    code, rows, text = score(run, data, tmp_path / "all.csv")
    injected()
    assert code == 7
    assert [row["status"] for row in rows] == [
        "non_finite" if place in (1, 4) else "success" for place in range(6)
    ]
    assert [float(rows[place]["time"]) for place in (1, 4)] == [0, 0]
    assert {rows[place]["log_prob"] for place in (1, 4)} == {"nan"}
    assert "failed: 2 structures, non_finite" in text
    assert "first: structure 1 at t = 0" in text
    rest = without(tmp_path / "rest.npy", data, (1, 4))
    code, alone, _ = score(run, rest, tmp_path / "rest.csv")
    assert code == 0
    kept = [row for row in rows if row["status"] == "success"]
    # What was tried on all together is counted.
    for row in kept + alone:
        del row["nfe"]
    assert kept == alone


@pytest.mark.slow
@pytest.mark.fault(
    8,
    "a solution that blows up for 1 of 6 structures, scored",
    "named with the time it came to, the others bitwise as without it, exit 7",
)
@pytest.mark.parametrize("words", [RK4, ["divergence=hutchinson", *RK4]])
def test_a_structure_that_blows_up_on_the_way_is_told_with_the_time(
    tmp_path: Path, words: list[str], injected: Callable[[], None]
) -> None:
    run = run_folder(tmp_path / "run", 0.02)
    data = structures(tmp_path / "data.npy", (5,), 60.0)
    code, rows, text = score(run, data, tmp_path / "all.csv", *words)
    injected()
    assert code == 7
    assert [row["status"] for row in rows] == ["success"] * 5 + ["non_finite"]
    assert 0 < float(rows[5]["time"]) < 1
    assert re.search(r"first: structure 5 at t = 0\.\d", text)
    plain_code, plain, _ = score(run, data, tmp_path / "plain.csv", *words, "fallback=false")
    assert plain_code == 7
    assert int(rows[5]["nfe"]) > int(plain[5]["nfe"])
    rest = without(tmp_path / "rest.npy", data, (5,))
    alone_code, alone, _ = score(run, rest, tmp_path / "rest.csv", *words)
    assert alone_code == 0
    for each in (rows, plain, alone):
        for row in each:
            del row["nfe"]
    assert rows[:5] == plain[:5]
    if "divergence=hutchinson" not in words:  # whose probes are drawn for all at once
        assert rows[:5] == alone


@pytest.mark.slow
@pytest.mark.fault(8, "a solution that blows up for all structures", "exit 4, a row for each")
def test_structures_that_all_fail_are_a_numerical_failure(
    tmp_path: Path, injected: Callable[[], None]
) -> None:
    run = run_folder(tmp_path / "run", 5.0)
    data = structures(tmp_path / "data.npy", range(6), 50.0)
    code, rows, text = score(run, data, tmp_path / "s.csv", "divergence=hutchinson", *RK4)
    injected()
    assert code == 4
    assert len(rows) == 6
    assert all(row["status"] == "non_finite" for row in rows)
    assert "failed: 6 structures" in text
    code, text, samples = sample(
        run_folder(tmp_path / "other", -50.0), tmp_path / "s.npy", *RK4, "n=4"
    )
    injected()
    assert (code, samples) == (4, None)
    assert "none of 4 integrations arrived" in text


@pytest.mark.slow
@pytest.mark.fault(
    8,
    "a solution that blows up for some of 24 draws",
    "the first named with its time, the others bitwise as without fall-back, exit 7",
)
def test_draws_that_blow_up_are_left_out_and_the_others_written(
    tmp_path: Path, injected: Callable[[], None]
) -> None:
    run = run_folder(tmp_path / "run", -0.15)
    code, text, samples = sample(run, tmp_path / "s.npy", *RK4)
    injected()
    assert code == 7
    lost = int(re.search(r"left out: (\d+) structures whose integration failed", text)[1])
    assert 0 < lost < 24
    assert re.search(r"first: structure \d+ at t = 0\.\d", text)
    assert samples is not None
    assert len(samples) == 24 - lost
    assert np.isfinite(samples).all()
    assert len(read(tmp_path / "s.npy", dimension=2)) == 24 - lost
    plain_code, plain_text, plain = sample(run, tmp_path / "p.npy", *RK4, "fallback=false")
    assert plain_code == 7
    assert f"left out: {lost} structures" in plain_text
    assert np.array_equal(samples, plain)


@pytest.mark.slow
@pytest.mark.fault(
    8,
    "steps too long for 1 of 6 structures",
    "scored by another solver, which is named with its error, the others bitwise the same, exit 0",
)
def test_a_structure_that_one_solver_cannot_score_is_scored_by_another(
    tmp_path: Path, injected: Callable[[], None]
) -> None:
    run = run_folder(tmp_path / "run", -0.02)
    data = structures(tmp_path / "data.npy", (2,), 300.0)
    few = ["solver.method=rk4", "solver.steps=10", "solver.step_limit=300"]
    code, rows, text = score(run, data, tmp_path / "s.csv", *few)
    injected()
    assert code == 0
    assert [bool(row["solver"]) for row in rows] == [place == 2 for place in range(6)]
    assert re.search(r"by another solver, .*: 1 by \w+ at", text)
    plain_code, plain, _ = score(run, data, tmp_path / "p.csv", *few, "fallback=false")
    assert plain_code == 7
    assert plain[2]["status"] == "non_finite"
    assert rows[:2] + rows[3:] == plain[:2] + plain[3:]
    tight = [
        "solver.method=dopri5",
        "solver.rtol=1e-6",
        "solver.atol=1e-6",
        "solver.step_limit=9999",
    ]
    _, exact, _ = score(run, data, tmp_path / "e.csv", *tight, "fallback=false")
    found, true = float(rows[2]["log_prob"]), float(exact[2]["log_prob"])
    assert found == pytest.approx(true, abs=float(rows[2]["solver_error"]) + 1e-4 * abs(true))


@pytest.mark.slow
@pytest.mark.fault(
    8, "too few steps for an accurate log-likelihood", "convergence=true states the error and warns"
)
def test_scores_that_have_not_converged_are_told_where_that_is_asked(
    tmp_path: Path, injected: Callable[[], None]
) -> None:
    run = run_folder(tmp_path / "run", 0.05)
    data = structures(tmp_path / "data.npy", (), 1.0)
    words = ["solver.method=rk4", "solver.steps=1", "convergence=true"]
    code, rows, text = score(run, data, tmp_path / "s.csv", *words)
    injected()
    assert code == 0
    worst = max(abs(float(row["log_prob_change"])) for row in rows)
    assert worst > 0.01
    assert re.search(r"convergence: .*notice: \d+ of 6 by more than 0.01", text)
    fine = ["solver.method=dopri5", "convergence=true"]
    code, rows, text = score(run, data, tmp_path / "f.csv", *fine)
    assert code == 0
    assert max(abs(float(row["log_prob_change"])) for row in rows) < 0.01
    assert "convergence: " in text
    assert "notice" not in text


@pytest.mark.slow
@pytest.mark.fault(8, "all of these under `python -O`", "the same files, lines and exit codes")
def test_nothing_of_this_needs_assertions(tmp_path: Path, injected: Callable[[], None]) -> None:
    growing, shrinking = (
        run_folder(tmp_path / name, growth) for name, growth in (("out", 0.02), ("in", -0.15))
    )
    data = structures(tmp_path / "data.npy", (1, 4), 60.0)
    few = ["solver.method=dopri5", "solver.step_limit=100", "divergence=hutchinson"]
    found = []
    for name, program in (("plain", COMMAND), ("optimised", OPTIMISED)):
        code, rows, text = score(growing, data, tmp_path / f"{name}.csv", *few, program=program)
        lines = [line for line in text.splitlines() if "failed" in line or "first" in line]
        drawn = sample(shrinking, tmp_path / f"{name}.npy", *RK4, program=program)
        assert drawn[2] is not None
        found.append((code, rows, lines, drawn[0], drawn[2].tobytes()))
        injected()
    assert found[0] == found[1]
    assert found[0][0] == found[0][3] == 7
