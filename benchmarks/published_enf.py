"""The published E-NF of QM9 inside eqflow: its samples by the metrics, and what a score costs.

Molecules are drawn from the published weights as published (dopri5 at 1e-4, sizes by frequency) in
batches; the published tables say 85 % stable atoms and 4.9 % stable molecules. Five small molecules
are scored with the exact trace and one draw of the dequantiser. A batch of the size that the
published code was timed on is scored as published: one draw, one Gaussian probe, dopri5 at 1e-4.

    python benchmarks/published_enf.py WEIGHTS DATA [--count 10000] [--parts samples …]

Parts that are not asked for stay in the results as they were measured.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from ase.build import molecule
from harness import earlier_results, processor, write_results

from eqflow.data import read
from eqflow.evaluate import Estimate, bonds_of, table_metrics
from eqflow.flows import Hutchinson, Solver
from eqflow.flows.molecular import MolecularFlow
from eqflow.geometry import Clouds
from eqflow.train.enf import load_enf

PUBLISHED = Solver(rtol=1e-4, atol=1e-4)
PART = 250  # molecules drawn together
SMALL = ("CH4", "H2O", "NH3", "CH3OH", "C2H6")
BATCH, EVERY, SIZES = 32, 200, range(23, 28)
# CPU seconds of an evaluation of velocity and trace at such a batch with the published code, and
# how many its solver took, measured on another machine.
PUBLISHED_EVALUATION, PUBLISHED_EVALUATIONS = 0.38, 206


def main() -> None:
    """Draw, score, print and write."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("weights")
    words.add_argument("data", help="QM9, for the part one_probe")
    words.add_argument("--count", type=int, default=10_000)
    words.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    asked = words.parse_args()
    torch.set_num_threads(1)
    flow = load_enf(asked.weights).eval()
    found = earlier_results("published_enf")
    for part in asked.parts:
        measured = PARTS[part](flow, asked)
        found[part] = {"processor": processor(), **measured}
        write_results("published_enf", found)


def samples(flow: MolecularFlow, asked: argparse.Namespace) -> dict[str, Any]:
    """Stability and validity of what is drawn, and CPU seconds a molecule."""
    count = asked.count
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


def scores(flow: MolecularFlow, asked: argparse.Namespace) -> dict[str, Any]:
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


def one_probe(flow: MolecularFlow, asked: argparse.Namespace) -> dict[str, Any]:
    """What scoring a batch of 32 molecules of 23 to 27 atoms costs."""
    known = read(asked.data)
    large = torch.isin(known.sizes, torch.tensor(SIZES)).nonzero().squeeze(1)
    clouds = known[large[::EVERY][:BATCH]]
    started = time.process_time()
    scored = flow.score(
        clouds, draws=1, divergence=Hutchinson(1, "gaussian"), solver=PUBLISHED, seed=0
    )
    seconds = (time.process_time() - started) / BATCH
    published = PUBLISHED_EVALUATION * PUBLISHED_EVALUATIONS / BATCH
    evaluations = float(scored.evaluations.double().mean())
    print(
        f"one probe at 1e-4: {seconds:.3f} CPU-s a molecule in {evaluations:.0f} evaluations, "
        f"published {published:.2f}: {published / seconds:.1f}×"
    )
    return {
        "molecules": BATCH,
        "cpu_seconds_a_molecule": seconds,
        "evaluations": evaluations,
        "published_cpu_seconds_a_molecule": published,
        "ratio": published / seconds,
    }


PARTS: dict[str, Any] = {"samples": samples, "scores": scores, "one_probe": one_probe}


def _plain(estimate: Estimate) -> dict[str, float]:
    return {name: float(getattr(estimate, name)) for name in ("value", "low", "high")}


if __name__ == "__main__":
    main()
