"""Kernels compiled ahead of time for a GPU that need not be there.

What a compiler can say about a kernel without a device: whether it compiles, whether it can be
launched at all (shared memory), and whether its registers suffice (spills go to local memory).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.backends.nvidia as nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from eqflow.errors import UsageError

# Shared memory a program may have, in bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}


# One line of `compile_all`: what was compiled, and a report or an error.
Entry = dict[str, Any]


class Case(NamedTuple):
    """One kernel with everything it is compiled for.

    Attributes:
        name: Unique among the cases of a module.
        kernel: A `triton.jit` function.
        signature: Type of each argument in Triton's words, "constexpr" for constants.
        constexprs: Value of each constant.
        num_warps: Warps a program.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int


class Report(NamedTuple):
    """What a compiled kernel takes.

    Attributes:
        registers: A thread.
        spilled: Bytes of local memory a thread.
        shared: Bytes of shared memory a program.
    """

    registers: int
    spilled: int
    shared: int


def compile_report(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    arch: int,
    num_warps: int = 4,
    num_stages: int = 2,
) -> Report:
    """Compile a kernel for compute capability `arch`, such as 90, and look at the result.

    Pointers are taken to be multiples of 16 bytes, as torch allocates them.

    Raises:
        UsageError: If this installation of Triton has no `cuobjdump`, or it fails.
    """
    names = list(signature)
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True},
    )
    usage = _resource_usage(compiled.asm["cubin"])
    return Report(usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared)


def compile_all(cases: Iterable[Case], archs: Iterable[int] = tuple(SHARED_LIMIT)) -> list[Entry]:
    """A report, or the error, of each case for each compute capability.

    Every case is compiled afresh or taken from Triton's cache. Nothing may have been decorated for
    the interpreter: run this in a process without `TRITON_INTERPRET`.
    """
    entries = []
    for case, arch in product(cases, archs):
        name, kernel, signature, constants, warps = case
        entry: Entry = {"kernel": name, "arch": arch}
        try:
            # Where its assembler fails, Triton prints the whole program.
            with redirect_stdout(StringIO()):
                report = compile_report(kernel, signature, constants, arch, warps)
            entry |= report._asdict()
        except Exception as error:  # whatever a compiler raises is the answer
            entry["error"] = f"{type(error).__name__}: {str(error)[-300:]}"
        entries.append(entry)
    return entries


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            run = subprocess.run(
                [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise UsageError(
                f"compile_report: {tool} does not run ({error}), expected the one of Triton's "
                "wheel for Linux. Install triton from PyPI."
            ) from error
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", run.stdout)}
