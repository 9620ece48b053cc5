"""Weights and states on disk: round trips, damage, and files that are none."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eqflow import rng, storage
from eqflow.errors import CheckpointError
from eqflow.storage import sha256_of
from eqflow.train import load
from eqflow.train.checkpoint import (
    WEIGHTS,
    newest_state,
    read_state,
    read_state_at,
    read_weights,
    save_state,
    save_weights,
)
from eqflow.train.digests import listed
from eqflow.train.folder import version_of
from eqflow.train.weights import load_with_config


class Canary:
    """A pickle that leaves a file where it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("checkpoint")
    assert tiny.train(tiny.particles(base / "data.npy"), base / "run") == 0
    return base / "run"


@pytest.fixture
def weights(trained: Path, tmp_path: Path) -> Path:
    for name in (WEIGHTS, f"{WEIGHTS}.sha256"):
        shutil.copy(trained / name, tmp_path / name)
    return tmp_path / WEIGHTS


@pytest.fixture
def states(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"x": torch.full((2,), float(step)), "progress": {"step": step}})
    return tmp_path


def silent(line: str) -> None:
    raise AssertionError(line)


def without_digest(path: Path) -> Path:
    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
    return path


def rewritten(path: Path, **metadata: str) -> Path:
    """The same tensors with other metadata, as another program might write them."""
    _, config, statistics = read_weights(path)
    tensors = load_file(path)
    kept = {"format": "1", "config": json.dumps(config), "statistics": json.dumps(statistics)}
    save_file(tensors, path, {**kept, **metadata})
    return without_digest(path)


def test_weights_come_back_bitwise_with_configuration_and_statistics(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    save_weights(tmp_path / WEIGHTS, module, {"model": {"width": 8}}, {"scale": 0.1})
    tensors, config, statistics = read_weights(tmp_path / WEIGHTS)
    assert (config, statistics) == ({"model": {"width": 8}}, {"scale": 0.1})
    assert all(torch.equal(tensors[name], value) for name, value in module.state_dict().items())


def test_a_weights_file_alone_is_enough(weights: Path) -> None:
    flow = load(without_digest(weights))
    drawn = flow.sample(3, seed=0)
    assert flow.log_prob(drawn).isfinite().all()


def test_a_run_folder_and_its_weights_file_are_the_same_flow(trained: Path) -> None:
    first, config = load_with_config(trained)
    second, _ = load_with_config(str(trained / WEIGHTS))
    assert config["model"]["width"] == 8
    assert torch.equal(first.sample(2, seed=0).x, second.sample(2, seed=0).x)


@pytest.mark.parametrize("start", [b"\x80\x07", b"PK", b"<", b" <", b"\x80\x02"])
def test_a_header_as_long_as_another_format_s_first_bytes_is_a_weights_file(
    tmp_path: Path, start: bytes
) -> None:
    """Its length comes first: 0x0780 bytes begin as a pickle of protocol 7 would, if there were."""
    path = tmp_path / WEIGHTS
    module = torch.nn.Linear(3, 2)
    save_weights(path, module, {"a": ""}, {})
    size = int.from_bytes(path.read_bytes()[:8], "little")
    # Headers end at a multiple of 8 bytes with spaces, as this one may at any length.
    wanted = int.from_bytes(start.ljust(2, b"\x08"), "little")
    assert wanted > size
    content = path.read_bytes()
    header = content[8 : 8 + size] + b" " * (wanted - size)
    path.write_bytes(wanted.to_bytes(8, "little") + header + content[8 + size :])
    without_digest(path)
    assert path.read_bytes().startswith(start)
    tensors, config, _ = read_weights(path)
    assert config == {"a": ""}
    assert all(torch.equal(tensors[name], value) for name, value in module.state_dict().items())


def test_every_flipped_byte_of_a_weights_file_is_noticed(weights: Path) -> None:
    whole = weights.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            load(weights)


@pytest.mark.parametrize("keep_digest", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_weights_file_is_refused(
    weights: Path, share: float, keep_digest: bool
) -> None:
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(share * len(whole))])
    if not keep_digest:
        without_digest(weights)
    with pytest.raises(CheckpointError, match="damaged" if share else "empty"):
        load(weights)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04 something", "a zip archive or PyTorch file"),
        (b"hello", "another format"),
        (b"\x00" * 64, "another format"),
    ],
)
@pytest.mark.parametrize("keep_digest", [True, False])
def test_what_is_no_weights_file_is_named(
    weights: Path, content: bytes, found: str, keep_digest: bool
) -> None:
    weights.write_bytes(content)
    if not keep_digest or found == "another format":
        without_digest(weights)
    with pytest.raises(CheckpointError, match=found) as error:
        load(weights)
    assert str(weights) in str(error.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keep_digest", [True, False])
def test_a_pickle_is_never_executed(weights: Path, protocol: int, keep_digest: bool) -> None:
    executed = weights.parent / "executed"
    content = pickle.dumps(Canary(executed), protocol)
    weights.write_bytes(content)
    state = weights.with_name("000000001.pt")
    state.write_bytes(content)
    if not keep_digest:
        without_digest(weights)
    with pytest.raises(CheckpointError):
        load(weights)
    with pytest.raises(CheckpointError):
        read_state(state)
    assert not executed.exists()


def test_a_pytorch_file_with_a_pickle_inside_is_never_executed(tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    torch.save({"format": 1, "x": Canary(executed)}, tmp_path / "000000001.pt")
    shutil.copy(tmp_path / "000000001.pt", tmp_path / "model.bin")
    with pytest.raises(CheckpointError):
        read_state(tmp_path / "000000001.pt")
    with pytest.raises(CheckpointError, match="PyTorch file"):
        load(tmp_path / "model.bin")
    assert not executed.exists()


def test_weights_of_another_architecture_are_refused_by_name_and_shape(weights: Path) -> None:
    _, config, statistics = read_weights(weights)
    tensors = load_file(weights)
    names = sorted(tensors)
    tensors["extra"] = torch.zeros(2)
    del tensors[names[0]]
    tensors[names[1]] = torch.zeros(5, 7)
    metadata = {"format": "1", "config": json.dumps(config), "statistics": json.dumps(statistics)}
    save_file(tensors, weights, metadata)
    with pytest.raises(CheckpointError) as error:
        load(without_digest(weights))
    text = str(error.value)
    assert f"missing {names[0]}" in text
    assert "unexpected extra" in text
    assert f"{names[1]} has shape (5, 7), expected" in text


def test_a_newer_format_says_which_version_is_needed(weights: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(weights, tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match=r"format 99, but this eqflow reads up to 1"):
        load(rewritten(other, format="99"))
    needed = "install eqflow 7.8.9, which wrote it, or newer"
    with pytest.raises(CheckpointError, match=needed):
        load(rewritten(weights, format="99", eqflow="7.8.9"))
    torch.save({"format": 99, "eqflow": "7.8.9"}, tmp_path / "000000001.pt")
    with pytest.raises(CheckpointError, match=f"format 99.*{needed}"):
        read_state(tmp_path / "000000001.pt")
    torch.save({"format": "new"}, tmp_path / "000000002.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "000000002.pt")


def test_a_file_says_which_eqflow_wrote_it(states: Path, trained: Path) -> None:
    assert read_state_at(states, 3)["eqflow"] == version_of("eqflow")
    with safe_open(trained / WEIGHTS, framework="pt") as file:
        assert file.metadata()["eqflow"] == version_of("eqflow")


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "one"},
        {"config": "{"},
        {"config": "{}"},
        {"config": "[]"},
        {"statistics": "{}"},
        {"statistics": '{"dimension": 2, "scale": -1, "compositions": {}}'},
        {"config": json.dumps({"model": {"depth": 3}, "solver": {}})},
        {"config": json.dumps({"model": {"layers": 0}, "solver": {}})},
        {"config": json.dumps({"model": {}, "solver": {"method": "magic"}})},
    ],
)
def test_metadata_that_describe_no_flow_are_refused(
    weights: Path, metadata: dict[str, str]
) -> None:
    with pytest.raises(CheckpointError):
        load(rewritten(weights, **metadata))


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="without eqflow's metadata"):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["nowhere", "nowhere.safetensors", ""])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / name)


