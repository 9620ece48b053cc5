"""Cost of a divergence relative to one evaluation of the field, by method and size.

python benchmarks/divergence.py
"""

from __future__ import annotations

import torch
from harness import race, write_results

from eqflow import rng
from eqflow.flows import ContinuousFlow, Exact, ExactForward, Hutchinson, HutchPlusPlus
from eqflow.geometry import Segments, centred
from eqflow.nn import EGNNField

SIZES = {
    "4 points in 2-D": (64, 4, 2, 32, 3),
    "13 points in 3-D": (16, 13, 3, 32, 3),
    "18 points in 3-D, 6 layers of 64": (8, 18, 3, 64, 6),
}
METHODS = {
    "exact": Exact(),
    "exact, reverse mode": Exact(),
    "exact, forward mode": ExactForward(chunk=8),
    "hutchinson, 1 probe": Hutchinson(1),
    "hutchinson, 4 probes": Hutchinson(4),
    "hutch++, 2 + 2": HutchPlusPlus(2, 2),
}


def main() -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    table = {}
    for size, (count, points, dimension, width, layers) in SIZES.items():
        with rng.seeded(0, "weights"):
            flow = ContinuousFlow(EGNNField(width=width, layers=layers))
        clouds = Segments(torch.arange(count + 1) * points)
        source = rng.generator(0, "state")
        x = centred(rng.normal((clouds.rows, dimension), torch.zeros(()), source), clouds)
        velocity = flow.dynamics(clouds)(torch.tensor(0.5), x)
        cases = {"field": lambda v=velocity, x=x: v(x)}
        for name, method in METHODS.items():
            probes = method.probes(x, clouds, source)
            # A plain function hides that the field has a way of its own.
            at = velocity.__call__ if name == "exact, reverse mode" else velocity
            cases[name] = lambda m=method, v=at, x=x, c=clouds, p=probes: m(v, x, c, p)
        with torch.no_grad():
            seconds = race(cases, rounds=5)
        table[size] = {name: taken / seconds["field"] for name, taken in seconds.items()}
        print(size, *(f"{name}: {ratio:.1f}" for name, ratio in table[size].items()), sep="\n  ")
    write_results("divergence", table)


if __name__ == "__main__":
    main()
