"""What the exact trace costs on joint states of positions and features, and a score with it.

The network is the published E-NF's. Its trace by hand is set against the routes that serve any
field, forward tangents and reverse mode, on complete graphs of molecules of 9, 18 and 29 atoms.
Then molecules of QM9 are scored, one draw of the dequantiser each.

    python benchmarks/joint_scores.py WEIGHTS DATA
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
from harness import race, write_results

import eqflow
from eqflow.flows import ExactForward, Solver
from eqflow.flows.exact import ExactReverse
from eqflow.flows.field_at import FieldAt
from eqflow.flows.molecular import MolecularFlow
from eqflow.geometry import Clouds, Segments
from eqflow.train.enf import load_enf

COUNTS = ((1, 3), (1, 9), (1, 18), (8, 18), (1, 29))  # molecules, atoms of each
SCORED = (9, 14, 18, 21, 29)
TOLERANCES = (1e-4, 1e-5)


def main(weights: str, data: str) -> None:
    """Print and write both tables."""
    torch.set_num_threads(1)
    flow = load_enf(weights).eval()
    clouds = eqflow.read(data)
    found = {"evaluations": evaluations(flow), "scores": scores(flow, clouds)}
    write_results("joint_scores", found)


@torch.no_grad()
def evaluations(flow: MolecularFlow) -> dict[str, dict[str, float]]:
    """Seconds of each route in those of the field."""
    table = {}
    for count, atoms in COUNTS:
        clouds = Segments.of_lengths(torch.full((count,), atoms))
        source = torch.Generator().manual_seed(0)
        z = flow.continuous.base.sample(clouds, 3, next(flow.parameters()), source)
        velocity: FieldAt = flow.continuous.dynamics(clouds)(torch.tensor(0.5), z)
        none = z.new_zeros(0)
        seconds = race(
            {
                "field": partial(velocity, z),
                "by hand": partial(velocity.exact_trace, z),
                "forward tangents": partial(ExactForward(), velocity, z, clouds, none),
                "reverse mode": partial(ExactReverse(), velocity, z, clouds, none),
            },
            rounds=5,
        )
        title = f"{count} of {atoms} atoms"
        table[title] = {name: taken / seconds["field"] for name, taken in seconds.items()}
        table[title]["field, milliseconds"] = 1e3 * seconds["field"]
        print(title, *(f"{name}: {value:.1f}" for name, value in table[title].items()), sep="\n  ")
    return table


def scores(flow: MolecularFlow, clouds: Clouds) -> dict[str, dict[str, float]]:
    """CPU seconds of the exact score of the first molecule of each size."""
    table = {}
    sizes = clouds.sizes.tolist()
    for atoms in SCORED:
        place = sizes.index(atoms)
        for tolerance in TOLERANCES:
            solver = Solver(rtol=tolerance, atol=tolerance)
            started = time.process_time()
            scored = flow.score(clouds[place : place + 1], draws=1, solver=solver)
            title = f"{atoms} atoms at {tolerance:g}"
            table[title] = {
                "cpu_seconds": time.process_time() - started,
                "evaluations": int(scored.evaluations[0]),
                "log_prob": float(scored.log_prob[0]),
            }
            print(title, table[title], flush=True)
    return table


if __name__ == "__main__":
    main(*sys.argv[1:])
