"""Training with and without a condition at once: what guidance and unconditional draws need."""

from __future__ import annotations

import torch

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.continuous import ContinuousFlow
from eqflow.flows.objectives import AbstractObjective, Batch, Loss


class PropertyDropout(AbstractObjective):
    """An objective whose structures lose properties now and then.

    All of them with a probability, as unconditional draws need; and of several, each one besides
    with the same, so that any of them may be known alone.

    Args:
        objective: What is minimised.
        width: Last context features that are properties, twice their number.
        probability: How often a structure loses all, and how often each.

    Raises:
        UsageError: If it is no probability.

    Reference: Classifier-Free Diffusion Guidance (Ho, Salimans, 2022), arXiv:2207.12598, algorithm
    1.
    """

    def __init__(self, objective: AbstractObjective, width: int, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise UsageError(
                f"objective.unconditional: found {probability}, expected a probability, 0 to 1."
            )
        self.objective = objective
        self.width = width
        self.probability = probability

    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        """The loss of a batch in which some structures have lost their properties."""
        if batch.context is None:
            raise UsageError(
                f"PropertyDropout: found a batch without context, expected {self.width} features "
                "of properties in it."
            )
        count, properties = batch.clouds.count, self.width // 2
        kept = rng.uniform((count, 1), batch.x, source) >= self.probability
        if properties > 1:
            each = rng.uniform((count, properties), batch.x, source) >= self.probability
            kept = kept & each
        # Values and then whether they are known, see `Properties.context`.
        context = batch.context.clone()
        lasting = kept.expand(count, properties).repeat(1, 2)
        context[:, -self.width :] *= batch.clouds.expand(lasting).to(context)
        return self.objective(flow, batch._replace(context=context), source)
