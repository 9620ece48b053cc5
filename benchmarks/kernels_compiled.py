"""What every kernel takes of a GPU, by kernel, width and precision: said by the compiler, not run.

    python benchmarks/kernels_compiled.py

Registers a thread, bytes spilled a thread, bytes of shared memory a program, for compute
capabilities 9.0 (H100, H200) and 8.0 (A100). Takes some ten minutes of one core, and seconds where
Triton has them in its cache.
"""

from __future__ import annotations

import os

os.environ.pop("TRITON_INTERPRET", None)

import triton
from harness import write_results

from eqflow.edges.kernels.aot import SHARED_LIMIT, compile_all
from eqflow.edges.kernels.cases import all_cases


def main() -> None:
    """Compile all cases and write what came out."""
    reports = compile_all(all_cases())
    for entry in reports:
        print(entry)
    write_results(
        "kernels_compiled",
        {
            "triton": triton.__version__,
            "shared_limit": {str(arch): limit for arch, limit in SHARED_LIMIT.items()},
            "kernels": reports,
        },
    )


if __name__ == "__main__":
    main()
