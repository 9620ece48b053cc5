"""Compile kernels for GPUs that need not be there, and print the reports as JSON.

    python tests/edges/kernels/compile_all.py [PATTERN [ARCH …]]

Takes the cases in whose names the regular expression is found. A process of its own, because
`TRITON_INTERPRET`, which the tests beside this need, is read when a kernel is decorated.
"""

import json
import os
import sys


def main(pattern: str = "", *archs: str) -> None:
    """Print the reports of the cases that `pattern` finds."""
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    from eqflow.edges.kernels.aot import SHARED_LIMIT, compile_all
    from eqflow.edges.kernels.cases import all_cases

    reports = compile_all(all_cases(pattern), map(int, archs) if archs else SHARED_LIMIT)
    json.dump({"triton": triton.__version__, "kernels": reports}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
