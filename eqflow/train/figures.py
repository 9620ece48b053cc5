"""The figures a run ends with: likelihoods of held-out structures, and KL and ESS on a target."""

from __future__ import annotations

from typing import Any

import torch

from eqflow.evaluate import effective_sample_size, kl_to_target, negative_log_likelihood
from eqflow.flows import AbstractDivergence, Flow
from eqflow.geometry import Clouds
from eqflow.targets import AbstractTarget
from eqflow.train.datasets import Dataset


def final_figures(
    flow: Flow, dataset: Dataset, divergence: AbstractDivergence, most: int, seed: int
) -> dict[str, Any]:
    """NLL of validation and test structures and, where the target is known, KL and ESS.

    Args:
        flow: The trained flow.
        dataset: The structures of the run.
        divergence: How the trace is computed.
        most: Most structures of a part to score, and how many to draw.
        seed: Of probes and draws.

    Returns:
        Figures by name, in nats; each mean has its standard error under `<name>_se`.
    """
    figures: dict[str, Any] = {"divergence": type(divergence).__name__.lower()}
    for part, name in (("validation", "val_nll"), ("test", "test_nll")):
        clouds = dataset.parts[part][:most]
        scores = flow.score(clouds, divergence=divergence, seed=seed)
        nll = negative_log_likelihood(scores.log_prob)
        figures |= {name: nll.value, f"{name}_se": nll.se, f"{name}_count": nll.count}
        figures[f"{name}_evaluations"] = int(scores.evaluations.max())
    if dataset.target is not None:
        kl = kl_to_target(_log_target(dataset.target, clouds), scores.log_prob)
        figures |= {"kl": kl.value, "kl_se": kl.se, "log_z_se": dataset.target.log_z.error}
        drawn = flow.draw(most, seed=seed, with_log_prob=True, divergence=divergence)
        if drawn.log_prob is not None:
            log_target = _log_target(dataset.target, drawn.clouds)
            figures["ess"] = effective_sample_size(log_target, drawn.log_prob)
        figures["sampling_evaluations"] = int(drawn.evaluations.max())
    return figures


def _log_target(target: AbstractTarget, clouds: Clouds) -> torch.Tensor:
    return target.log_prob(clouds.segments.to_dense(clouds.x.double()))
