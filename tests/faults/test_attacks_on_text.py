"""Texts made to do harm: documents that grow, names that lead elsewhere, letters that steer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from canaries import ends_of
from processes import environment
from safetensors.numpy import save_file

from eqflow.cli.main import main
from eqflow.errors import CheckpointError
from eqflow.train.documents import json_of, yaml_of

Injected = Callable[[], None]
Captured = pytest.CaptureFixture[str]

STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
SECRET = "a-secret-of-the-environment"


def laughs(mark: Path) -> dict[str, str]:
    """YAML that grows, climbs, or calls, by what it does."""
    lists = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    maps = "a: &a {x: 1, y: 2, z: 3}\n"
    for before, now in zip("abcdefghijklm", "bcdefghijklmn", strict=True):
        lists += f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n"
        maps += f"{now}: &{now} {{p: *{before}, q: *{before}, r: *{before}, s: *{before}}}\n"
    call = f'["touch {mark}"]'
    return {
        "a billion in lists": lists,
        "a billion in maps": maps,
        "itself": "a: &a\n  b: *a\n",
        "a list of itself": "a: &a [*a]\n",
        "a tower of brackets": "a: " + "[" * 100_000,
        "a closed tower of brackets": "a: " + "[" * 5_000 + "]" * 5_000,
        "a tower of maps": "a: " + "{b: " * 5_000 + "1" + "}" * 5_000,
        "a tower of lines": "\n".join(" " * depth + "a:" for depth in range(800)),
        "a number of many digits": f"seed: {'9' * 500_000}\n",
        "a number to the base of 60": f"seed: 1{':59' * 200_000}\n",
        "too much": "a: x\n" * 500_000,
        "a call": f"a: !!python/object/apply:os.system {call}\n",
        "an object": f"a: !!python/object/new:os.system {call}\n",
        "a module": "a: !!python/module:os\n",
        "no mapping": "- a\n",
        "control characters": "a: \x00\x1b[2J\n",
        "no text": "\udcff",
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished and one that was stopped."""
    folder = tmp_path_factory.mktemp("texts")
    data = tiny.particles(folder / "data.npy")
    assert tiny.train(data, folder / "run") == 0
    tiny.train_until(data, folder / "stopped", 4)
    return folder


@pytest.mark.fault(
    4, "YAML that grows without end, or calls code, in a run folder", "refused by its name, exit 3"
)
def test_yaml_is_plain_values_or_refused(tmp_path: Path, injected: Injected) -> None:
    mark = tmp_path / "called"
    for what, text in laughs(mark).items():
        path = tmp_path / "config.yaml"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        if what == "no mapping":
            assert yaml_of(path) == ["a"]
            continue
        with pytest.raises(CheckpointError, match=r"config\.yaml: not YAML"):
            yaml_of(path)
        assert not mark.exists()
        injected()


@pytest.mark.slow
@pytest.mark.fault(
    4, "YAML that grows without end, or calls code, in a run folder", "refused by its name, exit 3"
)
def test_a_run_folder_with_such_yaml_is_refused(
    base: Path, tmp_path: Path, injected: Injected
) -> None:
    mark, cases, paths = tmp_path / "called", [], []
    for place, text in enumerate(laughs(mark).values()):
        run = tmp_path / f"run {place}"
        shutil.copytree(base / "stopped", run)
        (run / "config.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
        cases.append(tiny.words(base / "data.npy", run))
        paths.append(run / "config.yaml")
    for path, (code, _, err, called) in zip(paths, ends_of(cases, tmp_path, mark), strict=True):
        assert code == 3, err
        assert str(path) in err
        assert len(err) < 1000
        assert "give another run.dir." in err
        assert not called
        injected()


@pytest.mark.fault(4, "JSON of a hundred thousand brackets", "refused by its name, exit 3")
def test_json_that_is_nested_too_deep_is_refused(
    base: Path, tmp_path: Path, capsys: Captured, injected: Injected
) -> None:
    tower = "[" * 100_000 + "]" * 100_000
    path = tmp_path / "provenance.json"
    for text in (tower, '{"a":' * 100_000, "9" * 10_000, ""):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"provenance\.json: not JSON"):
            json_of(path)
        injected()
    weights = tmp_path / "weights.safetensors"
    for key in ("config", "statistics"):
        metadata = {"format": "1", "config": "{}", "statistics": "{}"} | {key: tower}
        save_file({"x": np.zeros(1, np.float32)}, weights, metadata)
        assert main(["sample", f"run={weights}", f"out={tmp_path / 's.npy'}"]) == 3
        assert f"{weights}: its metadata cannot be read" in capsys.readouterr().err
        injected()
    # Where a file only tells of the past, the run goes on without it.
    run = tmp_path / "run"
    shutil.copytree(base / "stopped", run)
    for name in ("provenance.json", "summary.json"):
        (run / name).write_text(tower)
    assert tiny.train(base / "data.npy", run) == 0


