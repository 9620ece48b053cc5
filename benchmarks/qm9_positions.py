"""QM9 geometries for given compositions: bond lengths and distances against held-out molecules.

Measures a trained run (`eqflow train experiment=qm9_positions data.path=… run.dir=…`). For the
compositions of held-out molecules it draws as many geometries and compares: bond-length histograms
by pair of elements, Wasserstein-1 distances, closest contacts, and the log-likelihood. Each
distance stands beside the same number between two halves of the real molecules: the least one can
expect.

    python benchmarks/qm9_positions.py RUN_FOLDER DATA_PATH [COUNT]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from harness import RESULTS, write_results

import eqflow
from eqflow.data import load_qm9, split
from eqflow.evaluate import negative_log_likelihood
from eqflow.evaluate.distances import bond_lengths, pair_distances, wasserstein
from eqflow.flows import Flow, Hutchinson, Solver, Status
from eqflow.geometry import Clouds
from eqflow.train.weights import load_with_config
from eqflow.view.histograms import bonds as plot_bonds

SHORTEST = 0.6  # Å: no two atoms of a molecule are nearer (H–H is 0.74)


def main() -> None:
    """Draw for the compositions of held-out molecules and compare."""
    folder, path, *rest = sys.argv[1:]
    count = int(rest[0]) if rest else 500
    torch.set_num_threads(1)
    flow, config = load_with_config(folder)
    held_out = test_part(path, config)
    real, other = held_out[:count], held_out[count : 2 * count]
    results: dict[str, object] = {"molecules": len(real)}
    for name, solver in {
        "dopri5": Solver(),
        "rk4_48": Solver(method="rk4", steps=12),
        "rk4_24": Solver(method="rk4", steps=6),
    }.items():
        started = time.process_time()
        drawn, evaluations, failed = drawn_like(flow, real, solver)
        seconds = (time.process_time() - started) / len(real)
        results[name] = {
            "evaluations": evaluations,
            "failed": failed,
            "cpu_seconds_per_molecule": seconds,
            **compared(drawn, real),
        }
        print(name, json.dumps(results[name], indent=1))
        if name == "dopri5":
            plot_bonds(bond_lengths(real), bond_lengths(drawn), RESULTS / "qm9_bonds.png")
            drawn[:100].write(Path(folder) / "samples.extxyz")
    results["held_out_against_held_out"] = compared(other, real)
    scores = flow.score(real[:64], divergence=Hutchinson(4), seed=0)
    nll = negative_log_likelihood(scores.log_prob)
    results |= {"nll": nll.value, "nll_se": nll.se, "nll_count": nll.count}
    summary = json.loads((Path(folder) / "summary.json").read_text("utf-8"))
    results |= {"training_cpu_seconds": summary["cpu_seconds"], "training_steps": summary["steps"]}
    print(json.dumps(results["held_out_against_held_out"], indent=1), nll)
    write_results("qm9_positions", results)


def test_part(path: str, config: dict) -> Clouds:
    """The molecules the run was not trained on, by the run's own split."""
    molecules = load_qm9(path)
    data = config["data"]
    fractions = {
        "train": 1 - data["validation"] - data["test"],
        "validation": data["validation"],
        "test": data["test"],
    }
    groups = eqflow.data.duplicates(molecules)
    return molecules[split(len(molecules), fractions, config["seed"], groups=groups)["test"]]


def drawn_like(flow: Flow, real: Clouds, solver: Solver) -> tuple[Clouds, int, int]:
    """One geometry for each molecule's composition, evaluations of the field, failures."""
    parts, evaluations, failed = [], 0, 0
    for start in range(0, len(real), 64):
        template = real[start : start + 64]
        numbers = [cloud.numbers for cloud in template]
        drawn = flow.draw(len(template), seed=start, numbers=numbers, solver=solver)
        arrived = [i for i, status in enumerate(drawn.status) if status is Status.SUCCESS]
        failed += len(template) - len(arrived)
        evaluations = max(evaluations, int(drawn.evaluations.max()))
        parts.append(drawn.clouds[arrived])
    return Clouds.join(parts), evaluations, failed


def compared(drawn: Clouds, real: Clouds) -> dict[str, float]:
    """Distances between distributions (Å), and how many molecules have no two atoms too near."""
    found: dict[str, float] = {}
    mine, theirs = bond_lengths(drawn), bond_lengths(real)
    for pair in list(theirs)[:6]:
        found[f"wasserstein_{pair}"] = wasserstein(mine[pair], theirs[pair])
        found[f"count_ratio_{pair}"] = len(mine[pair]) / len(theirs[pair])
    found["wasserstein_pairs"] = wasserstein(pair_distances(drawn), pair_distances(real))
    closest = torch.stack([pair_distances(cloud).min() for cloud in drawn])
    found["fraction_without_clash"] = float((closest > SHORTEST).double().mean())
    return found


if __name__ == "__main__":
    main()
