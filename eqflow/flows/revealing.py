"""Positions that flow while categories are revealed, in turns.

Between two of `T + 1` times positions are integrated with the categories as they are; then some
are revealed, by the posterior at the time before. A step of a fixed-step method evaluates the field
there in any case, so that categories cost nothing besides.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow, Transport
from eqflow.flows.masking import Masking
from eqflow.flows.ode import Solver, Status
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

    Returns:
        Where positions were carried, those of failed structures being NaN, and the categories
        (N,), none of them masked.
    """
    stretch = replace(solver, steps=1, capture=False)
    times = torch.linspace(LATENT, DATA, solver.steps + 1, dtype=torch.float64).tolist()
    x, kinds = z, torch.full_like(clouds.ids, path.mask)
    evaluations = torch.zeros(clouds.count, dtype=torch.int64)
    status = (Status.SUCCESS,) * clouds.count
    for place, (t, s) in enumerate(pairwise(times)):
        listening = _Listening(flow.field)
        there = ContinuousFlow(listening).transport(
            x, clouds, path.context(kinds, x, context), start=t, end=s, solver=stretch
        )
        source = rng.generator(seed, place, device=x.device)
        kinds = path.step(kinds, listening.first_logits(), t, s, source)
        # One that failed goes on from the origin, so that the field has rows for all.
        x = there.x.masked_fill(~clouds.expand(there.succeeded.to(x.device)).unsqueeze(1), 0.0)
        evaluations = evaluations + there.evaluations
        status = tuple(
            now if before is Status.SUCCESS else before
            for before, now in zip(status, there.status, strict=True)
        )
    there = replace(there, evaluations=evaluations, status=status)
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
