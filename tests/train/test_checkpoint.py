"""Weights and states on disk: round trips, damage, and files that are none."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from eqflow.errors import CheckpointError
from eqflow.train import load
from eqflow.train.checkpoint import (
    WEIGHTS,
    newest_state,
    read_state,
    read_weights,
    save_state,
    save_weights,
)
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
    with pytest.raises(CheckpointError, match=r"format 99, but this eqflow reads up to 1"):
        load(rewritten(weights, format="99"))
    buffer = io.BytesIO()
    torch.save({"format": 99}, buffer)
    (tmp_path / "000000001.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="format 99"):
        read_state(tmp_path / "000000001.pt")


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


def test_killed_between_a_file_and_its_digest_leaves_a_file_that_loads(
    states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, content: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eqflow.train.checkpoint.storage.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(states, 3, {"progress": {"step": 3}, "again": True})
    state = newest_state(states, silent)
    assert state is not None
    assert state["again"] is True


def test_a_file_that_holds_no_state_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "000000001.pt")
    with pytest.raises(CheckpointError, match="not a state"):
        read_state(tmp_path / "000000001.pt")
