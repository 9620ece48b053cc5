"""What is kept beside an output under way: lines that are whole, and of this command alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from eqflow.cli import journal as journals
from eqflow.cli.growing import GrowingArrays, GrowingText, Tally
from eqflow.cli.journal import Journal, journal_of
from eqflow.cli.main import main
from eqflow.data import encoded, read
from eqflow.errors import DataError, StorageError, UsageError
from eqflow.flows import Flow
from eqflow.geometry import Clouds

SEED = {"verb": "sample", "seed": 3}

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _reports_of_crashes_go_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)


def kept(out: Path, count: int, identity: dict[str, object] = SEED) -> Path:
    """The journal that a process left which was killed after some entries."""
    with Journal.opened(out, identity) as journal:
        for number in range(count):
            journal.add({"number": number, "log_prob": [0.1, float("nan"), float("-inf")]})
    return journal_of(out)


def numbers(out: Path, identity: dict[str, object] = SEED) -> list[int]:
    with Journal.opened(out, identity) as journal:
        return [entry["number"] for entry in journal.entries]


def test_entries_are_there_for_the_next_process_with_every_bit(tmp_path: Path) -> None:
    out = tmp_path / "s.xyz"
    kept(out, 2)
    with Journal.opened(out, SEED) as journal:
        assert [entry["number"] for entry in journal.entries] == [0, 1]
        assert str(journal.entries[1]["log_prob"]) == "[0.1, nan, -inf]"
        journal.add({"number": 2})
    assert numbers(out) == [0, 1, 2]
    with Journal.opened(out, SEED) as journal:
        journal.finish()
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_where_nothing_was_done(tmp_path: Path) -> None:
    kept(tmp_path / "s.xyz", 0)
    assert not list(tmp_path.iterdir())


def test_a_line_cut_off_anywhere_is_left_out_and_the_next_takes_its_place(tmp_path: Path) -> None:
    out = tmp_path / "s.xyz"
    path = kept(out, 2)
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(content)):
        path.write_bytes(content[:end])
        assert numbers(out) == [0]
    path.write_bytes(content[: start + 20] + b"\0" * 9)  # a block that never reached the disk
    with Journal.opened(out, SEED) as journal:
        journal.add({"number": 7})
    assert numbers(out) == [0, 7]


def test_a_flipped_bit_in_a_line_before_the_last_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "s.xyz"
    path = kept(out, 3)
    content = path.read_bytes()
    place = content.index(b'"number": 1') + len(b'"number": ')
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"journal:3: found a damaged line.*delete .*to begin anew"):
        numbers(out)
    assert path.read_bytes() == before


def test_another_command_is_refused_and_told_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "s.xyz"
    before = kept(out, 1).read_bytes()
    with pytest.raises(UsageError, match=r"unfinished, and of another command \(seed: 3 → 4\)"):
        numbers(out, {**SEED, "seed": 4})
    assert journal_of(out).read_bytes() == before
    assert numbers(out) == [0]


def test_another_command_begins_where_nothing_is_done(tmp_path: Path) -> None:
    out = tmp_path / "s.xyz"
    path = kept(out, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])  # as of a process that was killed before its first batch
    with Journal.opened(out, {**SEED, "seed": 4}) as journal:
        journal.add({"number": 0})
    assert numbers(out, {**SEED, "seed": 4}) == [0]


def test_a_second_holder_is_refused_and_the_first_named(tmp_path: Path) -> None:
    out = tmp_path / "s.xyz"
    with Journal.opened(out, SEED) as journal:
        journal.add({"number": 0})
        with pytest.raises(UsageError, match=f"process {os.getpid()} on .* is writing it"):
            numbers(out)
    assert numbers(out) == [0]


def test_entries_can_be_taken_back(tmp_path: Path) -> None:
    out = tmp_path / "s.xyz"
    kept(out, 3)
    with Journal.opened(out, SEED) as journal:
        journal.forget(1)
        journal.add({"number": 9})
    assert numbers(out) == [0, 9]
    with Journal.opened(out, SEED) as journal:
        journal.forget()
    assert not list(tmp_path.iterdir())


def test_a_file_written_whole_is_due_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(journals.time, "monotonic", lambda: now)
    pace = journals.Pace()
    assert not pace.is_due()
    now += journals.SECONDS
    assert pace.is_due()
    with pace.writing():
        now += 7.0
    now += 7.0 / journals.SHARE - 1.0
    assert not pace.is_due()
    now += 1.0
    assert pace.is_due()


# Files that grow.


def triangles(count: int, first: int = 0) -> Clouds:
    x = torch.arange(first * 9, (first + count) * 9, dtype=torch.float64).reshape(count, 3, 3)
    return Clouds.from_dense(x.square() / 7, torch.tensor([8, 1, 1]))


@contextmanager
def growing(out: Path) -> Iterator[GrowingText | GrowingArrays]:
    with Journal.opened(out, SEED) as journal:
        if out.suffix in (".npz", ".npy"):
            yield GrowingArrays(out, journal)
        else:
            yield GrowingText(out, journal, lambda clouds, tally: encoded(clouds, out))


@pytest.mark.parametrize("ending", [".xyz", ".extxyz", ".sdf", ".npz", ".npy"])
def test_batches_added_by_several_processes_are_one_file(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"s{ending}"
    for first in (0, 2, 4):
        with growing(out) as file:
            assert file.done.structures == first
            assert file.done.batches == first // 2
            file.add(triangles(2, first), Tally(1, 2, evaluations=first, too_large=[first]))
            file.save()
            assert read(out).sizes.tolist() == [3] * (first + 2)
    with growing(out) as file:
        file.add(None, Tally(1, failed=3))
        file.save()
    with growing(out) as file:
        assert file.done == Tally(4, 6, evaluations=4, failed=3, too_large=[0, 2, 4])
    assert out.read_bytes() == encoded(triangles(6), out)


@pytest.mark.parametrize("ending", [".extxyz", ".npz"])
def test_a_file_that_is_gone_is_made_anew(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"s{ending}"
    with growing(out) as file:
        file.add(triangles(2), Tally(1, 2))
        file.save()
    out.unlink()
    with growing(out) as file:
        assert file.done.batches == 0
        file.add(triangles(1), Tally(1, 1))
        file.save()
    assert out.read_bytes() == encoded(triangles(1), out)


@pytest.mark.parametrize("ending", [".extxyz", ".npz"])
@pytest.mark.parametrize("change", ["cut", "flipped", "another"])
def test_a_file_that_somebody_changed_is_not_touched(
    tmp_path: Path, ending: str, change: str
) -> None:
    out = tmp_path / f"s{ending}"
    for first in (0, 2):
        with growing(out) as file:
            file.add(triangles(2, first), Tally(1, 2))
            file.save()
    content = bytearray(out.read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"cut": out.read_bytes()[:-1], "flipped": bytes(content), "another": b"notes"}[change]
    out.write_bytes(changed)
    said = "another content than a process of this command left"
    with pytest.raises(DataError, match=said), growing(out):
        pass
    assert out.read_bytes() == changed
    journal_of(out).unlink()
    with growing(out) as file:
        assert file.done.batches == 0


def test_what_a_kill_left_beyond_the_last_whole_batch_is_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "s.extxyz"
    with growing(out) as file:
        file.add(triangles(2), Tally(1, 2))
    whole = out.read_bytes()
    out.write_bytes(whole + b"3\nProperties=spe")
    with growing(out) as file:
        assert file.done.structures == 2
    assert out.read_bytes() == whole


def test_an_older_file_stays_until_there_is_a_structure(tmp_path: Path) -> None:
    for out in (tmp_path / "s.extxyz", tmp_path / "s.npz"):
        out.write_bytes(b"of last year")
        for _ in range(2):
            with growing(out) as file:
                file.add(None, Tally(1, failed=2))
                file.save()
            assert out.read_bytes() == b"of last year"
        with growing(out) as file:
            assert file.done.failed == 4
            file.add(triangles(1), Tally(1, 1))
            file.save()
        assert out.read_bytes() == encoded(triangles(1), out)


def test_arrays_noted_but_not_written_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    out = tmp_path / "s.npz"
    for first in (0, 2):
        with monkeypatch.context() as patch, growing(out) as file:
            file.add(triangles(2, first), Tally(1, 2))
            patch.setattr("eqflow.storage.write_bytes", killed)
            with pytest.raises(SystemExit):
                file.save()
        with growing(out) as file:
            assert file.done.structures == first
            file.add(triangles(2, first), Tally(1, 2))
            file.save()
    assert out.read_bytes() == encoded(triangles(4), out)


@pytest.mark.parametrize("before", [None, b"of last year"])
def test_arrays_that_somebody_put_where_the_first_were_due_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    out = tmp_path / "s.npz"
    if before is not None:
        out.write_bytes(before)
    with monkeypatch.context() as patch, growing(out) as file:
        file.add(triangles(2), Tally(1, 2))
        patch.setattr("eqflow.storage.write_bytes", killed)
        with pytest.raises(SystemExit):
            file.save()
    out.write_bytes(b"mine")
    with pytest.raises(DataError, match="found another content"), growing(out):
        pass
    assert out.read_bytes() == b"mine"
    out.write_bytes(before or b"")
    if before is None:
        out.unlink()
    with growing(out) as file:  # as it was: nothing of this command is in it
        assert file.done.batches == 0
        file.add(triangles(2), Tally(1, 2))
        file.save()
    assert out.read_bytes() == encoded(triangles(2), out)
    changed = b"of this year"
    out.write_bytes(changed)
    with pytest.raises(DataError, match="found another content"), growing(out):
        pass
    assert out.read_bytes() == changed


@pytest.mark.parametrize("ending", [".extxyz", ".npz"])
def test_a_link_is_replaced_first_and_one_put_there_later_is_not_followed(
    tmp_path: Path, ending: str
) -> None:
    out, victim = tmp_path / f"s{ending}", tmp_path / f"victim{ending}"
    victim.write_bytes(b"theirs")
    out.symlink_to(victim)
    with growing(out) as file:
        file.add(triangles(2), Tally(1, 2))
        file.save()
    assert victim.read_bytes() == b"theirs"
    assert not out.is_symlink()
    whole = out.read_bytes()
    victim.write_bytes(whole + b"theirs" * (ending == ".extxyz"))
    before = victim.read_bytes()
    out.unlink()
    out.symlink_to(victim)
    if ending == ".extxyz":
        with pytest.raises(StorageError, match="found a symbolic link"), growing(out):
            pass
    else:
        with growing(out) as file:
            file.add(triangles(2, 2), Tally(1, 2))
            file.save()
        assert out.read_bytes() == encoded(triangles(4), out)
    assert victim.read_bytes() == before


def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "s.extxyz"
    with growing(out) as file:
        file.add(triangles(2), Tally(1, 2))
    out.unlink()
    os.mkfifo(out)
    with pytest.raises(DataError, match="found another content"), growing(out):
        pass
    journal_of(out).unlink()
    os.mkfifo(journal_of(out))
    with pytest.raises(StorageError, match="found a pipe"), growing(out):
        pass


# The verbs.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("planar")
    assert tiny.train(tiny.particles(base / "data.npy"), base / "run") == 0
    return base / "run"


def stop_after(monkeypatch: pytest.MonkeyPatch, name: str, batches: int) -> None:
    """Let a method of flows raise, as if a batch had met a bug."""
    original = getattr(Flow, name)
    left = iter(range(batches))

    def stopping(self: Flow, *args: object, **options: object) -> object:
        next(left)
        return original(self, *args, **options)

    monkeypatch.setattr(Flow, name, stopping)


def test_a_command_with_other_weights_draws_or_data_does_not_go_on(
    run: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "s.extxyz", tmp_path / "run"
    words = ["sample", f"run={run}", f"out={out}", "n=6", "batch=2", "device=cpu"]
    with monkeypatch.context() as patch:
        stop_after(patch, "draw", 1)
        assert main(words) == 1
    content = out.read_bytes()
    data = tiny.particles(tmp_path / "d.npy")
    assert tiny.train(data, other, "seed=5") == 0
    capsys.readouterr()
    for changed, shown in (
        ("seed=1", "seed: 0 → 1"),
        ("n=8", "n: 6 → 8"),
        ("solver.steps=3", "solver.steps: None → 3"),
        (f"run={other}", "weights: "),
    ):
        assert main([*words, changed]) == 2
        assert shown in capsys.readouterr().err
        assert out.read_bytes() == content
    assert main([*words, "threads=1"]) == 0
    assert "goes on after 2 structures" in capsys.readouterr().out
    assert not journal_of(out).exists()
    assert main(words) == 0
    assert "goes on" not in capsys.readouterr().out


def test_an_output_named_like_our_temporary_files_goes_on_as_any_other(
    run: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "eqflow-samples.extxyz"
    words = ["sample", f"run={run}", f"out={out}", "n=6", "batch=2", "device=cpu"]
    with monkeypatch.context() as patch:
        stop_after(patch, "draw", 1)
        assert main(words) == 1
    assert main(words) == 0
    assert "goes on after 2 structures" in capsys.readouterr().out


def test_scores_go_on_with_rows_of_all_kinds(
    run: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eqflow.cli.score.BATCH", 2)
    sizes = [2, 4, 3, 5, 3, 2]
    x = np.linspace(-1.0, 1.0, 2 * sum(sizes)).reshape(-1, 2) ** 3
    np.savez(tmp_path / "d.npz", x=x, ptr=np.concatenate([[0], np.cumsum(sizes)]))
    words = ["score", f"run={run}", f"data.path={tmp_path / 'd.npz'}", "exact_atoms=3"]
    words += ["device=cpu", "divergence=exact"]
    whole, out = tmp_path / "whole.csv", tmp_path / "s.csv"
    assert main([*words, f"out={whole}"]) == 0
    said = capsys.readouterr().out.splitlines()[1:-1]
    for batches in (1, 1, 0):
        with monkeypatch.context() as patch:
            stop_after(patch, "score", batches)
            assert main([*words, f"out={out}"]) == 1
    capsys.readouterr()
    assert main([*words, f"out={out}"]) == 0
    now = capsys.readouterr().out.splitlines()
    assert now[1] == "goes on after 4 structures"
    assert now[2:-1] == said
    assert out.read_bytes() == whole.read_bytes()
    (tmp_path / "d.npz").write_bytes((tmp_path / "d.npz").read_bytes())
    with monkeypatch.context() as patch:
        stop_after(patch, "score", 1)
        assert main([*words, f"out={out}"]) == 1
    np.savez(tmp_path / "d.npz", x=x + 0.1, ptr=np.concatenate([[0], np.cumsum(sizes)]))
    assert main([*words, f"out={out}"]) == 2
    assert "data.path: '" in capsys.readouterr().err


# Memory.


def little_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, fits: Callable[[list[int]], bool]
) -> None:
    """Let `Flow.draw` or `Flow.score` have memory for some sizes together only."""
    original = getattr(Flow, name)

    def limited(self: Flow, what: object, **options: object) -> object:
        if name == "score":
            sizes = what.sizes.tolist()  # type: ignore[attr-defined]
        else:
            keys = ("seed", "sizes", "numbers", "properties", "fixed")
            own = {key: options[key] for key in keys if key in options}
            sizes = self.make_up(what, **own).sizes.tolist()  # type: ignore[arg-type]
        if not fits(sizes):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        return original(self, what, **options)

    monkeypatch.setattr(Flow, name, limited)


def test_halved_batches_keep_the_make_up_that_was_drawn(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.molecules(tmp_path / "molecules.xyz")
    words = ["data.dimension=3", "data.elements=H,O,F", "data.validation=0.1", "data.test=0.1"]
    assert tiny.train(data, tmp_path / "run", *words) == 0
    words = ["sample", f"run={tmp_path / 'run'}", "n=24", "batch=16", "seed=2"]
    assert main([*words, f"out={tmp_path / 'whole.npz'}"]) == 0
    whole = read(tmp_path / "whole.npz")
    assert len(set(whole.sizes.tolist())) == 2
    with monkeypatch.context() as patch:
        little_memory(patch, "draw", lambda sizes: len(sizes) < 7)
        assert main([*words, f"out={tmp_path / 'halved.npz'}"]) == 0
        assert main([*words, f"out={tmp_path / 'again.npz'}"]) == 0
    halved = read(tmp_path / "halved.npz")
    assert torch.equal(halved.ptr, whole.ptr)
    assert torch.equal(halved.numbers, whole.numbers)
    assert not torch.equal(halved.x, whole.x)
    assert (tmp_path / "halved.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    said = capsys.readouterr().out
    assert said.count("did not fit into memory together, and were drawn in parts: 2 batches") == 2
    little_memory(monkeypatch, "draw", lambda sizes: max(sizes) < 3)
    assert main([*words, f"out={tmp_path / 'small.npz'}"]) == 7
    small, lost = read(tmp_path / "small.npz"), (whole.sizes == 3).nonzero().squeeze(1).tolist()
    assert small.sizes.tolist() == [2] * (24 - len(lost))
    said = capsys.readouterr().out
    for place in lost:
        assert f"left out: structure {place} of 3 points does not fit into memory" in said


def test_halved_batches_have_the_scores_of_the_whole(
    run: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [3, 4, 9, 3]
    x = np.linspace(-1.0, 1.0, 2 * sum(sizes)).reshape(-1, 2) ** 3
    np.savez(tmp_path / "d.npz", x=x, ptr=np.concatenate([[0], np.cumsum(sizes)]))
    words = ["score", f"run={run}", f"data.path={tmp_path / 'd.npz'}", "divergence=exact"]
    assert main([*words, f"out={tmp_path / 'whole.csv'}"]) == 0
    assert "in parts" not in capsys.readouterr().out
    little_memory(monkeypatch, "score", lambda sizes: sum(sizes) < 9)
    assert main([*words, f"out={tmp_path / 'halved.csv'}"]) == 7
    whole, halved = (
        (tmp_path / f"{name}.csv").read_text().splitlines() for name in ("whole", "halved")
    )
    assert whole[0] == halved[0]
    for row, expected in zip(halved[1:], whole[1:], strict=True):
        cells, numbers_ = row.split(","), expected.split(",")
        assert cells[:2] == numbers_[:2]
        if cells[1] == "9":
            assert cells[5] == "out_of_memory"
            assert cells[2] == "nan"
        else:
            assert float(cells[2]) == pytest.approx(float(numbers_[2]), rel=1e-5)
    said = capsys.readouterr().out
    assert "structure 2 of 9 points does not fit into memory" in said
    assert "did not fit into memory together, and were scored in parts: 1 batch;" in said


@pytest.mark.parametrize("verb", ["sample", "score"])
def test_a_command_that_goes_on_tells_of_batches_halved_before(
    run: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("eqflow.cli.score.BATCH", 2)
    words = [verb, f"run={run}", f"out={tmp_path / 's.csv'}"]
    words += [f"data.path={tiny.particles(tmp_path / 'd.npy', count=6)}"]
    if verb == "sample":
        words = ["sample", f"run={run}", f"out={tmp_path / 's.xyz'}", "n=6", "batch=2"]
    with monkeypatch.context() as patch:
        stop_after(patch, {"sample": "draw", "score": "score"}[verb], 3)  # halves, and one whole
        tries = iter(range(100))
        name = {"sample": "draw", "score": "score"}[verb]
        little_memory(patch, name, lambda sizes: next(tries) > 0)
        assert main(words) == 1
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "goes on after 4 structures" in said
    assert re.search(r"together, and were \w+ in parts: 1 batch;", said)


def test_an_entry_is_plain_json_with_its_checksum(tmp_path: Path) -> None:
    """What another program would have to know to read it."""
    line = kept(tmp_path / "s.xyz", 1).read_text().splitlines()[-1]
    checksum, _, text = line.partition(" ")
    assert json.loads(text)["entry"]["number"] == 0
    assert len(checksum) == 8
