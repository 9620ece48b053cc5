"""Frames: how exact, how smooth and how expensive each is, beside FAENet's.

    python benchmarks/frames.py [DATA] [rounds=7]

Errors of equivariance on every cloud of `eqflow.testing`; the gradient of `vᵀJv` as two principal
moments become equal; jumps where a cloud is perturbed; the cost of frames of 1,000 clouds against
FAENet's transform, and of orbit averages by one call of the backbone. With DATA, QM9 as `load_qm9`
or `eqflow.read` take it, frames of 1,000 of its molecules as well. One CPU thread.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import torch
from frames_cost import COUNT, frames_against_faenet, one_call, random_molecules
from frames_errors import errors
from frames_figure import draw_gradients, draw_jumps
from frames_smoothness import gradients, jumps
from harness import RESULTS, write_results
from peers_contest import settled

import eqflow
from eqflow import rng
from eqflow.geometry import Clouds


def main(data: str | None = None, rounds: int = 7) -> None:
    """Measure everything, print, write and draw."""
    torch.set_num_threads(1)
    results = {"faenet": version("faenet"), "rounds": rounds, "cost": {}}
    with settled():
        random = "1,000 random clouds of 20 points"
        results["cost"][random] = frames_against_faenet(random, random_molecules(), rounds)
        if data is not None:
            qm9 = "1,000 molecules of QM9"
            results["cost"][qm9] = frames_against_faenet(qm9, some_of(eqflow.read(data)), rounds)
        results["one_call"] = one_call(rounds)
    results["errors"] = errors()
    results["gradients"] = gradients()
    results["jumps"] = jumps()
    write_results("frames", results)
    draw_gradients(results["gradients"], RESULTS / "frames_gradients.png")
    draw_jumps(results["jumps"], RESULTS / "frames_jumps.png")


def some_of(clouds: Clouds) -> Clouds:
    """As many as are random, drawn without replacement, in float32."""
    chosen = rng.permutation(len(clouds), rng.generator(0, "frames", "qm9"))[:COUNT]
    return Clouds.join([clouds[int(i)] for i in chosen]).to(torch.float32)


if __name__ == "__main__":
    places = [word for word in sys.argv[1:] if "=" not in word]
    options = {n: int(v) for n, _, v in (w.partition("=") for w in sys.argv[1:] if "=" in w)}
    main(*places, **options)