def test_the_newest_state_is_read_and_only_two_are_kept(states: Path) -> None:
    state = newest_state(states, silent)
    assert state is not None
    assert state["progress"]["step"] == 3
    assert torch.equal(state["x"], torch.full((2,), 3.0))
    assert sorted(path.name for path in states.iterdir()) == [
        "000000002.pt",
        "000000002.pt.sha256",
        "000000003.pt",
        "000000003.pt.sha256",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-300] + bytes([whole[-300] ^ 4]) + whole[-299:],
        lambda whole: b"",
        lambda whole: b"<html></html>",
        lambda whole: b"version https://git-lfs.github.com/spec/v1\n",
    ],
    ids=["truncated", "flipped", "empty", "html", "lfs"],
)
def test_a_damaged_state_falls_back_to_the_one_before_with_a_warning(
    states: Path, damage: object
) -> None:
    newest = states / "000000003.pt"
    newest.write_bytes(damage(newest.read_bytes()))  # type: ignore[operator]
    told: list[str] = []
    state = newest_state(states, told.append)
    assert state is not None
    assert state["progress"]["step"] == 2
    assert len(told) == 1
    assert "000000003.pt" in told[0]
    assert told[0].startswith("warning: ")


def test_after_a_fallback_the_damaged_state_is_superseded(states: Path) -> None:
    newest = states / "000000003.pt"
    newest.write_bytes(b"damaged")
    save_state(states, 2, {"progress": {"step": 2}})
    assert not newest.exists()
    assert newest_state(states, silent) is not None