@pytest.mark.fault(
    4, "`${oc.env:…}` in the weights of someone else's run", "stays a text, nothing is looked up"
)
def test_a_run_reads_nothing_from_the_environment(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from safetensors import safe_open

    monkeypatch.setenv("MY_TOKEN", SECRET)
    with safe_open(base / "run" / "weights.safetensors", framework="np") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    word = "${oc.env:MY_TOKEN}"
    for place in ("solver.method", "model.name", "name"):
        changed = json.loads(json.dumps(config))
        section, _, key = place.rpartition(".")
        (changed[section] if section else changed)[key] = word
        weights = tmp_path / "weights.safetensors"
        save_file(tensors, weights, metadata | {"config": json.dumps(changed)})
        code = main(["sample", f"run={weights}", f"out={tmp_path / 's.npy'}", "n=2"])
        shown = "".join(capsys.readouterr())
        assert code == (0 if place == "name" else 3), shown
        assert SECRET not in shown
        assert (word in shown) == (place != "name")
    run = tmp_path / "run"
    shutil.copytree(base / "stopped", run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: custom", f"name: {word}"))
    assert tiny.train(base / "data.npy", run) == 2
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "word",
    [
        "experiment=../../etc/passwd",
        "experiment=/etc/passwd",
        "experiment@_global_=dw4",
        "model=../experiment/dw4",
        "objective=file:///etc/passwd",
        "hydra.searchpath=[file:///tmp]",
        "hydra/job_logging=none",
        "hydra.run.dir=/tmp/x",
        "+evil._target_=os.system",
        "model._target_=os.system",
        "~model",
        "--config-dir=/tmp",
        "-cd",
        "name=../../outside",
        "name=/etc/outside",
        "name=..",
        "name=a\\b",
        "name=a\nb",
        "name=\x1b[2J",
    ],
)
@pytest.mark.fault(9, "a word that would lead Hydra or a run elsewhere", "exit 2, nothing is made")
def test_no_word_leads_elsewhere(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "data.source=dw4", "train.steps=1", word]) == 2
    assert "\x1b" not in "".join(capsys.readouterr())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["preset=../experiment/cora", "dir=/proc/x"])
