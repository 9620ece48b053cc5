"""Whether the scores of a run know real structures from corrupted ones.

Structures of a file that the run has not been trained on are scored as they are and corrupted in
each way of `eqflow.evaluate.corruptions`, by the exact trace. A joint model draws the same features
for both.

    python benchmarks/out_of_distribution.py RUN DATA [count=32] [draws=4] [first=0]

RUN may be the published E-NF's weights as well (`.npz`). `first` is where to start in DATA.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
from harness import RESULTS, write_results
from torch import Tensor

import eqflow
from eqflow.data import with_known_elements
from eqflow.evaluate.corruptions import out_of_distribution
from eqflow.flows import Flow, MolecularFlow
from eqflow.geometry import Clouds
from eqflow.train.enf import load_enf
from eqflow.view.corruptions import corruptions


def main(run: str, data: str, count: int = 32, draws: int = 4, first: int = 0) -> None:
    """Print, draw and write."""
    torch.set_num_threads(1)
    flow = load_enf(run).eval() if run.endswith(".npz") else eqflow.load(run)
    clouds, _ = with_known_elements(eqflow.read(data)[first:], flow.elements, "skip")
    clouds = clouds[:count]
    started = time.process_time()
    found = out_of_distribution(partial(scored, flow, draws), clouds)
    taken = time.process_time() - started
    table = {}
    for name, each in found.items():
        print(f"{name}: {each.difference} nats, lower {each.lower}, AUROC {each.auroc}")
        table[name] = {
            what: getattr(each, what)._asdict() for what in ("difference", "lower", "auroc")
        }
    print(f"{taken:.0f} CPU-s")
    notes = {name: f"AUROC {each.auroc.value:.2f}" for name, each in found.items()}
    differences = {name: each.differences for name, each in found.items()}
    corruptions(differences, RESULTS / "out_of_distribution.png", notes=notes)
    figures = {"count": len(clouds), "draws": draws, "cpu_seconds": taken, "corruptions": table}
    write_results("out_of_distribution", figures)


def scored(flow: Flow | MolecularFlow, draws: int, clouds: Clouds) -> Tensor:
    """Exact log-likelihoods, shape (B,)."""
    if isinstance(flow, MolecularFlow):
        return flow.score(clouds, draws=draws).log_prob
    return flow.score(clouds).log_prob


if __name__ == "__main__":
    words = [word.partition("=") for word in sys.argv[3:]]
    main(*sys.argv[1:3], **{name: int(value) for name, _, value in words})
