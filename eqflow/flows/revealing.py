"""Positions that flow while categories are revealed, in turns.

Between two of `T + 1` times positions are integrated with the categories as they are; then some
are revealed, by the posterior at the time before. A step of a fixed-step method evaluates the field
there in any case, so that categories cost nothing besides.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow, Transport
from eqflow.flows.fallback import carry
from eqflow.flows.masking import Masking
from eqflow.flows.ode import Solver
from eqflow.flows.results import travelled
from eqflow.geometry import Segments
from eqflow.nn import AbstractField


@torch.no_grad()
def revealed(
    flow: ContinuousFlow,
    z: Tensor,
    clouds: Segments,
    context: Tensor | None,
    *,
    path: Masking,
    solver: Solver,
    seed: int,
    fallback: bool = True,
) -> tuple[Transport, Tensor]:
    """Carry noise to positions, and masks to categories.

    Args:
        flow: The flow in standardised units, whose field predicts categories.
        z: Noise, shape (N, d).
        clouds: Points of each structure.
        context: What is known besides categories, shape (N, C), or None.
        path: How categories are revealed.
        solver: How a stretch is integrated; `solver.steps` is how many there are.
        seed: What is drawn after each stretch is a function of it and of a point's place.
        fallback: Whether other solvers are tried on a stretch where it fails.

    Returns:
        Where positions were carried, those of failed structures being NaN, and the categories
        (N,), none of them masked.
    """
    stretch = replace(solver, steps=1, capture=False)
    times = torch.linspace(LATENT, DATA, solver.steps + 1, dtype=torch.float64).tolist()
    x, kinds = z, torch.full_like(clouds.ids, path.mask)
    so_far: dict[str, Any] | None = None
    for place, (t, s) in enumerate(pairwise(times)):
        listening = _Listening(flow.field)
        there = carry(
            ContinuousFlow(listening),
            x,
            clouds,
            path.context(kinds, x, context),
            start=t,
            end=s,
            solver=stretch,
            fallback=fallback,
        )
        source = rng.generator(seed, place, device=x.device)
        kinds = path.step(kinds, listening.first_logits(), t, s, source)
        # One that failed goes on from the origin, so that the field has rows for all.
        x = there.x.masked_fill(~clouds.expand(there.succeeded.to(x.device)).unsqueeze(1), 0.0)
        so_far = travelled(so_far, there)
    there = replace(there, **(so_far or {}))
    lost = ~clouds.expand(there.succeeded.to(x.device)).unsqueeze(1)
    return replace(there, x=x.masked_fill(lost, float("nan"))), kinds


class _Listening(AbstractField):
    """A field that remembers what it took the categories for where an integration started.

    Every method evaluates the velocity there, of all structures; so types cost no evaluation.
    """

    def __init__(self, field: AbstractField) -> None:
        super().__init__()
        self.field = field
        self.cutoff = field.cutoff
        self.context_features = field.context_features
        self.logits: Tensor | None = None

    def connect(self, x: Tensor, clouds: Segments) -> Edges:
        return self.field.connect(x, clouds)

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        v, logits = self.field.velocity_and_logits(t, x, edges, context)
        self.logits = logits if self.logits is None else self.logits
        return v

    def first_logits(self) -> Tensor:
        if self.logits is None:
            raise UsageError(
                f"found {type(self.field).__name__}, which predicts no categories; expected a "
                "field such as MaskedEGNNField."
            )
        return self.logits
