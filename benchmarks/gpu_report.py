"""What `gpu.py` found, made readable: ratios to baselines, fractions of floors, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_attention import PYG
from gpu_fields import COMPILED
from gpu_roofline import roofline
from gpu_ways import PADDED, PORT

# What others are compared to, and the word for it in a table.
BASELINES = {
    PORT: "port",
    PADDED: "padded",
    PYG: "PyG",
    "torch, fp32": "torch",
    COMPILED: "compiled",
}
_LONGEST = 160

Outcome = dict[str, Any]
Jobs = Mapping[str, Outcome]


def ceilings_of(jobs: Jobs) -> dict[str, float]:
    """Measured rates by name, as `roofline` takes them."""
    return {
        name: case["ceiling"]
        for job in jobs.values()
        for name, case in job["cases"].items()
        if "ceiling" in case
    }


def compare(jobs: Jobs, ceilings: Mapping[str, float]) -> None:
    """Add to each timed case how often as fast it is as each baseline, and its roofline.

    A case is called "way: what"; its baselines are those of the same what.
    """
    for job in jobs.values():
        cases = job["cases"]
        for name, case in cases.items():
            way, _, what = name.partition(": ")
            if "ms" not in case or not what:
                continue
            case["times_as_fast_as"] = {
                baseline: cases[other]["ms"] / case["ms"]
                for baseline in BASELINES
                if baseline != way and "ms" in cases.get(other := f"{baseline}: {what}", {})
            }
            if "work" in case and {"copy", "fp32", "tf32", "bf16"} <= ceilings.keys():
                case["roofline"] = roofline(case, ceilings)


def lines(section: str, jobs: Jobs) -> Iterator[str]:
    """A table of one section: what failed, and what was measured."""
    yield f"== {section}"
    passed, checked = 0, 0
    for name, job in jobs.items():
        if job["ended"] != "done":
            yield f"! {name}: {job['ended']}"
        for case, result in job["cases"].items():
            where = f"{name}: {case}"
            checked += "passed" in result
            passed += bool(result.get("passed"))
            if "error" in result or "skipped" in result:
                yield f"! {where}: {result.get('error', 'skipped')}".replace("\n", " ")[:_LONGEST]
            elif "passed" in result and not result["passed"]:
                words = "" if result["repeats"] else "; does not repeat"
                yield f"! {where}: {_errors(result)}, more than {result['tolerance']:.0e}{words}"
            elif "ms" in result:
                yield _timing(case, result)
            elif "errors" in result and "passed" not in result:
                yield f"  {case:<62}{_errors(result)}"
    if checked:
        yield f"  {passed} of {checked} checks passed"


def _timing(case: str, result: Mapping[str, Any]) -> str:
    words = [f"  {case:<62}{result['ms']:10.3f} ms"]
    if "ceiling" in result:
        words.append(f"{result['ceiling'] / 1e12:8.2f} T/s")
    if "roofline" in result:
        words.append(f"{result['roofline']['fraction']:6.1%} of {result['roofline']['bound']}")
    if "saved_mib" in result:
        words.append(f"{result['saved_mib']:.0f} MiB saved")
    if case.partition(": ")[0] not in BASELINES:
        ratios = result.get("times_as_fast_as", {})
        words += [f"{ratio:.2f}× {BASELINES[name]}" for name, ratio in ratios.items()]
    if "errors" in result:
        words.append(_errors(result))
    return " ".join(words)


def _errors(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {error:.1e}" for name, error in result["errors"].items())
