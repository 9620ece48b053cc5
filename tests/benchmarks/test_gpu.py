"""The script that is run the day a GPU is at hand: its machinery, and a rehearsal of every line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpu_bench import Bench, read_journal
from gpu_checks import worst_error
from gpu_processes import run_jobs
from gpu_published import Padding, velocity_on_edges, velocity_padded
from gpu_report import ceilings_of, compare, lines
from gpu_roofline import field_work, message_work, roofline
from gpu_scale import FULL, REHEARSAL, Molecules
from published_port import PublishedField
from torch.testing import assert_close

from eqflow.edges import Edges
from eqflow.geometry import Segments

ROOT = Path(__file__).resolve().parents[2]
CEILINGS = {"copy": 1e9, "fp32": 1e9, "tf32": 2e9, "bf16": 4e9}

# A job of three cases whose second ends the process, or never ends, the first time it is run.
CHILD = """
import json, os, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
journal = options["--journal"]
begun = open(journal).read() if os.path.exists(journal) else ""
def write(case, result):
    with open(journal, "a") as file:
        file.write(json.dumps({"case": case, "result": result}) + "\\n")
for case in ("first", "second", "third"):
    if f'"{case}"' not in begun:
        write(case, None)
        if case == "second" and options["--job"] == "dies":
            print("the device is lost")
            os._exit(70)
        if case == "second" and options["--job"] == "hangs":
            time.sleep(60)
        write(case, {"ms": 1.0})
