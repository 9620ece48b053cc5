"""A run and its folder: resume, finish, refuse, and write nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from eqflow.cli.compose import composed
from eqflow.errors import StorageError, UsageError
from eqflow.train import Run, load
from eqflow.train.folder import exclusive, require_possible
from eqflow.train.loop import PATIENCE, Trainer

ALWAYS = {
    "config.yaml",
    "provenance.json",
    "metrics.csv",
    "summary.json",
    "log.txt",
    "checkpoints",
    "weights.safetensors",
    "weights.safetensors.sha256",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.particles(tmp_path_factory.mktemp("data") / "data.npy")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert tiny.train(data, folder) == 0
    return folder


def weights(folder: Path) -> bytes:
    """The tensors; the metadata in front of them hold the name of the folder."""
    content = (folder / "weights.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def metrics(folder: Path) -> list[object]:
    return list(tiny.without_seconds((folder / "metrics.csv").read_text()))


def test_a_run_folder_holds_what_the_contract_lists_and_nothing_else_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert tiny.train(data, tmp_path / "run") == 0
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found - {"tensorboard"} == ALWAYS
    assert not list(elsewhere.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "run"}


def test_the_files_of_a_run_say_what_it_was(whole: Path, data: Path) -> None:
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert config["train"]["steps"] == 6
    assert config["run"]["dir"] == str(whole)
    provenance = json.loads((whole / "provenance.json").read_text())
    assert provenance["data"]["path"] == str(data)
    assert {"command", "python", "packages", "started"} <= provenance.keys()
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 6
    assert {"cpu_seconds", "seconds", "val_loss", "best_step"} <= summary.keys()
    assert metrics(whole)[0] == ["step", "learning_rate", "gradient_norm", "loss", "val_loss"]
    assert [row[0] for row in metrics(whole)[1:]] == list("123456")


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_stopped_and_resumed_a_run_ends_bitwise_like_the_uninterrupted_one(
    whole: Path, data: Path, tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "run"
    tiny.train_until(data, folder, step)
    assert not (folder / "summary.json").exists()
    assert tiny.train(data, folder) == 0
    assert weights(folder) == weights(whole)
    assert metrics(folder) == metrics(whole)


@pytest.mark.parametrize("step", [1, 3, 5, 6])
def test_killed_at_any_step_a_run_ends_bitwise_like_the_uninterrupted_one(
    whole: Path, data: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception out of the step stands for a kill: nothing is saved after it."""
    folder = tmp_path / "run"
    take_step = Trainer.step

    def killed(self: Trainer) -> dict[str, float]:
        if self.progress.step + 1 == step:
            raise KeyboardInterrupt
        return take_step(self)

    monkeypatch.setattr(Trainer, "step", killed)
    assert tiny.train(data, folder) == 130
    monkeypatch.undo()
    (folder / ".eqflow-stray").write_bytes(b"half a file")
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / ".eqflow-stray").write_bytes(b"half a file")
    assert tiny.train(data, folder) == 0
    assert weights(folder) == weights(whole)
    assert metrics(folder) == metrics(whole)
    assert not list(folder.rglob(".eqflow-*"))