def test_no_word_of_a_search_does(word: str, tmp_path: Path, monkeypatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["task=node_classification", "data.path=x.npz", "space.seed=[1,9]"]
    assert main(["tune", *words, word]) in (2, 3, 6)
    assert not list(tmp_path.iterdir())


def steered_files(folder: Path) -> list[Path]:
    """Files whose elements, comments, names of properties or own names hold what steers."""
    comment = f"Properties=species:S:1:pos:R:3 {STEERING}=1.5 note=\x1b[31mred"
    atoms = "H 0 0 0\nH 0 0 0.74\n"
    texts = {
        "element.xyz": f"2\nfine\nH 0 0 0\n{STEERING} 0 0 1\n",
        "coordinate.xyz": f"2\nfine\nH 0 0 0\nH 0 {STEERING} 1\n",
        "count.xyz": f"2{STEERING}\nfine\n{atoms}",
        "comment.extxyz": f"2\n{comment}\n{atoms}2\n{comment}\nH 0 0 0\nQ{STEERING} 0 0 1\n",
        "columns.extxyz": f"2\nProperties=species:S:1:pos:R:{STEERING}\n{atoms}",
        f"name {STEERING} \r\n\x1b[1A.xyz": "2\n\nH 0 0 0\nQq 0 0 1\n",
        "record.sdf": f"{STEERING}\n\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\n"
        f"    0.0000    0.0000    0.0000 {STEERING[:3]}\nM  END\n$$$$\n",
        "molecule.smi": f"C{STEERING}\n{STEERING}C\n",
    }
    paths = []
    for name, text in texts.items():
        path = folder / name
        path.write_bytes(text.encode("utf-8"))
        paths.append(path)
    arrays = folder / "arrays.npz"
    np.savez(arrays, **{STEERING.replace("/", ""): np.zeros(3)})
    named = folder / "named.npz"
    np.savez(named, x=np.zeros((2, 3)), ptr=np.array([0, 2]), numbers=np.array([f"{STEERING}"] * 2))
    return [*paths, arrays, named]


def assert_harmless(text: str) -> None:
    strange = {letter for letter in text if not letter.isprintable()} - {"\n", "\t"}
    assert not strange, repr(text)


@pytest.mark.fault(
    4, "letters that steer a terminal, in names and texts of files", "shown spelled out"
)
def test_nothing_of_a_file_steers_the_terminal(
    tmp_path: Path, capsys: Captured, injected: Injected
) -> None:
    run = tmp_path / "run"
    words = ["data.dimension=3", "data.elements=H,O", "data.validation=0.2", "data.test=0.2"]
    data = tiny.molecules(tmp_path / "molecules.xyz")
    words[1] = "data.elements=H,O,F"
    assert tiny.train(data, run, *words) == 0
    folder = tmp_path / "files"
    folder.mkdir()
    capsys.readouterr()
    for path in steered_files(folder):
        # Molecules of a .smi are embedded by a process of their own, which takes seconds to start.
        for more in ([], ["data.on_problem=skip"])[: 1 if path.suffix == ".smi" else 2]:
            score = ["score", f"run={run}", f"data.path={path}", f"out={tmp_path / 's.csv'}"]
            code = main([*score, *more])
            shown = capsys.readouterr()
            assert code in (0, 3, 7), shown
            assert_harmless(shown.out + shown.err)
            injected()
    # Training says and logs the same of a whole folder.
    other = tmp_path / "other"
    shutil.copy(data, folder / "sound.xyz")
    (folder / "named.npz").unlink()
    code = tiny.train(folder, other, *words, "data.on_problem=skip")
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    if code in (0, 7):
        assert_harmless((other / "log.txt").read_text("utf-8"))
    # So do words that were mistyped, and weights from elsewhere.
    assert main(["score", f"{STEERING}=1"]) == 2
    assert main([STEERING]) == 2
    assert main(["train", "--help", f"experiment={STEERING}"]) in (0, 2)
    assert main(["check", f"run={tmp_path}/{STEERING}"]) == 3
    metadata = {
        "format": "1",
        "config": json.dumps({"model": {"name": STEERING}}),
        "statistics": "{}",
    }
    save_file({STEERING: np.zeros(1, np.float32)}, tmp_path / "w.safetensors", metadata)
    assert main(["check", f"run={tmp_path / 'w.safetensors'}"]) == 3
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)


