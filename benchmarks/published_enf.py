"""The published E-NF of QM9 inside eqflow: its samples by the metrics, and what a score costs.

Molecules are drawn from the published weights as published (dopri5 at 1e-4, sizes by frequency) in
batches; the published tables say 85 % stable atoms and 4.9 % stable molecules. Five small molecules
are scored with the exact trace and one draw of the dequantiser.

    python benchmarks/published_enf.py WEIGHTS [count=10000]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from ase.build import molecule
from harness import write_results

from eqflow.evaluate import Estimate, bonds_of, table_metrics
from eqflow.flows import Solver
from eqflow.flows.molecular import MolecularFlow
from eqflow.geometry import Clouds
from eqflow.train.enf import load_enf

PUBLISHED = Solver(rtol=1e-4, atol=1e-4)
PART = 250  # molecules drawn together
SMALL = ("CH4", "H2O", "NH3", "CH3OH", "C2H6")


def main(weights: str, count: int = 10_000) -> None:
    """Draw, score, print and write."""
    torch.set_num_threads(1)
    flow = load_enf(weights).eval()
    found = {"samples": samples(flow, count), "scores": scores(flow)}
    write_results("published_enf", found)


def samples(flow: MolecularFlow, count: int) -> dict[str, Any]:
    """Stability and validity of what is drawn, and CPU seconds a molecule."""
    parts, evaluations, failed = [], [], 0
    started = time.process_time()
    for seed in range(-(-count // PART)):
        drawn = flow.draw(min(PART, count - seed * PART), seed=seed, solver=PUBLISHED)
        arrived = [k for k, status in enumerate(drawn.status) if status.name == "SUCCESS"]
        failed += len(drawn.status) - len(arrived)
        parts.append(drawn.clouds[arrived])
        evaluations.append(float(drawn.evaluations.double().mean()))
        print(f"{(seed + 1) * PART} drawn", flush=True)
    seconds = (time.process_time() - started) / count
    found = table_metrics(bonds_of(Clouds.join(parts)))
    for name, estimate in found.items():
        print(name, estimate)
    print(f"{seconds:.3f} CPU-s a molecule, {failed} of {count} failed")
    return {
        "count": count,
        "failed": failed,
        "cpu_seconds_a_molecule": seconds,
        "evaluations": sum(evaluations) / len(evaluations),
        **{name: _plain(estimate) for name, estimate in found.items()},
    }


def scores(flow: MolecularFlow) -> dict[str, Any]:
    """Exact log-likelihood of five small molecules, one draw each, by tolerance."""
    clouds = Clouds.join([Clouds.from_ase(molecule(name)) for name in SMALL])
    found = {}
    for tolerance in (1e-4, 1e-5):
        solver = Solver(rtol=tolerance, atol=tolerance)
        started = time.process_time()
        scored = flow.score(clouds, draws=1, solver=solver)
        seconds = time.process_time() - started
        print(f"{len(SMALL)} molecules at {tolerance:g}: {seconds:.2f} CPU-s")
        found[f"{tolerance:g}"] = {
            "cpu_seconds": seconds,
            "log_prob": dict(zip(SMALL, scored.log_prob.tolist(), strict=True)),
        }
    return found


def _plain(estimate: Estimate) -> dict[str, float]:
    return {name: float(getattr(estimate, name)) for name in ("value", "low", "high")}


if __name__ == "__main__":
    main(sys.argv[1], *(int(word.partition("=")[2]) for word in sys.argv[2:]))
