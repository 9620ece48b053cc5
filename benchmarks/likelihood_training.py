"""Maximum-likelihood training on DW4: cost of a step against the published method, and NLL.

First, one training step (loss and gradient) at the published shape (3 layers of 32, 100 clouds,
dopri5 at 1e-4, one Rademacher probe) with the same weights and probe: a port of the published code
by the adjoint, and eqflow by direct differentiation and by its adjoint. Second, the held-out NLL of
an eqflow field trained that way, step by step.

    python benchmarks/likelihood_training.py [--steps 400]
"""

from __future__ import annotations

import argparse

import torch
from harness import race, write_results
from published_port import PublishedField, published_loss

from eqflow import rng
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
from eqflow.geometry import Clouds, Segments
from eqflow.nn import EGNNField
from eqflow.targets import DW4

CLOUDS, WIDTH, LAYERS, TOLERANCE = 100, 32, 3, 1e-4


def main() -> None:
    """Run both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = DW4()
    x = target.sample(20_000, seed=0)
    scale = float((x.square().sum() / (len(x) * target.degrees_of_freedom)).sqrt())
    with rng.seeded(0, "weights"):
        field = EGNNField(width=WIDTH, layers=LAYERS)
    cost = step_cost(field, x[:CLOUDS] / scale, options.rounds)
    curve = likelihood_curve(field, target, x, scale, options.steps)
    write_results("likelihood_training", {"cost": cost, "curve": curve})


def step_cost(field: EGNNField, x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Table 1: CPU seconds of a step, the port's over ours."""
    port = PublishedField(x.shape[1], x.shape[2], WIDTH, LAYERS)
    port.copy_from(field)
    flat = x.reshape(len(x), -1)
    clouds = Segments(torch.arange(len(x) + 1) * x.shape[1])
    batch = Batch(x.reshape(-1, x.shape[2]), clouds)
    flow = ContinuousFlow(field)
    probe = Hutchinson(1).probes(batch.x, clouds, rng.generator(0, "probe"))

    class OneProbe(Hutchinson):
        """The same probe for everyone, so that losses can be compared."""

        def probes(self, *_: object) -> torch.Tensor:
            return probe

    losses: dict[str, float] = {}

    def published() -> None:
        port.zero_grad()
        loss, dynamics = published_loss(port, flat.clone(), probe[0].reshape(flat.shape), TOLERANCE)
        forward = dynamics.evaluations
        loss.backward()
        losses["published"] = float(loss.detach())
        losses["published_evaluations"] = forward
        losses["published_evaluations_backward"] = dynamics.evaluations - forward

    def ours(gradient: str) -> None:
        field.zero_grad()
        solver = Solver(rtol=TOLERANCE, atol=TOLERANCE, gradient=gradient)  # type: ignore[arg-type]
        loss = MaximumLikelihood(solver, OneProbe(1))(flow, batch, rng.generator(0))
        loss.value.backward()
        losses[gradient] = loss.terms["loss"]
        losses[f"{gradient}_evaluations"] = loss.terms["evaluations"]

    seconds = race(
        {
            "published": published,
            "direct": lambda: ours("direct"),
            "adjoint": lambda: ours("adjoint"),
        },
        rounds,
    )
    print(f"{'one step':<24}{'CPU s':>8}{'ratio':>8}{'loss':>10}{'evaluations':>13}")
    for name, taken in seconds.items():
        ratio = seconds["published"] / taken
        print(
            f"{name:<24}{taken:8.3f}{ratio:8.2f}{losses[name]:10.4f}"
            f"{losses[f'{name}_evaluations']:13.0f}"
        )
    return {**{f"{name}_seconds": taken for name, taken in seconds.items()}, **losses}


def likelihood_curve(
    field: EGNNField, target: DW4, x: torch.Tensor, scale: float, steps: int
) -> list[dict[str, float]]:
    """Table 2: held-out NLL and KL along training."""
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
