"""The demo runs from nothing to pictures, goes on where it stopped, and tells what went wrong."""

import json

import pytest

from eqflow.cli import demo
from eqflow.cli.main import main
from eqflow.data import read
from eqflow.errors import ExitCode

PICTURES = {
    f"{what}.png"
    for what in (
        "dw4_energies",
        "dw4_distances",
        "dw4_loss",
        "dw4_trajectory",
        "molecules_distances",
        "molecules_bonds",
        "molecules_loss",
        "molecules_trajectory",
    )
}


def words(out, seed=0):
    return [
        "demo",
        f"out={out}",
        f"seed={seed}",
        "particle_minutes=0.01",
        "molecule_minutes=0.01",
        "samples=10",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the demo has run, its exit code, and what a first run is told apart by."""
    out = tmp_path_factory.mktemp("demo") / "a folder, ü"
    return out, main(words(out)), (out / "dw4" / "summary.json").read_text("utf-8")


def test_the_demo_runs_to_the_end_and_every_law_holds(finished):
    out, code, _ = finished
    assert code == ExitCode.DONE
    for part in ("dw4", "molecules"):
        laws = json.loads((out / part / "check.json").read_text("utf-8"))
        assert laws
        assert all(law["holds"] for law in laws)


def test_the_demo_leaves_every_picture_and_says_so(finished):
    out, _, _ = finished
    report = json.loads((out / "demo.json").read_text("utf-8"))
    assert {path.name for path in (out / "pictures").iterdir()} == PICTURES
    assert sorted(report["pictures"]) == sorted(str(out / "pictures" / name) for name in PICTURES)


def test_the_demo_leaves_what_each_verb_makes(finished):
    out, _, _ = finished
    assert read(out / "dw4" / "samples.npy").sizes.tolist() == [4] * 10
    assert len((out / "dw4" / "held_out.csv").read_text("utf-8").splitlines()) == 11
    assert read(out / "molecules" / "CH4.xyz").numbers.tolist() == [1, 1, 1, 1, 6] * 20
    for part in ("dw4", "molecules"):
        assert (out / part / "weights.safetensors").is_file()


def test_the_figures_of_the_demo_are_numbers_that_fit_each_other(finished):
    out, _, _ = finished
    dw4 = json.loads((out / "demo.json").read_text("utf-8"))["dw4"]
    assert dw4["scored"] == dw4["samples"] == 10
    assert 0 < dw4["ess"] <= 1
    assert dw4["evaluations"] > 0
    # Both are means over the same structures: NLL − KL is the mean of −log p of the target.
    assert 3 < dw4["nll"] - dw4["kl"] < 12


def test_a_second_run_keeps_the_models_and_a_failing_law_is_the_exit_code(
    finished, monkeypatch, capsys
):
    out, _, summary = finished
    monkeypatch.setitem(demo.RUN, "check", lambda config: ExitCode.NUMERICAL)
    assert main(words(out)) == ExitCode.NUMERICAL
    printed = capsys.readouterr().out
    assert printed.count("is finished") == 2
    assert "a law fails" in printed
    assert (out / "dw4" / "summary.json").read_text("utf-8") == summary


def test_another_seed_into_the_same_folder_is_refused(finished, capsys):
    out, _, _ = finished
    assert main(words(out, seed=1)) == ExitCode.USAGE
    assert "seed: 0 → 1" in capsys.readouterr().err


def test_a_signal_ends_the_demo_with_its_code(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.RUN, "train", lambda config: ExitCode.INTERRUPTED)
    monkeypatch.setitem(demo.RUN, "sample", lambda config: pytest.fail("went on"))
    assert main(words(tmp_path)) == ExitCode.INTERRUPTED


def test_all_that_is_wrong_with_the_options_is_said_at_once_before_anything_is_made(
    tmp_path, capsys
):
    out = tmp_path / "new"
    bad = ["demo", f"out={out}", "particle_minutes=0", "molecule_minutes=-1", "samples=1"]
    assert main(bad) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert all(name in told for name in ("particle_minutes", "molecule_minutes", "samples"))
    assert not out.exists()
