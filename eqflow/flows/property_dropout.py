"""Training with and without a condition at once: what guidance and unconditional draws need."""

from __future__ import annotations

import torch

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.continuous import ContinuousFlow
from eqflow.flows.objectives import AbstractObjective, Batch, Loss


class PropertyDropout(AbstractObjective):
    """An objective whose structures lose all their properties now and then.

    Args:
        objective: What is minimised.
        width: Last context features that are properties.
        probability: How often a structure loses them.

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
        kept = rng.uniform((batch.clouds.count,), batch.x, source) >= self.probability
        context = batch.context.clone()
        context[:, -self.width :] *= batch.clouds.expand(kept).unsqueeze(1).to(context)
        return self.objective(flow, batch._replace(context=context), source)
