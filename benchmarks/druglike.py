"""Molecules of 40 atoms drawn from a run on drug-like conformers: what they are like and cost.

Measures a run of `eqflow train experiment=druglike data.path=… run.dir=…`: stability and validity
of COUNT molecules of 40 atoms beside those of the run's held-out molecules, seconds of CPU a draw,
and the log-likelihood of a held-out molecule by the exact trace and by probes.

    python benchmarks/druglike.py RUN_FOLDER DATA_PATH [COUNT]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from harness import write_results
from qm9_molecules import metrics

from eqflow.flows import Hutchinson, MolecularFlow, Solver, Status
from eqflow.flows.exact import Exact
from eqflow.geometry import Clouds
from eqflow.train.config import DataConfig
from eqflow.train.datasets import load_dataset
from eqflow.train.weights import load_with_config

ATOMS = 40


def main() -> None:
    """Draw, score, print and write."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("folder", type=Path)
    words.add_argument("data")
    words.add_argument("count", nargs="?", type=int, default=100)
    asked = words.parse_args()
    torch.set_num_threads(1)
    flow, config = load_with_config(asked.folder)
    if not isinstance(flow, MolecularFlow):
        raise SystemExit(f"{asked.folder}: not a run of whole molecules")
    data = DataConfig(**{**config["data"], "path": asked.data})
    held_out = load_dataset(data, config["seed"], []).parts["test"]
    summary = json.loads((asked.folder / "summary.json").read_text("utf-8"))
    nearest = (held_out.sizes - ATOMS).abs().argmin()
    results = {
        "training_cpu_seconds": summary["cpu_seconds"],
        "training_steps": summary["steps"],
        "held_out": metrics(held_out[: asked.count]),
        "drawn": drawn(flow, asked.count),
        "score": scored(flow, held_out[int(nearest)]),
    }
    print(json.dumps(results, indent=1))
    write_results("druglike", results)


def drawn(flow: MolecularFlow, count: int) -> dict[str, Any]:
    """What molecules of 40 atoms are like that fifty Euler steps draw."""
    started = time.process_time()
    found = flow.draw(count, seed=0, sizes=ATOMS, solver=Solver(method="euler", steps=50))
    return {
        "atoms": ATOMS,
        "evaluations": float(found.evaluations.double().mean()),
        "failed": sum(status is not Status.SUCCESS for status in found.status),
        "cpu_seconds_a_molecule": (time.process_time() - started) / count,
        **metrics(found.clouds),
    }


def scored(flow: MolecularFlow, cloud: Clouds) -> dict[str, Any]:
    """The bound of one molecule, one draw of features, and its cost."""
    found: dict[str, Any] = {"atoms": int(cloud.sizes)}
    for name, divergence in (("exact", Exact()), ("hutchinson", Hutchinson(4))):
        started = time.process_time()
        scores = flow.score(cloud, draws=1, divergence=divergence)
        found[name] = {
            "cpu_seconds": time.process_time() - started,
            "log_prob": float(scores.log_prob),
            "evaluations": int(scores.evaluations),
        }
    return found


if __name__ == "__main__":
    main()
