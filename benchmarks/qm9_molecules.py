"""Whole QM9 molecules drawn from a trained joint run, by evaluations, and their log-likelihood.

Measures a run of `eqflow train experiment=qm9 data.path=… run.dir=…`:

- stability, validity and uniqueness of COUNT molecules for 25, 50 and 100 evaluations of the field
  (Euler, Heun) and for dopri5 at 1e-5, beside those of held-out molecules;
- the negative log-likelihood bound of held-out molecules with all its terms, by tolerance, with how
  far each tolerance is from the tightest and how far two independent scorings are apart.

    python benchmarks/qm9_molecules.py RUN_FOLDER DATA_PATH [COUNT] [SCORED] [--draws 4]
        [--parts PART …] [--solvers SOLVER …]

Parts are `held_out`, `drawn` (by `SOLVERS`), `scores` and `two_scorings`; those that are not asked
for stay in the results as they are, if they are of the same run: parts may run side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from harness import earlier_results, write_results

from eqflow.evaluate import bonds_of, negative_log_likelihood, table_metrics
from eqflow.flows import MolecularFlow, Solver, Status
from eqflow.geometry import Clouds
from eqflow.train.config import DataConfig
from eqflow.train.datasets import load_dataset
from eqflow.train.weights import load_with_config

SOLVERS = {
    "euler_25": Solver(method="euler", steps=25),
    "euler_50": Solver(method="euler", steps=50),
    "euler_100": Solver(method="euler", steps=100),
    "heun_50": Solver(method="heun", steps=25),
    "heun_100": Solver(method="heun", steps=50),
    "dopri5": Solver(),
}
TOLERANCES = (1e-6, 1e-5, 1e-4, 1e-3)
NAME = "qm9_molecules"
PARTS = ("held_out", "drawn", "scores", "two_scorings")


def main() -> None:
    """Draw, score, print and write."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("folder", type=Path)
    words.add_argument("data")
    words.add_argument("count", nargs="?", type=int, default=1000)
    words.add_argument("scored", nargs="?", type=int, default=32)
    words.add_argument("--draws", type=int, default=4, help="of features, a molecule")
    words.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    words.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    asked = words.parse_args()
    torch.set_num_threads(1)
    flow, config = load_with_config(asked.folder)
    if not isinstance(flow, MolecularFlow):
        raise SystemExit(f"{asked.folder}: not a run of whole molecules")
    data = DataConfig(**{**config["data"], "path": asked.data})
    held_out = load_dataset(data, config["seed"], []).parts["test"]
    summary = json.loads((asked.folder / "summary.json").read_text("utf-8"))
    run = {"training_cpu_seconds": summary["cpu_seconds"], "training_steps": summary["steps"]}
    few = held_out[: asked.scored]
    if "held_out" in asked.parts:
        add(run, "held_out", metrics(held_out[: asked.count]))
    for name in asked.solvers if "drawn" in asked.parts else ():
        found = drawn(flow, asked.count, SOLVERS[name])
        add(run, "drawn", {**earlier_results(NAME, run).get("drawn", {}), name: found})
    if "scores" in asked.parts:
        add(run, "scores", scores(flow, few, asked.draws))
    if "two_scorings" in asked.parts:
        add(run, "two_scorings", two_scorings(flow, few))


def add(run: dict[str, Any], part: str, found: dict[str, Any]) -> None:
    """Write a part beside what there is of the run."""
    parts = {**earlier_results(NAME, run), part: found}
    if "drawn" in parts:
        known = parts["drawn"]
        parts["drawn"] = {name: known[name] for name in SOLVERS if name in known}
    in_order = {name: parts[name] for name in PARTS if name in parts}
    write_results(NAME, {**run, **in_order})


def drawn(flow: MolecularFlow, count: int, solver: Solver) -> dict[str, Any]:
    """What molecules are like that one solver draws, and their cost."""
    started = time.process_time()
    found = flow.draw(count, seed=0, solver=solver)
    seconds = (time.process_time() - started) / count
    figures = {
        "molecules": count,
        "evaluations": float(found.evaluations.double().mean()),
        "failed": sum(status is not Status.SUCCESS for status in found.status),
        "cpu_seconds_a_molecule": seconds,
        **metrics(found.clouds),
    }
    print(solver.method, solver.steps, json.dumps(figures))
    return figures


def metrics(clouds: Clouds) -> dict[str, Any]:
    """Metrics of the distance tables with their intervals."""
    return {
        name: {"value": each.value, "low": each.low, "high": each.high}
        for name, each in table_metrics(bonds_of(clouds)).items()
    }


def scores(flow: MolecularFlow, clouds: Clouds, draws: int) -> dict[str, Any]:
    """The bound by tolerance, with the exact trace and the same features at each."""
    found: dict[str, Any] = {"molecules": len(clouds), "draws": draws}
    by_tolerance = {}
    for tolerance in TOLERANCES:
        solver = Solver(rtol=tolerance, atol=tolerance)
        started = time.process_time()
        scored = flow.score(clouds, draws=draws, seed=0, solver=solver)
        seconds = (time.process_time() - started) / len(clouds)
        nll = negative_log_likelihood(scored.log_prob)
        by_tolerance[tolerance] = scored.log_prob
        off = (scored.log_prob - by_tolerance[TOLERANCES[0]]).abs()
        found[f"{tolerance:g}"] = {
            "nll": nll.value,
            "nll_se": nll.se,
            "terms": {name: float(term.mean()) for name, term in scored.terms.items()},
            "mean_standard_error": float(scored.log_prob_se.mean()),
            "off_mean": float(off.mean()),
            "off_max": float(off.max()),
            "evaluations": float(scored.evaluations.double().mean()) / draws,
            "cpu_seconds_a_molecule": seconds,
        }
        print(tolerance, json.dumps(found[f"{tolerance:g}"]))
    return found


def two_scorings(flow: MolecularFlow, clouds: Clouds) -> dict[str, float]:
    """How far apart the bounds of one draw each are, features and all drawn anew."""
    solver = Solver(rtol=1e-4, atol=1e-4)
    one, other = (flow.score(clouds, draws=1, seed=seed, solver=solver) for seed in (1, 2))
    apart = (one.log_prob - other.log_prob).abs()
    found = {
        "apart_median": float(apart.median()),
        "apart_mean": float(apart.mean()),
        "apart_max": float(apart.max()),
    }
    print("two scorings", json.dumps(found))
    return found


if __name__ == "__main__":
    main()
