"""`eqflow sample` and `eqflow score` as typed: killed, stopped by signals, and started twice."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from processes import PATIENCE, ROOT, eqflow, finish, start, wait_for

from eqflow.cli.journal import journal_of
from eqflow.cli.main import main
from eqflow.data import read

SAMPLE = ["sample", "n=3000", "batch=16", "device=cpu"]
# Small batches, so that there are many: those of the command would take a second together.
BATCHES = (
    "-c",
    "import sys; from eqflow.cli import main, score; score.BATCH = 16; sys.exit(main.main())",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("runs")
    data = tiny.particles(base / "data.npy", count=30)
    assert tiny.train(data, base / "planar") == 0
    tiny.particles(base / "many.npy", count=3000)
    return base


@pytest.fixture(scope="module")
def sampled(runs: Path) -> bytes:
    """What sampling ends with where nobody disturbs it."""
    out = runs / "whole.extxyz"
    assert main([*SAMPLE, f"run={runs / 'planar'}", f"out={out}"]) == 0
    return out.read_bytes()


def entries(out: Path) -> int:
    """How many batches the journal of an output knows of."""
    journal = journal_of(out)
    return journal.read_bytes().count(b'"entry"') if journal.exists() else 0


def wait_for_entries(out: Path, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while entries(out) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.fault(
    15,
    "`kill -9` of `sample` or `score` at a random moment, again and again",
    "the same command goes on, and ends bitwise the same",
)
@pytest.mark.slow
@pytest.mark.parametrize("kills", [8])
def test_a_sampling_that_was_killed_goes_on_by_the_same_command(
    runs: Path, sampled: bytes, tmp_path: Path, injected: Callable[[], None], kills: int
) -> None:
    out, chance = tmp_path / "ä b.extxyz", random.Random(kills)
    words = [*SAMPLE, f"run={runs / 'planar'}", f"out={out}"]
    for _ in range(kills):
        process = start(words)
        wait_for_entries(out, process, entries(out) + 1)
        time.sleep(chance.uniform(0.0, 0.15))
        process.kill()
        code, said, err = finish(process)
        assert (code, err) == (-signal.SIGKILL, "")
        injected()
        content = out.read_bytes()
        assert sampled.startswith(content)
        assert 0 < len(content) < len(sampled)
    code, said, err = eqflow(words)
    assert (code, err) == (0, "")
    assert re.search(r"^goes on after [\d,]+ structures$", said, re.MULTILINE)
    assert out.read_bytes() == sampled
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.fault(
    14,
    "SIGTERM or SIGINT to `sample` or `score`",
    "the batch is finished and saved, the command that goes on is printed, exit 143 or 130",
)
@pytest.mark.parametrize(
    ("verb", "number", "code"),
    [
        pytest.param("score", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("score", signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param("sample", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("sample", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_tells_how_to_go_on(
    runs: Path, tmp_path: Path, verb: str, number: signal.Signals, code: int
) -> None:
    words, out = [verb, f"run={runs / 'planar'}", "device=cpu"], tmp_path / "o.csv"
    if verb == "score":
        program = BATCHES
        words += [f"data.path={runs / 'many.npy'}", f"out={out}"]
    else:
        program, out = (str(ROOT / "sample.py"),), tmp_path / "o.npz"
        words = [*words[1:], *SAMPLE[1:], f"out={out}"]
    process = start(words, program=program)
    if verb == "score":
        wait_for_entries(out, process, 2)
    else:  # arrays are noted as they are written, and the first is not due yet
        wait_for(journal_of(out), process)
        time.sleep(0.3)
    process.send_signal(number)
    found, said, err = finish(process)
    assert (found, err) == (code, "stopping after this batch; once more leaves at once\n")
    last = said.splitlines()[-1]
    stopped = re.search(r"stopped and saved after ([\d,]+) of 3,000 structures", last)
    assert stopped, last
    assert f"go on with: eqflow {verb} run={runs / 'planar'}" in last
    if verb == "score":
        rows = out.read_text().splitlines()
        assert len(rows) == 1 + int(stopped[1].replace(",", ""))
    elif stopped[1] != "0":
        assert len(read(out)) == int(stopped[1].replace(",", ""))
    found, said, err = finish(start(words, program=program))
    assert (found, err) == (0, "")
    assert stopped[1] == "0" or f"goes on after {stopped[1]} structures" in said
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.fault(
    14,
    "a second signal to `sample`",
    "leaves at once with the code of the signal; what was saved is whole",
)
@pytest.mark.slow
def test_a_second_signal_leaves_at_once(runs: Path, sampled: bytes, tmp_path: Path) -> None:
    out = tmp_path / "s.extxyz"
    # A batch of minutes: whoever waited for its end would wait long.
    words = ["sample", f"run={runs / 'planar'}", f"out={out}", "n=4000", "sizes=60", "batch=4000"]
    words += ["solver.steps=2000"]
    process = start(words)
    wait_for(journal_of(out), process)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, said, err = finish(process)
    assert time.monotonic() - began < 10
    assert code == 143
    assert err == "stopping after this batch; once more leaves at once\n"
    assert said.splitlines()[-1].startswith("stopped at once; go on with: eqflow sample")
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(
    14, "SIGTERM or SIGINT to `check` and `demo`", "one line, no traceback, exit 143 or 130"
)
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["check", "demo"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_verbs_that_save_nothing_end_with_one_line(
    runs: Path, tmp_path: Path, verb: str, number: signal.Signals, code: int
) -> None:
    words = {
        "check": ["check", f"run={runs / 'planar'}", "structures=200"],
        "demo": ["demo", f"out={tmp_path / 'demo'}", "particle_minutes=1"],
    }[verb]
    process = start(words)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.strip() or verb == "demo"
    time.sleep(0.5)
    process.send_signal(number)
    found, said, err = finish(process)
    assert found == code
    assert "Traceback" not in said + err
    if "stopped" in said:  # demo was training
        assert " with: eqflow demo " in said.splitlines()[-1]
    else:
        assert err == f"eqflow {verb}: {'terminated' if code == 143 else 'interrupted'}\n"


@pytest.mark.fault(
    14,
    "SIGINT to `sample` and to the worker that perceives bonds, as a terminal sends it",
    "the bonds of the batch are perceived to its end; the same command ends bitwise the same",
)
@pytest.mark.slow
def test_a_signal_to_all_processes_changes_no_bond(tmp_path: Path) -> None:
    run, out = tiny.joint_run(tmp_path / "run"), tmp_path / "s.sdf"
    words = ["sample", f"run={run}", "n=400", "batch=50", "sizes=3", "device=cpu"]
    assert main([*words, f"out={tmp_path / 'whole.sdf'}"]) == 0
    process = start([*words, f"out={out}"], start_new_session=True)
    wait_for_entries(out, process, 1)
    os.killpg(process.pid, signal.SIGINT)
    code, said, err = finish(process)
    assert (code, err) == (130, "stopping after this batch; once more leaves at once\n")
    assert "stopped and saved" in said
    code, _, err = eqflow([*words, f"out={out}"])
    assert (code, err) == (0, "")
    assert out.read_bytes() == (tmp_path / "whole.sdf").read_bytes()


@pytest.mark.fault(
    6,
    "the disk is full while `sample` adds to its file",
    "what is there is whole, exit 6; with space the same command ends bitwise the same",
)
@pytest.mark.slow
def test_a_full_disk_leaves_what_is_whole_and_the_same_command_goes_on(
    runs: Path, sampled: bytes, tmp_path: Path
) -> None:
    out, size = tmp_path / "s.extxyz", len(sampled) // 2
    words = [*SAMPLE, f"run={runs / 'planar'}", f"out={out}"]

    def within_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    code, _, err = eqflow(words, preexec_fn=within_limit)
    assert code == 6
    assert err.startswith(f"eqflow sample: {out}: cannot be written")
    content = out.read_bytes()
    assert len(sampled) // 4 < len(content) <= size
    assert sampled.startswith(content)
    assert content.endswith(b"\n")
    assert len(read(out, dimension=2)) % 16 == 0
    code, said, err = eqflow(words)
    assert (code, err) == (0, "")
    assert "goes on after" in said
    assert out.read_bytes() == sampled


@pytest.mark.slow
@pytest.mark.fault(
    16,
    "`sample` or `score` into a file that another process writes",
    "the second is refused, naming the first, and disturbs nothing",
)
def test_a_second_process_on_one_output_is_refused_naming_the_first(
    runs: Path, sampled: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.extxyz"
    words = [*SAMPLE, f"run={runs / 'planar'}", f"out={out}"]
    first = start(words)
    wait_for_entries(out, first, 1)
    first.send_signal(signal.SIGSTOP)
    try:
        before = out.read_bytes(), journal_of(out).read_bytes()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"{out}: process {first.pid} on " in said
        assert "is writing it" in said
        assert (out.read_bytes(), journal_of(out).read_bytes()) == before
    finally:
        first.send_signal(signal.SIGCONT)
    code, _, err = finish(first)
    assert (code, err) == (0, "")
    assert out.read_bytes() == sampled
    assert not journal_of(out).exists()
