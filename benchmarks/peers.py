"""eqflow against other packages that do the same work, on one CPU thread.

Weights are copied and results compared before anything is timed; where a peer computes another
function the row says so. Each pair takes turns in one process; figures are medians of CPU seconds.
Peak memory is the growth of resident memory in a process of its own. What is compared, and how it
differs, stands in `peers_egnn`, `peers_attention` and `peers_matching`.

python benchmarks/peers.py [rounds=7]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, write_results
from solvers import peak_mebibytes

# Distribution and what one imports.
PEERS = {
    "torch-geometric": "torch_geometric",
    "egnn-pytorch": "egnn_pytorch",
    "einops": "einops",
    "torchcfm": "torchcfm",
    "POT": "ot",
    "flow-matching": "flow_matching",
}
# Compiled extensions that PyG uses where it finds them.
PYG_EXTENSIONS = ("pyg_lib", "torch_scatter")
DEEPEST = 4


def main(rounds: int = 7) -> None:
    """Run all comparisons, write the table and draw it."""
    require_peers()
    import peers_attention
    import peers_egnn
    import peers_matching
    from peers_contest import settled
    from peers_figure import draw

    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "packages": {name: version(name) for name in PEERS},
        "pyg_extensions": {name: find_spec(name) is not None for name in PYG_EXTENSIONS},
        "rounds": rounds,
        "memory": memory(),
    }
    with settled():
        results["egnn"] = peers_egnn.compare(rounds)
        results["attention"] = peers_attention.compare(rounds)
        results["matching"] = peers_matching.compare(rounds)
    write_results("peers", results)
    draw(results, RESULTS / "peers.png")


def require_peers() -> None:
    """End with the names of those that are missing."""
    missing = [name for name, module in PEERS.items() if find_spec(module) is None]
    if missing:
        raise SystemExit(
            f"peers.py compares with packages that are not installed: {', '.join(missing)}. "
            "Run: pip install --no-deps -r benchmarks/requirements.txt"
        )


def memory() -> list[dict[str, Any]]:
    """Peak of forward + backward of each EGNN stack, and the ratio to eqflow's."""
    from peers_egnn import COUNTERPARTS, DENSE_OWN, LOOPS, PAIRS, SHAPES

    table = []
    for shape in SHAPES:
        mine = {name: _peak_of_process(name, shape) for name in (PAIRS, LOOPS)}
        for peer, counterpart in COUNTERPARTS.items():
            peak = _peak_of_process(peer, shape)
            row = {
                "case": f"{shape}, {DEEPEST} layers",
                "work": "peak memory",
                "peer": peer,
                "eqflow_mebibytes": mine[counterpart],
                "peer_mebibytes": peak,
                "ratio": peak / mine[counterpart],
                "same_function": peer != DENSE_OWN,
            }
            table.append(row)
            print(f"{row['case']:<36}{row['work']:<20}{peer:<32}{row['ratio']:6.2f}×", flush=True)
    return table


def _peak_of_process(name: str, shape: str) -> float:
    """Peak in a fresh process that returns memory as soon as it is free."""
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(Path(__file__)), "--peak", name, shape]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(output.stdout))


def _print_peak(name: str, shape: str) -> None:
    from peers_egnn import runner

    torch.set_num_threads(1)
    print(json.dumps(peak_mebibytes(runner(name, shape, DEEPEST).backward)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        _print_peak(*sys.argv[2:])
    else:
        main(*(int(argument.partition("=")[2]) for argument in sys.argv[1:]))
