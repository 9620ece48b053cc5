"""Maximum-likelihood training on DW4: cost of a step against the published method, and NLL.

First, one training step (loss and gradient) at published shapes (dopri5 at 1e-4, one Rademacher
probe) with the same weights and probe: a port of the published code by the adjoint, and eqflow by
direct differentiation, also with compiled message passes (what compiling takes is not counted), by
checkpoints and by its adjoint. Second, the held-out NLL of an eqflow field trained that way, step
by step.

    python benchmarks/likelihood_training.py [--steps 400] [--only NAME …] [--rounds ROUNDS]

With `--only` the shapes whose names begin so are measured; what was measured of the others, and the
second table where there are no steps, stays in the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from edge_layers import drawn_sizes
from harness import earlier_results, processor, race, write_results
from published_port import PublishedField, published_loss

from eqflow import rng
from eqflow.edges import use_backend
from eqflow.evaluate import kl_to_target, negative_log_likelihood
from eqflow.flows import (
    Batch,
    Compositions,
    ContinuousFlow,
    Flow,
    Hutchinson,
    MaximumLikelihood,
    Solver,
)
from eqflow.geometry import Clouds, Segments, centred
from eqflow.nn import EGNNField
from eqflow.targets import DW4

CLOUDS, WIDTH, LAYERS, TOLERANCE = 100, 32, 3, 1e-4

# Sizes of the clouds, dimension, width, layers, rounds.
SHAPES = {
    "DW4, B = 100": (lambda: torch.full((100,), 4), 2, 32, 3, 7),
    "LJ13, B = 100": (lambda: torch.full((100,), 13), 3, 32, 3, 3),
    "LJ55, B = 16": (lambda: torch.full((16,), 55), 3, 32, 3, 3),
    "QM9, B = 64, n ≤ 29": (lambda: drawn_sizes(64, 18, 3, 9, 29), 3, 64, 6, 2),
}


def main() -> None:
    """Run both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = earlier_results("likelihood_training")
    for name, (*shape, rounds) in SHAPES.items():
        if name.startswith(tuple(options.only)):
            cost = step_cost(name, *shape, options.rounds or rounds)
            results.setdefault("cost", {})[name] = {"processor": processor(), **cost}
            write_results("likelihood_training", results)
    if options.steps:
        results["curve"] = likelihood_curve(options.steps)
        write_results("likelihood_training", results)


def step_cost(
    name: str,
    sizes: Callable[[], torch.Tensor],
    dimension: int,
    width: int,
    layers: int,
    rounds: int,
) -> dict[str, float]:
    """Table 1: CPU seconds of a step on random clouds of unit variance, the port's over ours."""
    with rng.seeded(0, "weights"):
        field = EGNNField(width=width, layers=layers)
    port = PublishedField(width, layers)
    port.copy_from(field)
    clouds = Segments.of_lengths(sizes())
    source = rng.generator(0, "state")
    x = centred(rng.normal((clouds.rows, dimension), torch.zeros(()), source), clouds)
    batch, edges = Batch(x, clouds), field.connect(x, clouds)
    flow = ContinuousFlow(field)
    probe = Hutchinson(1).probes(x, clouds, rng.generator(0, "probe"))

    class OneProbe(Hutchinson):
        """The same probe for everyone, so that losses can be compared."""

        def probes(self, *_: object) -> torch.Tensor:
            return probe

    found: dict[str, float] = {}

    def published() -> None:
        port.zero_grad()
        loss, dynamics = published_loss(port, x.clone(), probe[0], edges, TOLERANCE)
        forward = dynamics.evaluations
        loss.backward()
        found["published_loss"] = float(loss.detach())
        found["published_evaluations"] = forward
        found["published_evaluations_backward"] = dynamics.evaluations - forward

    def ours(way: str) -> None:
        gradient, _, compiled = way.partition(", ")
        field.zero_grad()
        solver = Solver(rtol=TOLERANCE, atol=TOLERANCE, gradient=gradient)  # type: ignore[arg-type]
        with use_backend("torch", compiled=bool(compiled)):
            loss = MaximumLikelihood(solver, OneProbe(1))(flow, batch, rng.generator(0))
            loss.value.backward()
        found[f"{way}_loss"] = loss.terms["loss"]
        found[f"{way}_evaluations"] = loss.terms["evaluations"]

    cases = {"published": published}
    for way in ("direct", "direct, compiled", "checkpoint", "adjoint"):
        cases[way] = lambda way=way: ours(way)
    seconds = race(cases, rounds)
    print(f"{name:<24}{'CPU s':>8}{'ratio':>8}{'loss':>10}{'evaluations':>13}")
    for case, taken in seconds.items():
        found[f"{case}_seconds"] = taken
        found[f"{case}_ratio"] = seconds["published"] / taken
        print(
            f"  {case:<22}{taken:8.3f}{found[f'{case}_ratio']:8.2f}{found[f'{case}_loss']:10.4f}"
            f"{found[f'{case}_evaluations']:13.0f}",
            flush=True,
        )
    return found


def likelihood_curve(steps: int) -> list[dict[str, float]]:
    """Table 2: held-out NLL and KL along training on DW4."""
    target = DW4()
    x = target.sample(20_000, seed=0)
    scale = float((x.square().sum() / (len(x) * target.degrees_of_freedom)).sqrt())
    with rng.seeded(0, "weights"):
        field = EGNNField(width=WIDTH, layers=LAYERS)
    flow = Flow(ContinuousFlow(field), 2, scale, Compositions.of(Clouds.from_dense(x)))
    objective = MaximumLikelihood(Solver(rtol=TOLERANCE, atol=TOLERANCE), Hutchinson(1))
    optimizer = torch.optim.Adam(field.parameters(), lr=5e-4)
    held_out = target.sample(1000, seed=1)
    curve = []
    for step in range(steps + 1):
        if step % max(steps // 8, 1) == 0:
            log_prob = flow.log_prob(Clouds.from_dense(held_out))
            nll = negative_log_likelihood(log_prob)
            kl = kl_to_target(target.log_prob(held_out.double()), log_prob)
            print(f"step {step:5d}  held-out NLL {nll}  KL {kl}")
            curve.append({"step": step, "nll": nll.value, "kl": kl.value, "kl_se": kl.se})
        source = rng.generator(0, "train", step)
        chosen = rng.permutation(len(x), source)[:CLOUDS]
        loss = objective(flow.continuous, flow.encode(Clouds.from_dense(x[chosen])), source)
        optimizer.zero_grad()
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(field.parameters(), 1.0)
        optimizer.step()
    return curve


if __name__ == "__main__":
    main()
