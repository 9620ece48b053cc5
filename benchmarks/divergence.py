"""Cost of a divergence relative to one evaluation of the field, by method and size.

Of the generic routes to an exact trace, which serve fields without a way of their own, some know of
the field that it turns with its state and carries tangents; a plain function hides both. "Training"
is the cost of a trace and its gradient relative to a velocity and its gradient.

python benchmarks/divergence.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import race, write_results
from torch import Tensor

from eqflow import rng
from eqflow.flows import (
    AbstractDivergence,
    ContinuousFlow,
    Exact,
    ExactForward,
    Hutchinson,
    HutchPlusPlus,
)
from eqflow.flows.exact import ExactReverse
from eqflow.flows.trace import Velocity
from eqflow.geometry import Segments, centred
from eqflow.nn import EGNNField

SIZES = {
    "4 points in 2-D": (64, 4, 2, 32, 3),
    "13 points in 3-D": (16, 13, 3, 32, 3),
    "18 points in 3-D, 6 layers of 64": (8, 18, 3, 64, 6),
}
# A graph of all directions of the largest takes gigabytes.
TRAINED = tuple(SIZES)[:2]
# Method, and whether it is given a plain function.
EXACT: dict[str, tuple[AbstractDivergence, bool]] = {
    "exact, reverse mode": (ExactReverse(), True),
    "exact, reverse mode, rotations known": (ExactReverse(), False),
    "exact, forward mode": (ExactForward(), True),
    "exact, tangents, rotations known": (ExactForward(), False),
}
METHODS: dict[str, tuple[AbstractDivergence, bool]] = {
    "exact": (Exact(), False),
    **EXACT,
    "hutchinson, 1 probe": (Hutchinson(1), False),
    "hutchinson, 4 probes": (Hutchinson(4), False),
    "hutch++, 2 + 2": (HutchPlusPlus(2, 2), False),
}


def main() -> None:
    """Print and write the tables."""
    torch.set_num_threads(1)
    tables = {}
    for size in SIZES:
        tables[size] = compared(size, METHODS, with_gradient=False)
    for size in TRAINED:
        tables[f"{size}, training"] = compared(size, EXACT, with_gradient=True)
    write_results("divergence", tables)


def compared(
    size: str, methods: dict[str, tuple[AbstractDivergence, bool]], with_gradient: bool
) -> dict[str, float]:
    """Seconds of each method in those of the field."""
    count, points, dimension, width, layers = SIZES[size]
    with rng.seeded(0, "weights"):
        flow = ContinuousFlow(EGNNField(width=width, layers=layers))
    clouds = Segments(torch.arange(count + 1) * points)
    source = rng.generator(0, "state")
    x = centred(rng.normal((clouds.rows, dimension), torch.zeros(()), source), clouds)
    x.requires_grad_(with_gradient)
    leaves = [x, *flow.parameters()] if with_gradient else []
    velocity = flow.dynamics(clouds)(torch.tensor(0.5), x)

    cases: dict[str, Callable[[], object]] = {}
    cases["field"] = partial(once, velocity, x, leaves)
    for name, (method, is_plain) in methods.items():
        probes = method.probes(x, clouds, source)
        at = velocity.__call__ if is_plain else velocity
        cases[name] = partial(once, partial(estimates, method, at, clouds, probes), x, leaves)
    with torch.set_grad_enabled(with_gradient):
        seconds = race(cases, rounds=5)
    table = {name: taken / seconds["field"] for name, taken in seconds.items()}
    title = f"{size}, training" if with_gradient else size
    print(title, *(f"{name}: {ratio:.1f}" for name, ratio in table.items()), sep="\n  ")
    return table


def estimates(
    method: AbstractDivergence, velocity: Velocity, clouds: Segments, probes: Tensor, x: Tensor
) -> Tensor:
    """Estimates of the trace, shape (B, K)."""
    return method(velocity, x, clouds, probes).estimates


def once(function: Callable[[Tensor], Tensor], x: Tensor, leaves: list[Tensor]) -> None:
    """The function, and its gradient by `leaves` where there are any."""
    value = function(x)
    if leaves:
        torch.autograd.grad(value.sum(), leaves, allow_unused=True)


if __name__ == "__main__":
    main()