def test_the_spelling_out_is_what_makes_it_harmless(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the test above would find something."""
    monkeypatch.setattr("eqflow.cli.main.printable", lambda text: text)
    assert main(["check", f"run={tmp_path}/{STEERING}"]) == 3
    with pytest.raises(AssertionError):
        assert_harmless(capsys.readouterr().err)


# Links planted in a run folder


@pytest.mark.fault(
    4, "links out of a run folder, in place of its files", "nothing outside it is changed"
)
def test_nothing_is_written_through_a_link(
    base: Path, tmp_path: Path, capsys: Captured, injected: Injected
) -> None:
    outside = tmp_path / "outside.txt"
    for name in ("log.txt", "metrics.csv"):
        run = tmp_path / f"run {name}"
        shutil.copytree(base / "stopped", run)
        outside.write_bytes((run / name).read_bytes())
        before = outside.read_bytes()
        (run / name).unlink()
        (run / name).symlink_to(outside)
        code = tiny.train(base / "data.npy", run)
        # What is appended to is refused; what is written anew takes the place of the link.
        assert code == (6 if name == "log.txt" else 0)
        assert outside.read_bytes() == before
        assert code == 0 or f"{run / name}: found a symbolic link" in capsys.readouterr().err
        injected()
    written = ("config.yaml", "provenance.json", "summary.json", "weights.safetensors")
    run = tmp_path / "run"
    shutil.copytree(base / "stopped", run)
    for name in (*written, ".eqflow-probe", "weights.safetensors.sha256"):
        content = (run / name).read_bytes() if (run / name).is_file() else b"{}"
        (tmp_path / f"outside {name}").write_bytes(content)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / f"outside {name}")
        injected()
    before = {path: path.read_bytes() for path in tmp_path.glob("outside *")}
    assert tiny.train(base / "data.npy", run) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("outside *")} == before
    assert not any((run / name).is_symlink() for name in written if name != "provenance.json")


@pytest.mark.fault(
    4,
    "a link or a pipe in place of the journal of `sample` or `score`, or of a run's log",
    "refused by its name, exit 6; nothing outside is changed, nothing waits",
)
def test_nothing_is_written_through_a_link_beside_an_output(
    base: Path, tmp_path: Path, capsys: Captured, injected: Injected
) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("theirs")
    sample = ["sample", f"run={base / 'run'}", "n=2", f"out={tmp_path / 's.extxyz'}"]
    score = ["score", f"run={base / 'run'}", f"data.path={base / 'data.npy'}"]
    score += [f"out={tmp_path / 's.csv'}"]
    train = tiny.words(base / "data.npy", tmp_path / "new")
    (tmp_path / "new").mkdir()
    for words, path in (
        (sample, tmp_path / ".s.extxyz.journal"),
        (score, tmp_path / ".s.csv.journal"),
        (train, tmp_path / "new" / "log.txt"),
    ):
        for plant, said in (
            (lambda path: path.symlink_to(outside), "found a symbolic link"),
            (lambda path: path.symlink_to(tmp_path / "not there"), "found a symbolic link"),
            (os.mkfifo, "found a pipe"),
        ):
            plant(path)
            assert main(words) == 6
            assert f"{path}: {said}" in capsys.readouterr().err
            path.unlink()
            injected()
    assert outside.read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "outside.txt"]


@pytest.mark.fault(
    4, "a link in place of the folder of states", "only states are deleted where it leads"
)
def test_files_of_others_stay_where_states_are_kept(base: Path, tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    shutil.copytree(base / "stopped", run)
    shutil.move(run / "checkpoints", elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    mine = {f"{name}.pt": name.encode() for name in ("best", "model 12", "1e9", "v3", "")}
    for name, content in mine.items():
        (elsewhere / name).write_bytes(content)
    assert tiny.train(base / "data.npy", run) == 0
    assert {name: (elsewhere / name).read_bytes() for name in mine} == mine
    assert len([path for path in elsewhere.glob("*.pt") if path.stem.isdecimal()]) == 2


def test_files_appear_with_the_permissions_of_the_user_and_not_before(tmp_path: Path) -> None:
    from eqflow import storage

    seen = []

    def write(file) -> None:  # type: ignore[no-untyped-def]
        (temporary,) = tmp_path.glob(f"{storage.STRAY_PREFIX}*")
        seen.append(temporary.stat().st_mode & 0o777)
        file.write(b"x")

    for mask, expected in ((0o077, 0o600), (0o027, 0o640), (0o022, 0o644)):
        before = os.umask(mask)
        try:
            storage.write_atomically(tmp_path / "file", write)
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == expected
    assert seen == [0o600] * 3


# Standard streams


@pytest.mark.slow
@pytest.mark.fault(
    17, "a path that is no UTF-8, a locale without letters, a closed output", "works, no traceback"
)
def test_every_path_can_be_told_in_every_locale(
    base: Path, tmp_path: Path, injected: Injected
) -> None:
    import subprocess
    import sys

    out = os.fsencode(tmp_path) + b"/\xff\xe9\xce\xb1.npy"
    words = [b"sample", b"run=" + os.fsencode(base / "run"), b"n=2", b"out=" + out]
    command = [os.fsencode(sys.executable), b"-m", b"eqflow.cli.main", *words]
    for more in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {}):
        ended = subprocess.run(
            command, env=environment(**more), capture_output=True, timeout=240, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert b"Traceback" not in ended.stderr
        os.unlink(out)
        injected()
    for closed in (">&-", "2>&-", ">&- 2>&-", "> /dev/full"):
        line = b'exec "$@" ' + closed.encode()
        ended = subprocess.run(
            [b"sh", b"-c", line, b"sh", *command],
            env=environment(),
            capture_output=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, (closed, ended.stderr)
        assert b"Traceback" not in ended.stderr
        np.load(os.fsdecode(out))
        os.unlink(out)
        injected()