"""


def bench(tmp_path: Path, seconds: float = 60) -> Bench:
    return Bench(REHEARSAL, tmp_path / "journal", time.time() + seconds)


def run(names: list[str], tmp_path: Path, seconds: float) -> dict:
    script = tmp_path / "child.py"
    script.write_text(CHILD, encoding="utf-8")
    command = [sys.executable, str(script)]
    return run_jobs(names, 2, time.time() + seconds, command, os.environ, tmp_path / "scratch")


# Cases and jobs.


def test_a_case_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    def fail() -> dict:
        raise RuntimeError("no such kernel")

    here = bench(tmp_path)
    here.case("fails", fail)
    here.case("works", lambda: {"ms": 2.0})
    found = read_journal(tmp_path / "journal")
    assert found["fails"]["error"] == "RuntimeError: no such kernel"
    assert found["works"]["ms"] == 2.0


def test_a_case_that_was_begun_is_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text('{"case": "crashed", "result": null}\n', encoding="utf-8")
    bench(tmp_path).case("crashed", lambda: {"ms": 2.0})
    assert read_journal(tmp_path / "journal") == {"crashed": None}


def test_no_case_is_begun_past_the_deadline(tmp_path: Path) -> None:
    bench(tmp_path, seconds=-1).case("late", lambda: {"ms": 2.0})
    assert read_journal(tmp_path / "journal")["late"] == {"skipped": "no time was left"}


def test_a_job_that_dies_is_started_again_for_the_rest(tmp_path: Path) -> None:
    found = run(["works", "dies"], tmp_path, seconds=60)
    assert [job["ended"] for job in found.values()] == ["done", "done"]
    cases = found["dies"]["cases"]
    assert "error" in cases["second"]
    assert cases["first"] == cases["third"] == {"ms": 1.0}


def test_a_job_that_never_ends_is_killed_and_what_it_had_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("gpu_processes.GRACE_SECONDS", 1.0)
    found = run(["hangs", "works", "works too", "works as well"], tmp_path, seconds=2)
    assert found["hangs"]["ended"] == "killed: no time was left"
    assert found["hangs"]["cases"]["first"] == {"ms": 1.0}
    assert "killed" in found["hangs"]["cases"]["second"]["error"]
    assert found["works as well"]["ended"] == "done"


def test_a_job_for_which_there_is_no_time_is_named(tmp_path: Path) -> None:
    found = run(["works"], tmp_path, seconds=-1)
    assert found == {"works": {"ended": "not started: no time was left", "cases": {}}}


# Times, on a device that only counts.


class Clock:
    """An event that says which one it is, a millisecond apart."""

    count = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Clock.count += 1
        self.time = Clock.count

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "Clock") -> float:
        return float(other.time - self.time)


def test_a_device_is_timed_by_events_and_asked_for_its_memory(tmp_path, monkeypatch) -> None:
    taken = iter((100, 300))
    nothing = dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats"))
    for name in nothing:
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(taken) * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 500 * 2**20)
    monkeypatch.setattr(Bench, "_on_gpu", True)
    here = bench(tmp_path)
    assert here.time(lambda: None) == {"ms": 1.0, "ms_low": 1.0, "ms_high": 1.0, "repeats": 50}
    weight = torch.ones((), requires_grad=True)
    assert here.memory(lambda: weight.square()) == {"saved_mib": 200.0, "peak_mib": 400.0}


def test_a_job_ends_where_its_device_no_longer_answers(tmp_path, monkeypatch) -> None:
    def lost() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(Bench, "_on_gpu", True)
    with pytest.raises(SystemExit) as ended:
        bench(tmp_path).case("crashes", dict)
    assert ended.value.code == 70
    assert "illegal memory access" in read_journal(tmp_path / "journal")["crashes"]["error"]


# Counts and comparisons.


def test_the_floor_is_the_longer_of_products_and_traffic() -> None:
    work = {"operations": 3e9, "bytes": 1e9, "precision": "ieee"}
    found = roofline({"work": work, "ms": 6000.0}, CEILINGS)
    assert found == {"floor_ms": 3000.0, "bound": "fp32", "fraction": 0.5}
    found = roofline({"work": work | {"precision": "tf32"}, "ms": 3000.0}, CEILINGS)
    assert found["floor_ms"] == 1500.0
    # Three products in tf32 for each in nearly float32.
    found = roofline({"work": work | {"precision": "tf32x3"}, "ms": 9000.0}, CEILINGS)
    assert found["floor_ms"] == 4500.0
    found = roofline({"work": work | {"precision": "bf16"}, "ms": 2000.0}, CEILINGS)
    assert (found["bound"], found["fraction"]) == ("copy", 0.5)


def test_a_message_pass_has_two_products_an_edge_and_a_gradient_three_times_as_many() -> None:
    forward = message_work(10, 90, 64, 3, "forward", "ieee")
    assert forward.operations == 90 * 2 * (2 * 64 * 64)
    both = message_work(10, 90, 64, 3, "forward + backward", "ieee")
    assert both.operations == 3 * forward.operations
    one_layer = Molecules(1, 10, 0.0, 64, 1)
    in_field = field_work(10, 90, one_layer, "forward", "ieee")
    assert in_field.operations == forward.operations + 10 * 2 * (2 * 64 * 64)


def test_cases_are_compared_with_baselines_of_the_same_thing() -> None:
    work = {"operations": 1e9, "bytes": 1.0, "precision": "tf32"}
    jobs = {
        "job": {
            "ended": "done",
            "cases": {
                "copy": {"ms": 1.0, "ceiling": 1e9},
                "Triton, tf32: forward": {"ms": 1000.0, "work": work},
                "per-edge port, fp32: forward": {"ms": 5000.0},
                "per-edge port, fp32: backward": {"ms": 9000.0},
                "torch, fp32: forward": {"error": "OutOfMemoryError"},
                "gather": {"passed": False, "repeats": False, "tolerance": 1e-5, "errors": {}},
            },
        }
    }
    compare(jobs, CEILINGS)
    found = jobs["job"]["cases"]["Triton, tf32: forward"]
    assert found["times_as_fast_as"] == {"per-edge port, fp32": 5.0}
    assert found["roofline"]["fraction"] == 0.5
    assert ceilings_of(jobs) == {"copy": 1e9}
    text = "\n".join(lines("a section", jobs))
    assert "5.00× port" in text
    assert "OutOfMemoryError" in text
    assert "0 of 1 checks passed" in text
    assert "does not repeat" in text


def test_an_error_is_relative_and_shows_what_is_not_finite() -> None:
    one = torch.tensor([3.0, 4.0])
    assert worst_error([one * 1.1], [one.double()]) == pytest.approx(0.1, rel=1e-6)
    assert worst_error([torch.zeros(2)], [torch.zeros(2).double()]) == 0.0
    assert not worst_error([one / 0], [one.double()]) < 1e-2


def test_the_padded_form_is_the_port_on_the_edges_there_are() -> None:
    clouds = Segments.of_lengths(torch.tensor([2, 5, 3]))
    edges = Edges.complete(clouds)
    field, x, t = PublishedField(8, 2), torch.randn(10, 3), torch.tensor(0.3)
    on_edges = velocity_on_edges(field, t, x, edges.receiver, edges.sender, clouds)
    assert_close(velocity_padded(field, t, x, Padding.of(clouds)), on_edges)


# All of it.


def test_without_a_gpu_the_script_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ran = script()
    assert ran.returncode == 2
    assert "found no GPU" in ran.stderr


def test_a_rehearsal_is_not_written_among_the_results() -> None:
    ran = script("--rehearsal", str(ROOT / "benchmarks" / "results" / "gpu.json"))
    assert ran.returncode == 2
    assert "expected a rehearsal to write outside" in ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_line_runs_in_a_rehearsal(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    ran = script("--rehearsal", str(path), "--seconds", "1200")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["skipped"] == []
    for section in found["sections"].values():
        for job in section["jobs"].values():
            assert job["ended"] == "done", job.get("log")
            wrong = {name: c for name, c in job["cases"].items() if not c.get("passed", True)}
            wrong |= {name: c for name, c in job["cases"].items() if {"error", "skipped"} & {*c}}
            assert wrong == {}
    # What is measured at full size has been tried small.
    assert len(found["sections"]) == 8
    assert FULL.clouds[0] == 2
    assert FULL.clouds[-1] == 512


def script(*arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
