"""Which versions are installed, against the bounds the package states, and on what they run."""

from __future__ import annotations

import os
import platform
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eqflow.cli.checkup.finding import FAIL, OK, WARN, Finding
from eqflow.errors import ExitCode

CODE = ExitCode.USAGE

# What people lack without it, for what no one needs who does not ask for it.
WITHOUT = {
    "tensorboard": "train writes no events for it; metrics.csv holds the same figures",
    "metrics": "molecules are judged without PoseBusters' checks",
    "tune": "eqflow tune has no search",
    "triton": "kernels for GPUs are left to torch",
}
DRIVER = Path("/proc/driver/nvidia/version")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_SYSTEM = re.compile(r"platform_system\s*==\s*['\"]([^'\"]+)['\"]")


class Requirement(NamedTuple):
    """A package that is asked for.

    Attributes:
        name: Of the package.
        least: Its lowest version; empty where any will do.
        extra: What it belongs to; empty where everybody needs it.
    """

    name: str
    least: str
    extra: str


def look_at_python() -> Iterator[Finding]:
    """Python itself, against the versions that the package is for."""
    found = platform.python_version()
    least, below = _python_bounds()
    if _numbers(least) <= sys.version_info[:2] < _numbers(below):
        yield Finding(OK, "Python", f"{found} on {platform.platform()}", CODE)
        return
    text = f"{found}, expected {least} up to but not {below}; make an environment with one of these"
    yield Finding(FAIL, "Python", text, CODE)


def look_at_packages() -> Iterator[Finding]:
    """Every dependency, and those of extras, against their lower bounds."""
    yield Finding(OK, "eqflow", _own_version(), CODE)
    for needed in requirements():
        if needed.extra and needed.extra not in WITHOUT:
            continue  # tools of who works on the package
        asked = f"{needed.name}>={needed.least}" if needed.least else needed.name
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            if needed.extra:
                text = f"not installed: {WITHOUT[needed.extra]}; 'eqflow[{needed.extra}]' adds it"
                yield Finding(OK, needed.name, text, CODE)
            else:
                text = f"not installed, expected {asked}; pip install '{asked}'"
                yield Finding(FAIL, needed.name, text, CODE)
            continue
        if _numbers(found) < _numbers(needed.least):
            grade = WARN if needed.extra else FAIL
            text = f"{found}, expected at least {needed.least}; pip install -U '{asked}'"
            yield Finding(grade, needed.name, text, CODE)
        else:
            bound = f" (at least {needed.least})" if needed.least else ""
            yield Finding(OK, needed.name, f"{found}{bound}", CODE)


def look_at_devices() -> Iterator[Finding]:
    """The CPU and every GPU, with a product computed on each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    said = f"{threads} thread{'s' if threads > 1 else ''} on {cores} cores, {_memory()}"
    if threads > (cores or 1):
        yield Finding(WARN, "CPU", f"{said}: more threads than cores; say threads={cores}", CODE)
    else:
        yield Finding(OK, "CPU", said, CODE)
    driver = _driver()
    if not torch.cuda.is_available():
        if torch.version.cuda is None and driver is None:
            yield Finding(OK, "GPU", "none, and torch is a build for the CPU", CODE)
        elif torch.version.cuda is None:
            text = f"the driver {driver} is here, but torch is a build for the CPU; install one "
            yield Finding(WARN, "GPU", f"{text}for CUDA to use the GPU", CODE)
        else:
            text = f"none found by torch, a build for CUDA {torch.version.cuda}; driver "
            yield Finding(
                OK if driver is None else WARN,
                "GPU",
                text + (driver or "none") + ("" if driver is None else "; see nvidia-smi"),
                CODE,
            )
        return
    for place in range(torch.cuda.device_count()):
        yield _gpu(place, driver)


def requirements() -> list[Requirement]:
    """What the package asks for: as installed, or as `pyproject.toml` of a checkout says it."""
    found = []
    for text in _stated_requirements():
        matched = _REQUIREMENT.fullmatch(text)
        if matched is None:
            continue
        marker = matched[3] or ""
        system = _SYSTEM.search(marker)
        if system is not None and system[1] != platform.system():
            continue
        bounds = [bound.strip() for bound in matched[2].split(",")]
        least = next((bound[2:].strip() for bound in bounds if bound.startswith(">=")), "")
        extra = _EXTRA.search(marker)
        found.append(Requirement(matched[1], least, "" if extra is None else extra[1]))
    return found


def _gpu(place: int, driver: str | None) -> Finding:
    name = f"GPU {place}"
    try:
        device = torch.device("cuda", place)
        known = torch.cuda.get_device_properties(device)
        ones = torch.ones(64, 64, device=device)
        right = float((ones @ ones).sum()) == 64.0**3
        free, whole = torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).strip().splitlines()[0][:160]
        return Finding(FAIL, name, f"computes nothing ({said}); see nvidia-smi", CODE)
    text = (
        f"{known.name}, capability {known.major}.{known.minor}, {free / 2**30:.1f} of "
        f"{whole / 2**30:.1f} GiB free, CUDA {torch.version.cuda}, driver {driver or 'unknown'}"
    )
    if not right:
        return Finding(FAIL, name, f"{text}: a product of ones is wrong", ExitCode.NUMERICAL)
    return Finding(OK, name, text, CODE)


def _stated_requirements() -> list[str]:
    project = _checkout()
    if project is None:
        return metadata.requires("eqflow") or []
    extras = project.get("optional-dependencies", {}).items()
    return [*project["dependencies"]] + [
        f"{text}{' and' if ';' in text else ';'} extra == '{extra}'"
        for extra, texts in extras
        for text in texts
    ]


def _checkout() -> dict[str, Any] | None:
    """What `pyproject.toml` says, where the package runs from a checkout."""
    path = Path(__file__).resolve().parents[3] / "pyproject.toml"
    if not path.is_file():
        return None
    project: dict[str, Any] = tomllib.loads(path.read_text("utf-8")).get("project", {})
    return project if project.get("name") == "eqflow" else None


def _python_bounds() -> tuple[str, str]:
    """The lowest version, and the one below which all are."""
    project = _checkout()
    if project is None:
        text = metadata.metadata("eqflow")["Requires-Python"]
    else:
        text = project["requires-python"]
    bounds = dict(re.findall(r"(>=|<)\s*([0-9.]+)", text))
    return bounds[">="], bounds["<"]


def _own_version() -> str:
    from eqflow import __version__

    return f"{__version__}, from {Path(__file__).resolve().parents[2]}"


def _numbers(version: str) -> tuple[int, ...]:
    """A version as numbers: `2.13.0+cpu` is (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))


def _memory() -> str:
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "memory unknown"
    return f"{whole / 2**30:.1f} GiB of memory"


def _driver() -> str | None:
    """The version of NVIDIA's driver, as the kernel says it; None where there is none."""
    try:
        found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", DRIVER.read_text("utf-8", "replace"))
    except OSError:
        return None
    return "of an unknown version" if found is None else found[1]