def test_where_no_state_is_whole_all_are_named(states: Path) -> None:
    for path in states.glob("*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="no state can be resumed from") as error:
        newest_state(states, lambda line: None)
    assert "000000002.pt" in str(error.value)
    assert "000000003.pt" in str(error.value)


def test_an_empty_folder_has_no_state_and_strays_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".eqflow-stray").write_bytes(b"half")
    assert newest_state(tmp_path, silent) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_killed_between_any_two_writes_the_file_there_is_the_one_listed(
    states: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    whole, left = storage.write_bytes, [None] * writes

    def killed(path: Path, content: bytes) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        whole(path, content)

    monkeypatch.setattr(storage, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(states, 3, {"progress": {"step": 3}, "again": True})
    state = newest_state(states, silent)
    assert state is not None
    assert state.get("again", False) is (writes == 2)
    assert sha256_of(states / "000000003.pt") in (listed(states / "000000003.pt") or [])


def test_a_digest_without_its_file_is_cleared(states: Path) -> None:
    (states / "000000004.pt.sha256").write_text("0  000000004.pt\n")
    assert newest_state(states, silent) is not None
    assert not (states / "000000004.pt.sha256").exists()


def test_states_to_keep_are_kept_and_can_be_read(states: Path) -> None:
    for step in (4, 5, 6):
        save_state(states, step, {"progress": {"step": step}}, keep=[2])
    assert sorted(path.stem for path in states.glob("*.pt")) == [
        f"{step:09d}" for step in (2, 5, 6)
    ]
    assert read_state_at(states, 2)["progress"]["step"] == 2
    with pytest.raises(CheckpointError, match="no such file"):
        read_state_at(states, 4)


@pytest.mark.parametrize("keep_digest", [True, False])
def test_what_is_damaged_does_not_count_as_kept(states: Path, keep_digest: bool) -> None:
    damaged = states / "000000003.pt"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    if not keep_digest:
        without_digest(damaged)
    save_state(states, 4, {"progress": {"step": 4}})
    assert sorted(path.stem for path in states.glob("*.pt")) == ["000000002", "000000004"]


def test_the_only_whole_state_is_never_deleted(states: Path) -> None:
    """Though all that was written since is damaged as soon as it is written."""
    for step in range(4, 9):
        save_state(states, step, {"progress": {"step": step}})
        (states / f"{step:09d}.pt").write_bytes(b"damaged")
    state = newest_state(states, lambda line: None)
    assert state is not None
    assert state["progress"]["step"] == 3


def test_files_of_others_beside_the_states_stay(states: Path) -> None:
    (states / "zebra.pt").write_bytes(b"mine")
    (states / "notes.txt").write_text("mine")
    (states / "000000009.pt").mkdir()
    told: list[str] = []
    state = newest_state(states, told.append)
    assert state is not None
    assert state["progress"]["step"] == 3
    assert len(told) == 1
    assert "found a folder" in told[0]
    save_state(states, 4, {"progress": {"step": 4}})
    for name in ("zebra.pt", "notes.txt", "000000009.pt"):
        assert (states / name).exists()


def test_a_folder_in_the_way_of_a_state_gets_another_name(states: Path) -> None:
    for name in ("000000004.pt", "000000004.pt.sha256"):
        (states / name).mkdir()
        (states / name / "content").write_text("mine")
    save_state(states, 4, {"progress": {"step": 4}})
    assert read_state_at(states, 4)["progress"]["step"] == 4
    assert (states / "000000004.pt.aside" / "content").read_text() == "mine"
    assert (states / "000000004.pt.sha256.aside" / "content").read_text() == "mine"


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    seen = set()
    for _ in range(20):
        save_weights(tmp_path / WEIGHTS, module, {"μ": 1, "a": {"b": "é"}}, {"z": 1})
        seen.add((tmp_path / WEIGHTS).read_bytes())
    assert len(seen) == 1
    assert read_weights(tmp_path / WEIGHTS)[1] == {"μ": 1, "a": {"b": "é"}}


def test_weights_can_be_read_while_a_run_replaces_them(tmp_path: Path) -> None:
    modules = [torch.nn.Linear(40, 40) for _ in range(2)]
    save_weights(tmp_path / WEIGHTS, modules[0], {}, {})
    ended = threading.Event()

    def write() -> None:
        for turn in range(60):
            save_weights(tmp_path / WEIGHTS, modules[turn % 2], {}, {})
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not ended.is_set():
        assert set(read_weights(tmp_path / WEIGHTS)[0]) == {"weight", "bias"}
        reads += 1
    writer.join()
    assert reads > 10


@pytest.mark.parametrize("seed", range(40))
def test_a_state_with_anything_in_it_is_refused_or_read(states: Path, seed: int) -> None:
    """Without its SHA-256 a flipped byte may go unnoticed; it raises nothing else."""
    path = without_digest(states / "000000003.pt")
    content = bytearray(path.read_bytes())
    source = rng.generator(seed, "damage")
    for place in torch.randint(len(content), (30,), generator=source).tolist():
        content[place] ^= 1 + seed % 255
    path.write_bytes(content)
    with suppress(CheckpointError):
        read_state(path)


def test_a_file_that_holds_no_state_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "000000001.pt")
    with pytest.raises(CheckpointError, match="not a state"):
        read_state(tmp_path / "000000001.pt")