def test_a_run_asked_to_stop_at_its_last_step_finishes_later(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    tiny.train_until(data, tmp_path / "run", 6)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert tiny.train(data, tmp_path / "run") == 0
    assert weights(tmp_path / "run") == weights(whole)
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_finished_run_says_so_and_changes_nothing(
    whole: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.contents(whole)
    times = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert tiny.train(data, whole) == 0
    assert "finished" in capsys.readouterr().out
    assert tiny.train(data, whole, "train.steps=4") == 0
    assert tiny.contents(whole) == before
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == times


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_weights_of_a_finished_run_are_made_again_where_they_are_lost(
    whole: Path, data: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    weights = folder / "weights.safetensors"
    if how == "missing":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-3] ^= 1
        weights.write_bytes(content)
    assert tiny.train(data, folder) == 0
    assert "made again from the last state" in capsys.readouterr().out
    one, other = (load(run).state_dict() for run in (whole, folder))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert tiny.train(data, folder) == 0
    assert "is finished" in capsys.readouterr().out


def test_an_empty_configuration_says_how_to_go_on(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "config.yaml").write_text("")
    assert tiny.train(data, folder) == 3
    assert "found an empty file" in (said := capsys.readouterr().err)
    assert "delete the file" in said
    (folder / "config.yaml").unlink()
    assert tiny.train(data, folder) == 0


def test_more_steps_continue_a_finished_run(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert tiny.train(data, folder, "train.schedule=constant") == 0
    assert tiny.train(data, folder, "train.schedule=constant", "train.steps=9") == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 9
    assert [row[0] for row in metrics(folder)[1:]] == list("123456789")  # type: ignore[index]
    straight = tmp_path / "straight"
    assert tiny.train(data, straight, "train.schedule=constant", "train.steps=9") == 0
    assert weights(folder) == weights(straight)


def test_a_run_from_before_a_key_was_known_is_resumed_with_the_default_of_that_key(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert tiny.train(data, folder) == 0
    path = folder / "config.yaml"
    older = yaml.safe_load(path.read_text("utf-8"))
    del older["solver"]["capture"], older["solver"]["implementation"]
    path.write_text(yaml.safe_dump(older, sort_keys=False), "utf-8")
    assert tiny.train(data, folder) == 0
    path.write_text(yaml.safe_dump(older, sort_keys=False), "utf-8")
    assert tiny.train(data, folder, "solver.implementation=torchdiffeq") == 2
    assert "solver.implementation: 'eqflow' → 'torchdiffeq'" in capsys.readouterr().err


def test_final_figures_can_be_asked_for_afterwards(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert tiny.train(data, folder) == 0
    before = weights(folder)
    assert tiny.train(data, folder, "train.final_structures=2") == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert math.isfinite(summary["val_nll"])
    assert math.isfinite(summary["test_nll"])
    assert weights(folder) == before


def test_other_changed_keys_are_refused_by_name_and_the_folder_is_untouched(
    whole: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.contents(whole)
    assert tiny.train(data, whole, "seed=3", "model.width=16", "train.steps=9") == 2
    text = capsys.readouterr().err
    assert "seed: 0 → 3" in text
    assert "model.width: 8 → 16" in text
    assert "train.steps" not in text
    assert tiny.contents(whole) == before


def test_data_that_changed_under_their_name_are_refused_and_moved_data_are_not(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "d.npy", tmp_path / "run"
    tiny.particles(path)
    tiny.train_until(path, folder, 2)
    tiny.particles(path, count=50)
    assert tiny.train(path, folder) == 2
    assert "data.path" in capsys.readouterr().err
    assert tiny.train(tiny.particles(tmp_path / "other.npy", count=51), folder) == 2
    assert tiny.train(tiny.particles(tmp_path / "moved.npy"), folder) == 0
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize("content", ["", "[1, 2]", "text", "a: [", "\x00"])
def test_a_configuration_that_is_none_is_refused(data: Path, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(content)
    assert tiny.train(data, folder) == 3
    assert tiny.contents(folder) == {"config.yaml": content.encode()}


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    tiny.train_until(data, folder, 5)
    newest = max((folder / "checkpoints").glob("*.pt"))
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    assert tiny.train(data, folder) == 0
    assert "warning: " in capsys.readouterr().out
    assert weights(folder) == weights(whole)
    assert metrics(folder) == metrics(whole)


def test_where_no_checkpoint_is_whole_the_run_is_refused(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tiny.train_until(data, folder, 3)
    for path in (folder / "checkpoints").glob("*.pt"):
        path.write_bytes(b"damaged")
    assert tiny.train(data, folder) == 3


def test_a_state_of_another_model_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    tiny.train_until(data, folder, 3)
    (folder / "config.yaml").unlink()
    assert tiny.train(data, folder, "model.width=4") == 3
    assert "does not fit" in capsys.readouterr().err


def test_a_run_that_gives_up_exits_4_with_finite_weights_that_load(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    tiny.train_until(data, folder, 2)
    monkeypatch.setattr(
        "eqflow.train.loop.torch.nn.utils.clip_grad_norm_", lambda *_, **__: math.nan
    )
    assert tiny.train(data, folder, f"train.steps={PATIENCE + 20}") == 4
    assert all(bool(value.isfinite().all()) for value in load(folder).state_dict().values())


def test_weights_are_there_from_the_first_checkpoint_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = Trainer.step

    def killed(self: Trainer) -> dict[str, float]:
        if self.progress.step == 3:
            raise KeyboardInterrupt
        return take_step(self)

    monkeypatch.setattr(Trainer, "step", killed)
    assert tiny.train(data, tmp_path / "run") == 130
    load(tmp_path / "run").sample(1)


def test_a_second_process_on_a_folder_is_refused_naming_the_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    folder = tmp_path / "run"
    folder.mkdir()
    with exclusive(folder, print):
        assert tiny.train(data, folder) == 2
    assert f"process {os.getpid()} on " in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"log.txt"}
    assert tiny.train(data, folder) == 0


def test_an_unwritable_folder_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="it is a file"):
        require_possible(tmp_path / "file" / "run")
    assert tiny.train(tmp_path / "missing.npy", tmp_path / "file" / "run") == 6
    assert tiny.train(tmp_path / "missing.npy", tmp_path / "file") == 6


def test_data_that_cannot_be_used_leave_no_folder(tmp_path: Path) -> None:
    empty = tmp_path / "empty.npy"
    empty.write_bytes(b"")
    for path in (empty, tmp_path / "missing.npy"):
        assert tiny.train(path, tmp_path / "run") == 3
    assert tiny.train(tmp_path / "data.txt", tmp_path / "run") == 2
    assert not (tmp_path / "run").exists()


def test_single_points_are_nothing_to_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tiny.particles(tmp_path / "points.npy", points=1)
    assert tiny.train(points, tmp_path / "run") == 3
    assert "single point" in capsys.readouterr().err


def test_too_few_structures_for_a_split_are_refused_with_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tiny.particles(tmp_path / "few.npy", count=4)
    assert tiny.train(few, tmp_path / "run") == 3
    assert "found 4 items" in capsys.readouterr().err


def test_problems_of_a_configuration_come_all_at_once(data: Path, tmp_path: Path) -> None:
    config = composed(
        "train",
        tiny.words(data, tmp_path / "run", "train.steps=0", "model.width=0", "train.clip=0")[1:],
    )
    with pytest.raises(UsageError) as error:
        Run(config, lambda line: None)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "train.steps",
        "model.width",
        "train.clip",
    ]


def test_elements_that_are_ignored_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    molecules = tiny.molecules(tmp_path / "molecules.xyz")
    common = ["data.dimension=3", "data.validation=0.1", "data.test=0.1", "train.steps=1"]
    assert tiny.train(molecules, tmp_path / "a", *common) == 0
    assert "data.elements=[H,O,F]" in capsys.readouterr().out
    assert tiny.train(molecules, tmp_path / "b", *common, "data.elements=H,O,F") == 0
    assert "elements are ignored" not in capsys.readouterr().out
    assert tiny.train(molecules, tmp_path / "c", *common, "data.elements=[H,O]") == 3
    assert "element F" in capsys.readouterr().err


def test_a_full_disk_while_logging_ends_with_code_6(data: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    folder = tmp_path / "run"
    tiny.train_until(data, folder, 2)
    before = tiny.contents(folder / "checkpoints")
    (folder / "log.txt").unlink()
    (folder / "log.txt").symlink_to("/dev/full")
    assert tiny.train(data, folder) == 6
    assert tiny.contents(folder / "checkpoints") == before


def test_data_of_another_size_than_their_target_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.train(data, tmp_path / "run", "data.source=gaussian_mixture") == 3
    assert "has 4 points; the structures have 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
