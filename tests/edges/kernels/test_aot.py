"""All kernels compile for GPUs that are not here, can be launched there, and take no more registers
and spill no more than when `benchmarks/kernels_compiled.py` was last run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eqflow.edges.kernels.aot import SHARED_LIMIT

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
RECORD = ROOT / "benchmarks" / "results" / "kernels_compiled.json"

# One width and precision of each kernel, and the widest message pass.
QUICK = r"fp32 64 channels|^messages.* F64 tf32$|^messages F256 bf16$"


def compiled(pattern: str, *archs: int, compiler: str | None = None) -> dict:
    """The reports of `compile_all.py`, in a process that compiles rather than interprets."""
    path = os.pathsep.join(filter(None, [compiler, str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, HERE / "compile_all.py", pattern, *map(str, archs)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def complaints(found: dict) -> list[str]:
    """What is wrong with which kernel."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    recorded = {(entry["kernel"], entry["arch"]): entry for entry in record["kernels"]}
    is_same_compiler = record["triton"] == found["triton"]
    wrong = []
    for entry in found["kernels"]:
        name = entry["kernel"], entry["arch"]
        if "error" in entry:
            wrong.append(f"{name}: {entry['error']}")
        elif name not in recorded:
            wrong.append(f"{name}: not recorded; run benchmarks/kernels_compiled.py")
        else:
            before = recorded[name]
            # Another compiler allocates registers in another way.
            if is_same_compiler and entry["spilled"] > before["spilled"]:
                wrong.append(f"{name}: spills {entry['spilled']} bytes, was {before['spilled']}")
            if is_same_compiler and entry["registers"] > before["registers"]:
                wrong.append(
                    f"{name}: takes {entry['registers']} registers, was {before['registers']}"
                )
            if entry["shared"] > SHARED_LIMIT[entry["arch"]]:
                wrong.append(f"{name}: {entry['shared']} bytes of shared memory are too much")
    return wrong


def test_kernels_compile_and_fit() -> None:
    found = compiled(QUICK, 90, 80)
    assert found["kernels"]
    assert complaints(found) == []


def test_kernels_compile_with_the_triton_of_older_torch() -> None:
    older = os.environ.get("EQFLOW_OLDER_TRITON")
    if older is None:
        pytest.skip("needs another Triton: `make test` sets EQFLOW_OLDER_TRITON to its folder")
    found = compiled(QUICK, 90, compiler=older)
    assert found["triton"] != json.loads(RECORD.read_text(encoding="utf-8"))["triton"]
    assert found["kernels"]
    assert complaints(found) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_every_width_and_precision_compiles_and_fits(arch: int) -> None:
    assert complaints(compiled("", arch)) == []


def test_a_kernel_that_does_not_fit_is_noticed() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    first = {**record["kernels"][0], "shared": 10**6}
    second = {**record["kernels"][1], "spilled": 10**6}
    third = {**record["kernels"][2], "registers": 10**6}
    fourth = {"kernel": "none", "arch": 90, "error": "CompilationError"}
    wrong = complaints({"triton": record["triton"], "kernels": [first, second, third, fourth]})
    assert [text.split(": ")[1].split()[0] for text in wrong] == [
        "1000000",
        "spills",
        "takes",
        "CompilationError",
    ]
