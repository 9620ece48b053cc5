"""Flow matching on particle systems with known energies: NLL, KL, effective sample size, cost.

Trains the preset with the public command, then measures the trained run on structures it has never
seen: fresh exact samples of the target. KL(target ‖ model) pairs both log-densities on the same
samples; log Z is the target's own (DW4: quadrature; Lennard-Jones: Bennett's ratio).

    python benchmarks/particles.py dw4 [train.steps=… any key of eqflow train]
    python benchmarks/particles.py lj13
    python benchmarks/particles.py lj13 run=FOLDER      measures a run that is there
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, write_results

import eqflow
from eqflow.cli.main import main as eqflow_command
from eqflow.evaluate import effective_sample_size, kl_to_target, negative_log_likelihood
from eqflow.flows import Solver
from eqflow.geometry import Clouds
from eqflow.targets import target_by_name
from eqflow.view.histograms import energies as plot_energies

# Structures with an exact trace: a direction a degree of freedom, each over all pairs.
SCORED = {"dw4": 2000, "lj13": 128, "lj55": 8}
RK4_48, RK4_24 = Solver(method="rk4", steps=12), Solver(method="rk4", steps=6)
ADAPTIVE = Solver(rtol=1e-5, atol=1e-5)
# The solver of the figures, and others for comparison where they are affordable.
SOLVERS = {
    "dw4": {"dopri5_1e-5": ADAPTIVE, "rk4_48": RK4_48, "rk4_24": RK4_24},
    "lj13": {"rk4_48": RK4_48},
    "lj55": {"rk4_48": RK4_48},
}
COMPARED = 8  # structures on which the solver of the figures is compared with dopri5 at 1e-5
DRAWN = 2000
FRESH_SEED = 1_000_001


def main() -> None:
    """Train or resume the preset, then measure."""
    system, *words = sys.argv[1:]
    if words and words[0].startswith("run="):
        folder = Path(words[0].removeprefix("run="))
    else:
        folder = Path("runs") / f"benchmark_{system}"
        command = ["train", f"experiment={system}", f"run.dir={folder}", "train.threads=1", *words]
        code = eqflow_command(command)
        if code != 0:
            sys.exit(code)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    torch.set_num_threads(1)
    results = measured(system, folder)
    results |= {"training_steps": summary["steps"], "training_cpu_seconds": summary["cpu_seconds"]}
    for name, value in results.items():
        print(f"{name:<28}{value}")
    write_results(f"particles_{system}", results)


def measured(system: str, folder: Path) -> dict[str, Any]:
    """Figures of a trained run on fresh samples of its target."""
    target = target_by_name(system)
    flow = eqflow.load(folder)
    count = SCORED[system]
    held_out = target.sample(DRAWN, seed=FRESH_SEED)
    solvers = SOLVERS[system]
    chosen, solver = next(iter(solvers.items()))
    scores = flow.score(Clouds.from_dense(held_out[:count]), solver=solver)
    nll = negative_log_likelihood(scores.log_prob)
    kl = kl_to_target(target.log_prob(held_out[:count].double()), scores.log_prob)
    finer = flow.score(Clouds.from_dense(held_out[:COMPARED]), solver=ADAPTIVE)
    change = (finer.log_prob - scores.log_prob[:COMPARED]).abs().max()

    weighted = {}
    for name, other in solvers.items():
        drawn = flow.draw(count, seed=FRESH_SEED, with_log_prob=True, solver=other)
        x = drawn.clouds.segments.to_dense(drawn.clouds.x.double())
        weighted[f"ess_{name}"] = effective_sample_size(target.log_prob(x), drawn.scored())

    drawn = flow.draw(DRAWN, seed=FRESH_SEED)
    energies = target.energy(drawn.clouds.segments.to_dense(drawn.clouds.x.double()))
    truth = target.energy(held_out.double())
    plot_energies(truth, energies, RESULTS / f"{system}_energies.png")
    return {
        "nll": nll.value,
        "nll_se": nll.se,
        "kl": kl.value,
        "kl_se": math.hypot(kl.se, target.log_z.error),
        "scored": count,
        "solver": chosen,
        "largest_change_with_dopri5_1e-5": float(change),
        **weighted,
        "mean_energy_samples": float(energies.mean()),
        "median_energy_samples": float(energies.median()),
        "mean_energy_target": target.mean_energy.value,
        "median_energy_target": float(truth.median()),
        "energy_histogram_distance": total_variation(energies, truth),
        "evaluations_per_sample": int(drawn.evaluations.max()),
        "evaluations_per_score": int(scores.evaluations.max()),
        "log_z": target.log_z.value,
        "entropy": target.entropy.value,
    }


def total_variation(a: torch.Tensor, b: torch.Tensor, bins: int = 40) -> float:
    """Total variation between two histograms over the central 99 % of `b`; the rest is one bin."""
    low, high = torch.quantile(b, torch.tensor([0.005, 0.995], dtype=b.dtype))
    edges = torch.linspace(float(low), float(high), bins + 1, dtype=b.dtype)

    def histogram(values: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(torch.bucketize(values, edges), minlength=bins + 2)
        return counts.double() / len(values)

    return float((histogram(a) - histogram(b)).abs().sum() / 2)


if __name__ == "__main__":
    main()
