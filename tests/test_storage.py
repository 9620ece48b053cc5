"""A file is its old self or its new self, and what cannot be written says so."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eqflow import storage
from eqflow.errors import ExitCode, StorageError

REPOSITORY = Path(__file__).resolve().parents[1]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_content_arrives_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "new folder" / "naïve ü.txt"
    storage.write_text(path, "first")
    storage.write_text(path, "zweite Fassung: äöü\n")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: äöü\n"
    storage.write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["naïve ü.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_raises_leaves_the_old_file_and_no_stray(tmp_path, error):
    path = tmp_path / "weights"
    storage.write_text(path, "old")

    def fail(file):
        file.write(b"half of the new")
        raise error

    with pytest.raises(error):
        storage.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["weights"]


def test_a_full_disk_is_a_storage_error_that_changes_nothing(tmp_path):
    path = tmp_path / "weights"
    storage.write_text(path, "old")

    def fill(file):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"0" * 4096)

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(StorageError, match="No space left") as caught:
        storage.write_atomically(path, fill)
    assert caught.value.exit_code is ExitCode.STORAGE
    assert path.read_text() == "old"
    assert names(tmp_path) == ["weights"]


@pytest.mark.parametrize(
    "call", [lambda path: storage.write_text(path, "content"), storage.require_writable]
)
def test_a_folder_that_is_a_file_is_a_storage_error_naming_it(tmp_path, call):
    obstacle = tmp_path / "file"
    obstacle.write_text("in the way")
    with pytest.raises(StorageError) as caught:
        call(obstacle / "new")
    assert str(obstacle) in str(caught.value)
    assert obstacle.read_text() == "in the way"


def test_a_folder_in_place_of_the_file_is_a_storage_error(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken"):
        storage.write_text(tmp_path / "taken", "content")
    assert names(tmp_path) == ["taken"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        storage.require_writable(tmp_path)


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    storage.require_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    storage.write_text(tmp_path / "ours", "")
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "ours")]
    assert modes[0] == modes[1]


def test_strays_are_removed_and_nothing_else(tmp_path):
    for name in (f"{storage.STRAY_PREFIX}abc", "weights", ".hidden"):
        (tmp_path / name).write_text("")
    storage.remove_strays(tmp_path)
    assert names(tmp_path) == [".hidden", "weights"]


def test_outputs_and_journals_named_like_strays_stay(tmp_path):
    names_ = [".eqflow-samples.extxyz.journal", ".eqflow-x.npz", ".eqflow-x.npz.journal"]
    for name in (*names_, ".eqflow-01ab_cde"):
        (tmp_path / name).write_text("")
    storage.require_writable(tmp_path)
    assert names(tmp_path) == sorted(names_)

    def write(file):
        (temporary,) = set(names(tmp_path)) - set(names_)
        assert "." not in temporary.removeprefix(storage.STRAY_PREFIX)

    storage.write_atomically(tmp_path / "a.npz", write)
    assert (tmp_path / "a.npz").exists()


def test_a_folder_that_cannot_be_flushed_is_told_with_the_file_replaced(tmp_path, monkeypatch):
    def broken(folder):
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "weights"
    storage.write_text(path, "old")
    monkeypatch.setattr(storage, "_flush_folder", broken)
    with pytest.raises(StorageError, match="is written, but its folder cannot be flushed") as told:
        storage.write_text(path, "new")
    assert "Nothing was changed" not in str(told.value)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["weights"]


def test_the_digest_is_that_of_the_content(tmp_path):
    content = b"0123456789" * 300_000
    storage.write_bytes(tmp_path / "large", content)
    assert storage.sha256_of(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_a_process_killed_while_saving_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights"
    storage.write_text(path, "old")
    script = (
        "import sys, time\n"
        "from eqflow import storage\n"
        "def slow(file):\n"
        "    file.write(b'half'); file.flush(); time.sleep(60)\n"
        "storage.write_atomically(sys.argv[1], slow)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    deadline = time.monotonic() + 60
    while not any(p.read_bytes() == b"half" for p in tmp_path.glob(f"{storage.STRAY_PREFIX}*")):
        assert time.monotonic() < deadline, "the writer never began"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    storage.remove_strays(tmp_path)
    assert names(tmp_path) == ["weights"]


def test_a_file_grows_from_a_place_and_what_stood_beyond_is_cut_off(tmp_path):
    path = tmp_path / "records"
    path.write_bytes(b"one two thr")
    storage.write_at(path, b"three", 8)
    assert path.read_bytes() == b"one two three"
    storage.write_at(path, b"", 3)
    assert path.read_bytes() == b"one"


def test_a_file_that_cannot_grow_keeps_what_stood_there(tmp_path):
    path = tmp_path / "records"
    path.write_bytes(b"12345678")
    program = (
        "import resource, pathlib, sys; from eqflow import storage;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "storage.write_at(pathlib.Path(sys.argv[1]), b'9' * 1000, 8)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert "StorageError" in result.stderr
    assert "Its first 8 bytes are as they were" in result.stderr
    assert path.read_bytes() == b"12345678"
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_at(tmp_path / "missing", b"", 0)


def test_what_cannot_be_flushed_is_cut_off_and_large_content_arrives_whole(tmp_path, monkeypatch):
    path = tmp_path / "records"
    path.write_bytes(b"12345678")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            storage.write_at(path, b"9" * 100, 4)
    assert path.read_bytes() == b"1234"
    content = bytes(range(256)) * 1000
    storage.write_at(path, content, 4)
    assert path.read_bytes() == b"1234" + content


def test_a_file_that_takes_a_little_at_a_time_gets_all(tmp_path):
    class Slow:
        content = b""

        def write(self, more):
            self.content += bytes(more[:3])
            return min(3, len(more))

    file = Slow()
    storage._write_all(file, b"ten letters")
    assert file.content == b"ten letters"


def held(path):
    with storage.held(path):
        pass


@pytest.mark.parametrize(
    "call",
    [
        held,
        lambda path: storage.write_at(path, b"more", 0),
        lambda path: storage.append(path, b"more"),
    ],
    ids=["held", "write_at", "append"],
)
def test_what_is_written_in_place_is_a_file_and_no_link_or_pipe(tmp_path, call):
    victim, path = tmp_path / "victim", tmp_path / "records"
    victim.write_text("theirs")
    for target in (victim, tmp_path / "nothing"):
        path.symlink_to(target)
        with pytest.raises(StorageError, match="records: found a symbolic link, expected a file"):
            call(path)
        path.unlink()
    os.mkfifo(path)
    for reader in (False, True):  # without one, opening would wait for it
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if reader else -1
        with pytest.raises(StorageError, match="records: found a pipe or a device"):
            call(path)
        if reader:
            os.close(descriptor)
    path.unlink()
    path.mkdir()
    with pytest.raises((StorageError, IsADirectoryError), match="Is a directory"):
        call(path)
    assert victim.read_text() == "theirs"
    assert names(tmp_path) == ["records", "victim"]


def test_a_file_is_held_by_one_at_a_time_and_free_afterwards(tmp_path):
    path = tmp_path / "journal"
    with storage.held(path) as first, storage.held(path) as second:
        assert (first, second) == (True, False)
    with storage.held(path) as third:
        assert third
        path.unlink()
        with storage.held(path) as another_file:
            assert another_file
    with pytest.raises(StorageError, match="cannot be written"), storage.held(tmp_path / "a" / "b"):
        pass


def test_what_dead_processes_left_is_cleared_where_the_next_one_looks(tmp_path):
    (tmp_path / f"{storage.STRAY_PREFIX}half").write_text("half")
    (tmp_path / f"{storage.STRAY_PREFIX}folder").mkdir()  # not ours
    storage.require_writable(tmp_path)
    assert names(tmp_path) == [f"{storage.STRAY_PREFIX}folder"]


def test_a_link_named_like_a_stray_does_not_harm_its_target(tmp_path):
    (tmp_path / "target").write_text("theirs")
    (tmp_path / f"{storage.STRAY_PREFIX}link").symlink_to(tmp_path / "target")
    storage.remove_strays(tmp_path)
    assert (tmp_path / "target").read_text() == "theirs"


def test_what_is_set_aside_gets_a_name_that_is_free(tmp_path):
    for number, expected in enumerate(("a.aside", "a.aside1", "a.aside2")):
        (tmp_path / "a").write_text(str(number))
        assert storage.set_aside(tmp_path / "a") == tmp_path / expected
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["0", "1", "2"]
    with pytest.raises(StorageError, match="cannot be renamed"):
        storage.set_aside(tmp_path / "nothing")


def test_flushing_what_is_not_there_is_a_storage_error(tmp_path):
    storage.flush(REPOSITORY / "tests" / "test_storage.py")
    with pytest.raises(StorageError, match="nothing"):
        storage.flush(tmp_path / "nothing")
