"""The doctor says what is there, and what is broken when something is."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from processes import environment, eqflow

from eqflow.cli.checkup import computing, installation, places
from eqflow.cli.checkup.finding import Finding
from eqflow.cli.doctor import findings
from eqflow.cli.main import main
from eqflow.errors import ExitCode

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
NOWHERE = "/proc/nowhere"  # not even root makes a folder there

SLOW = ["look_at_torch", "look_at_triton", "look_at_flow", "look_at_molecules", "look_at_pictures"]


def nothing() -> Iterator[Finding]:
    yield from ()


@pytest.fixture
def quick(monkeypatch: Patch) -> None:
    """Nothing is computed."""
    for look in SLOW:
        monkeypatch.setattr(computing, look, nothing)


def doctor(*words: str) -> int:
    return main(["doctor", *words])


def failures(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("FAIL")]


def test_a_sound_installation_passes_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor("out=doctor.json", f"dir={tmp_path / 'new' / 'runs'}") == 0
    text = capsys.readouterr().out
    assert not failures(text)
    for about in (
        *("Python", "torch", "torchdiffeq", "rdkit", "CPU", "GPU", "torch backend"),
        *("Triton kernels", "a small flow", "molecules", "pictures", "folder of runs"),
        *("current folder", "cache", "temporary files", "home"),
    ):
        assert any(line[5:].startswith(f"{about} ") for line in text.splitlines()), about
    assert "all 12 laws hold" in text
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["exit_code"] == 0
    assert {row["grade"] for row in report["findings"]} <= {"ok", "warn"}
    assert len(report["findings"]) == len(text.splitlines()) - 2
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]


def test_a_read_only_home_is_a_warning(tmp_path: Path) -> None:
    env = environment(HOME=NOWHERE)
    for name in ("EQFLOW_CACHE", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        env.pop(name, None)
    code, out, err = eqflow(["doctor"], env=env, cwd=tmp_path)
    assert code == 0, out + err
    warned = [line for line in out.splitlines() if line.startswith("warn")]
    assert [line[5:].split()[0] for line in warned] == ["cache", "home"]
    assert "EQFLOW_CACHE" in warned[0]
    assert "MPLCONFIGDIR" in warned[1]
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def versions(monkeypatch: Patch, **found: str | None) -> None:
    """As if these versions were installed; None where one is not at all."""
    true = metadata.version

    def version(name: str) -> str:
        said = found.get(name.replace("-", "_"), "as it is")
        if said is None:
            raise metadata.PackageNotFoundError(name)
        return true(name) if said == "as it is" else said

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.usefixtures("quick")
def test_a_package_that_is_too_old_or_missing_fails(monkeypatch: Patch, capsys: Captured) -> None:
    versions(monkeypatch, torch="2.8.1+cu126", scipy=None)
    assert doctor() == 2
    old, missing = sorted(failures(capsys.readouterr().out), reverse=True)
    assert "torch" in old
    assert "2.8.1+cu126, expected at least 2.9; pip install -U 'torch>=2.9'" in old
    assert "scipy" in missing
    assert "pip install 'scipy>=1.14'" in missing


@pytest.mark.usefixtures("quick")
def test_extras_are_no_failures(monkeypatch: Patch, capsys: Captured) -> None:
    versions(monkeypatch, optuna=None, tensorboard="2.3", posebusters=None)
    assert doctor() == 0
    text = capsys.readouterr().out
    assert "'eqflow[tune]' adds it" in text
    assert "'eqflow[metrics]' adds it" in text
    assert "warn tensorboard            2.3, expected at least 2.18" in text
    assert "pytest" not in text


def test_a_python_that_is_too_old_fails(monkeypatch: Patch) -> None:
    assert [finding.grade for finding in installation.look_at_python()] == ["ok"]
    monkeypatch.setattr(installation, "_python_bounds", lambda: ("3.99", "4"))
    (finding,) = installation.look_at_python()
    assert finding.grade == "FAIL"
    assert "expected 3.99 up to but not 4" in finding.text


def test_the_bounds_are_those_of_the_package() -> None:
    found = {needed.name: needed for needed in installation.requirements()}
    assert found["torch"].least == "2.9"
    assert found["torch"].extra == ""
    assert found["posebusters"].extra == "metrics"
    assert found["optuna"].least
    assert all(needed.least for needed in found.values())


def test_bounds_of_an_installed_package_are_read_from_its_metadata(monkeypatch: Patch) -> None:
    monkeypatch.setattr(installation, "_checkout", lambda: None)
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda name: [
            "torch>=2.9",
            "scipy<3,>=1.14",
            'posebusters>=0.6; extra == "metrics"',
            "triton>=3.6; platform_system == 'Linux' and extra == 'triton'",
            "wmi>=1; platform_system == 'Windows'",
        ],
    )
    assert installation.requirements() == [
        ("torch", "2.9", ""),
        ("scipy", "1.14", ""),
        ("posebusters", "0.6", "metrics"),
        ("triton", "3.6", "triton"),
    ]


def test_a_gpu_that_computes_nothing_fails(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def failing(device: object) -> None:
        raise RuntimeError("CUDA error: an uncorrectable ECC error was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_properties", failing)
    cpu, gpu = installation.look_at_devices()
    assert cpu.grade == "ok"
    assert gpu.grade == "FAIL"
    assert "uncorrectable ECC error was encountered)" in gpu.text


def test_a_driver_without_a_build_for_it_is_a_warning(tmp_path: Path, monkeypatch: Patch) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\n")
    monkeypatch.setattr(installation, "DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built_for, said in ((None, "build for the CPU; install one"), ("12.8", "see nvidia-smi")):
        monkeypatch.setattr(torch.version, "cuda", built_for)
        _, gpu = installation.look_at_devices()
        assert gpu.grade == "warn"
        assert "570.86.15" in gpu.text
        assert said in gpu.text


# What is computed


@pytest.mark.parametrize("name", ["weighted_difference", "segment_softmax", "attention_diffusion"])
def test_an_operation_that_is_wrong_is_named(monkeypatch: Patch, name: str) -> None:
    from eqflow.edges import reference

    assert [finding.grade for finding in computing.look_at_torch()] == ["ok"]
    true = getattr(reference, name)
    monkeypatch.setattr(reference, name, lambda *arguments: 1.001 * true(*arguments))
    (finding,) = computing.look_at_torch()
    assert finding.grade == "FAIL"
    assert finding.text.startswith(name)
    assert finding.code == ExitCode.NUMERICAL


def test_a_wrong_gradient_is_found_as_well(monkeypatch: Patch) -> None:
    from eqflow.edges import reference

    true = reference.squared_distance
    monkeypatch.setattr(
        reference, "squared_distance", lambda x, edges: true(2 * x - x.detach(), edges)
    )
    (finding,) = computing.look_at_torch()
    assert finding.grade == "FAIL"
    assert finding.text.startswith("squared_distance")


def test_a_kernel_that_disagrees_with_torch_fails(monkeypatch: Patch) -> None:
    kernels = pytest.importorskip("eqflow.edges.kernels")
    if torch.cuda.is_available():
        pytest.skip("kernels of this process are compiled")
    true = kernels.weighted_difference

    def weighted_difference(*arguments: object) -> torch.Tensor:
        return 1.5 * true(*arguments)

    monkeypatch.setattr(kernels, "weighted_difference", weighted_difference)
    (finding,) = computing.look_at_triton()
    assert finding.grade == "FAIL"
    assert finding.text.startswith("weighted_difference: its self-check on cpu is 5.0e-01 off")
    assert finding.code == ExitCode.NUMERICAL


def test_without_triton_torch_does_the_work(monkeypatch: Patch) -> None:
    monkeypatch.setattr(computing, "find_spec", lambda name: None)
    (finding,) = computing.look_at_triton()
    assert finding.grade == "ok"
    assert "not installed" in finding.text


def test_a_flow_that_breaks_a_law_fails_by_its_name(monkeypatch: Patch) -> None:
    from eqflow.nn import EGNNField

    forward = EGNNField.forward

    def broken(self: EGNNField, t, x, edges, context=None):  # type: ignore[no-untyped-def]
        return forward(self, t, x, edges, context) + torch.tensor([0.1, 0, 0], dtype=x.dtype) * x

    monkeypatch.setattr(EGNNField, "forward", broken)
    found = list(computing.look_at_flow())
    assert {finding.grade for finding in found} == {"FAIL"}
    assert any("rotations and reflections" in finding.about for finding in found)


@pytest.mark.usefixtures("quick")
def test_a_look_that_breaks_is_a_failure_and_the_others_go_on(
    monkeypatch: Patch, capsys: Captured
) -> None:
    def broken() -> Iterator[Finding]:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(computing, "look_at_pictures", broken)
    assert doctor() == 2
    text = capsys.readouterr().out
    assert "pictures               raised ImportError: libcudart.so.12" in text
    assert "temporary files" in text


# Folders


@pytest.mark.usefixtures("quick")
def test_a_folder_of_runs_that_cannot_be_made_fails(
    tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for folder in (NOWHERE, "file/runs"):
        assert doctor(f"dir={folder}") == 6
        (failed,) = failures(capsys.readouterr().out)
        assert "folder of runs" in failed
        assert folder in failed
        assert "give another run.dir" in failed
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("quick")
def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch: Patch, capsys: Captured) -> None:
    monkeypatch.setenv("EQFLOW_CACHE", NOWHERE)
    assert doctor() == 0
    assert "warn cache " in capsys.readouterr().out


def test_full_disks_fail_and_nearly_full_ones_warn(tmp_path: Path, monkeypatch: Patch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setenv("EQFLOW_CACHE", str(tmp_path))
    for free, grades in ((10_000, "FAIL warn warn FAIL ok"), (500 << 20, "warn warn warn warn ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(1 << 40, 0, free))
        found = list(places.look_at_places(str(tmp_path)))
        assert [finding.grade for finding in found] == grades.split()


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: Patch) -> None:
    def refused(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(places.fcntl, "flock", refused)
    found = {finding.about: finding for finding in places.look_at_places(str(tmp_path))}
    assert found["folder of runs"].grade == "warn"
    assert "no locks" in found["folder of runs"].text


# Exit codes


@pytest.mark.usefixtures("quick")
def test_the_exit_code_is_of_what_matters_most(monkeypatch: Patch, capsys: Captured) -> None:
    versions(monkeypatch, torch="1.0")
    assert doctor(f"dir={NOWHERE}") == 2

    def wrong() -> Iterator[Finding]:
        yield Finding("FAIL", "torch backend", "wrong", ExitCode.NUMERICAL)

    monkeypatch.setattr(computing, "look_at_torch", wrong)
    assert doctor(f"dir={NOWHERE}") == 4
    assert "3 failures" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["out=doctor.txt"], ["threads=0"], ["dri=runs"], ["dir="]])
def test_wrong_words_are_refused_before_anything_is_looked_at(
    capsys: Captured, words: list[str]
) -> None:
    assert doctor(*words) == 2
    assert "Python" not in capsys.readouterr().out


def test_findings_are_told_as_they_are_found() -> None:
    assert next(findings("runs")).about == "Python"
