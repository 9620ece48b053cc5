"""What an exact log-likelihood of a molecule costs, and what a coarser solver does to it.

Draws molecules from a trained run of `qm9_positions` and scores them with the exact trace: by
dopri5 at falling tolerances and by rk4. Errors are against the smallest tolerance.

    python benchmarks/exact_scores.py RUN [count=16]
"""

from __future__ import annotations

import sys
import time

import torch
from harness import write_results

import eqflow
from eqflow.flows import Solver

SOLVERS = {
    "dopri5, 1e-6": Solver(rtol=1e-6, atol=1e-6),
    "dopri5, 1e-5": Solver(rtol=1e-5, atol=1e-5),
    "dopri5, 1e-4": Solver(rtol=1e-4, atol=1e-4),
    "rk4, 24 steps": Solver("rk4", steps=24),
    "rk4, 12 steps": Solver("rk4", steps=12),
}


def main(run: str, count: int = 16) -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    flow = eqflow.load(run)
    drawn = flow.sample(count, seed=0)
    table: dict[str, dict[str, float]] = {}
    exact = None
    for name, solver in SOLVERS.items():
        started = time.process_time()
        scores = flow.score(drawn, solver=solver)
        taken = (time.process_time() - started) / count
        exact = scores.log_prob if exact is None else exact
        error = (scores.log_prob - exact).abs()
        table[name] = {
            "cpu_seconds_a_molecule": taken,
            "evaluations": float(scores.evaluations.float().mean()),
            "mean_error_nats": float(error.mean()),
            "largest_error_nats": float(error.max()),
        }
        print(name, table[name], flush=True)
    # Step sizes obey the worst molecule of a batch, so a score has a little of its mates in it.
    solver = SOLVERS["dopri5, 1e-5"]
    alone = torch.cat([flow.score(drawn[k : k + 1], solver=solver).log_prob for k in range(count)])
    apart = (alone - exact).abs()
    table["dopri5, 1e-5, each alone"] = {
        "mean_error_nats": float(apart.mean()),
        "largest_error_nats": float(apart.max()),
    }
    print("each alone", table["dopri5, 1e-5, each alone"])
    write_results("exact_scores", {"atoms": drawn.sizes.tolist(), "solvers": table})


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument.partition("=")[2]) for argument in sys.argv[2:]))
