"""Which structures `eqflow score` gives an exact trace, what it says of the cost, and the rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import tiny
import torch

import eqflow
from eqflow.cli.main import main
from eqflow.cli.traces import BETWEEN_SAVES, Plan, Traced
from eqflow.flows import Compositions, ContinuousFlow, Exact, Flow, Hutchinson, Solver
from eqflow.flows.exact_cost import multiplications
from eqflow.nn import EGNNField

METHANE = "5\nmethane\nC 0 0 0\nH .6 .6 .6\nH -.6 -.6 .6\nH -.6 .6 -.6\nH .6 -.6 -.6\n"
WATER = "3\nwater\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
HYDROGEN = "2\na size of probability 0\nH 0 0 0\nH 0 0 0.74\n"

ONE = torch.tensor([[1]])

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def molecular(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on molecules of two and of three atoms, and such molecules."""
    base = tmp_path_factory.mktemp("molecular")
    data = tiny.molecules(base / "molecules.xyz", count=12)
    words = ["data.dimension=3", "data.elements=H,O,F", "data.validation=0.1", "data.test=0.1"]
    assert tiny.train(data, base / "run", *words) == 0
    return base / "run", data


def score(run: Path, data: Path, out: Path, *words: str) -> list[dict[str, str]]:
    assert main(["score", f"run={run}", f"data.path={data}", f"out={out}", *words]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_larger_structures_are_scored_by_probes_and_say_so(
    molecular: tuple[Path, Path], tmp_path: Path, capsys: Captured
) -> None:
    run, data = molecular
    exact = score(run, data, tmp_path / "exact.csv")
    capsys.readouterr()
    found = score(run, data, tmp_path / "mixed.csv", "exact_atoms=2")
    assert "exact divergence up to 2 points, hutchinson for 8 larger" in capsys.readouterr().out
    assert [row["index"] for row in found] == [str(i) for i in range(12)]
    assert [row["n"] for row in found] == [row["n"] for row in exact]
    for row, whole in zip(found, exact, strict=True):
        assert (whole["divergence"], float(whole["log_prob_se"])) == ("exact", 0)
        if row["n"] == "2":
            assert row["divergence"] == "exact"
            assert float(row["log_prob"]) == pytest.approx(float(whole["log_prob"]), abs=1e-4)
        else:
            assert row["divergence"] == "hutchinson"
            error = abs(float(row["log_prob"]) - float(whole["log_prob"]))
            assert 0 < error < 12 * float(row["log_prob_se"]) + 1e-3


def test_the_same_command_writes_the_same_bytes(
    molecular: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = molecular
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    score(run, data, first, "exact_atoms=2")
    monkeypatch.setattr("eqflow.cli.traces.seconds_of_trace", lambda *given: 1e6)
    score(run, data, second, "exact_atoms=2")
    assert first.read_bytes() == second.read_bytes()


def test_what_a_model_can_afford_is_the_limit_unless_exact_is_said(
    molecular: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = molecular
    monkeypatch.setattr("eqflow.cli.traces.affordable_points", lambda *given: 2)
    kinds = {row["divergence"] for row in score(run, data, tmp_path / "s.csv")}
    assert kinds == {"exact", "hutchinson"}
    kinds = {row["divergence"] for row in score(run, data, tmp_path / "s.csv", "divergence=exact")}
    assert kinds == {"exact"}
    words = ["divergence=exact", "exact_atoms=1"]
    kinds = {row["divergence"] for row in score(run, data, tmp_path / "s.csv", *words)}
    assert kinds == {"hutchinson"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["exact_atoms=0"], "exact_atoms: found 0, expected at least 1"),
        (["exact_atoms=3", "divergence=hutchinson"], "only with the exact trace, found hutchinson"),
    ],
)
def test_a_limit_that_says_nothing_is_refused(
    molecular: tuple[Path, Path], tmp_path: Path, capsys: Captured, words, expected
) -> None:
    run, data = molecular
    out = tmp_path / "new" / "s.csv"
    assert main(["score", f"run={run}", f"data.path={data}", f"out={out}", *words]) == 2
    assert expected in capsys.readouterr().err
    assert not out.parent.exists()


def test_what_takes_long_is_said_beforehand(
    molecular: tuple[Path, Path], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = molecular
    score(run, data, tmp_path / "s.csv")
    assert "exact trace: about" not in capsys.readouterr().out
    monkeypatch.setattr("eqflow.cli.traces.seconds_of_trace", lambda *given: 10.0)
    score(run, data, tmp_path / "s.csv")  # rk4 in two steps: 8 evaluations
    assert "exact trace: about 1 min 20 s for a structure of 3 points" in capsys.readouterr().out
    score(run, data, tmp_path / "s.csv", "solver.method=dopri5")
    assert "about 25 min 0 s for a structure of 3 points" in capsys.readouterr().out
    score(run, data, tmp_path / "s.csv", "divergence=hutchinson")
    assert "exact trace" not in capsys.readouterr().out


def test_joint_models_have_the_same_limit(tmp_path: Path, capsys: Captured, monkeypatch) -> None:
    run, data = tiny.joint_run(tmp_path / "run"), tmp_path / "data.xyz"
    data.write_text(METHANE + WATER + METHANE)
    found = score(run, data, tmp_path / "s.csv", "draws=3", "exact_atoms=3")
    assert [row["divergence"] for row in found] == ["hutchinson", "exact", "hutchinson"]
    assert [float(row["importance_gain"]) > 0 for row in found] == [False, True, False]
    assert all(float(row["log_prob_se"]) > 0 for row in found)
    monkeypatch.setattr("eqflow.cli.traces.seconds_of_trace", lambda flow, points, d: points)
    capsys.readouterr()
    score(run, data, tmp_path / "s.csv", "draws=3")  # 3 draws of 8 evaluations of 5 seconds
    assert "about 2 min 0 s for a structure of 5 points" in capsys.readouterr().out


def test_a_structure_that_is_not_integrated_has_no_trace_and_no_cost(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = tiny.joint_run(tmp_path / "run"), tmp_path / "data.xyz"
    data.write_text(HYDROGEN)
    monkeypatch.setattr("eqflow.cli.traces.seconds_of_trace", lambda *given: 1e3)
    words = ["score", f"run={run}", f"data.path={data}", f"out={tmp_path / 's.csv'}"]
    assert main(words) == 7
    assert "exact trace" not in capsys.readouterr().out
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["divergence"]) == ("impossible_size", "")


def test_rows_are_the_scores_of_the_flow(molecular: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = molecular
    found = score(run, data, tmp_path / "s.csv", "exact_atoms=2", "seed=3")
    clouds = eqflow.read(data)
    small = clouds[clouds.sizes == 2]
    expected = eqflow.load(run).score(small, divergence="exact", seed=3).log_prob
    rows = torch.tensor([float(row["log_prob"]) for row in found if row["n"] == "2"])
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-4)


def test_structures_that_take_long_are_scored_few_at_a_time_in_their_order() -> None:
    flow = Flow(
        ContinuousFlow(EGNNField(width=64, layers=6)), 3, 1.0, Compositions((), ONE, ONE[0])
    )
    exact = Traced("exact", Exact(), [5, 0, 1, 2, 3, 4])
    probes = Traced("hutchinson", Hutchinson(4), [6, 7, 8])
    sizes = torch.tensor([2, 3, 40, 40, 70, 2, 60, 61, 62])

    def batches(most: int, draws: int = 1, method: str = "dopri5") -> list[list[int]]:
        plan = Plan([exact, probes], "")
        found = list(plan.batches(flow, sizes, Solver(method=method, steps=2), draws, most))
        assert [batch.name for batch in found] == sorted(batch.name for batch in found)
        return [batch.places for batch in found]

    one_minute = BETWEEN_SAVES["cpu"]
    times = [150 * multiplications(flow.continuous.field, n, 3) for n in (40, 70)]
    assert 2 * times[0] < one_minute < min(8 * times[0], times[1])
    assert batches(256) == [[5, 0, 1, 2, 3], [4], [6, 7, 8]]
    assert batches(2) == [[5, 0], [1, 2], [3], [4], [6, 7], [8]]
    assert batches(256, draws=8) == [[5, 0, 1], [2], [3], [4], [6, 7, 8]]
    assert batches(256, method="euler") == [[5, 0, 1, 2, 3, 4], [6, 7, 8]]
