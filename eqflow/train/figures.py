"""The figures a run ends with: likelihoods of held-out structures, and what draws are like.

On a target these are KL and ESS, of whole molecules the metrics of the distance tables.
"""

from __future__ import annotations

from typing import Any

import torch

from eqflow.evaluate import (
    bonds_of,
    effective_sample_size,
    kl_to_target,
    negative_log_likelihood,
    table_metrics,
)
from eqflow.flows import (
    AbstractDivergence,
    AbstractFlow,
    AbstractMolecularFlow,
    Flow,
    MaskedMolecularFlow,
    MolecularFlow,
    Scores,
    Status,
)
from eqflow.geometry import Clouds
from eqflow.targets import AbstractTarget
from eqflow.train.datasets import Dataset

DRAWS = 2  # features drawn for each molecule: the mean over molecules is noisier than over draws


def final_figures(
    flow: AbstractFlow, dataset: Dataset, divergence: AbstractDivergence, most: int, seed: int
) -> dict[str, Any]:
    """NLL of validation and test structures and, where it can be judged, what draws are like.

    Of a model that is conditioned on properties, structures are scored given theirs, and drawn
    given none. A model without a likelihood is judged by its draws alone.

    Args:
        flow: The trained flow.
        dataset: The structures of the run.
        divergence: How the trace is computed.
        most: Most structures of a part to score, and how many to draw.
        seed: Of probes and draws.

    Returns:
        Figures by name, in nats or fractions of 1; each mean has its standard error under
        `<name>_se`.
    """
    if isinstance(flow, MaskedMolecularFlow):
        return _of_molecules(flow, most, seed)
    figures: dict[str, Any] = {"divergence": type(divergence).__name__.lower()}
    for part, name in (("validation", "val_nll"), ("test", "test_nll")):
        clouds = dataset.parts[part][:most]
        if isinstance(flow, MolecularFlow):
            scores: Scores = flow.score(clouds, draws=DRAWS, divergence=divergence, seed=seed)
        else:
            scores = flow.score(clouds, divergence=divergence, seed=seed)
        nll = negative_log_likelihood(scores.log_prob)
        figures |= {name: nll.value, f"{name}_se": nll.se, f"{name}_count": nll.count}
        figures[f"{name}_left_out"] = len(clouds) - nll.count
        figures[f"{name}_evaluations"] = int(scores.evaluations.max())
    if isinstance(flow, AbstractMolecularFlow):
        figures |= _of_molecules(flow, most, seed)
    if dataset.target is not None and isinstance(flow, Flow):
        kl = kl_to_target(_log_target(dataset.target, clouds), scores.log_prob)
        figures |= {"kl": kl.value, "kl_se": kl.se, "log_z_se": dataset.target.log_z.error}
        drawn = flow.draw(most, seed=seed, with_log_prob=True, divergence=divergence)
        if drawn.log_prob is not None:
            log_target = _log_target(dataset.target, drawn.clouds)
            figures["ess"] = effective_sample_size(log_target, drawn.log_prob)
        figures["sampling_evaluations"] = int(drawn.evaluations.max())
    return figures


def _of_molecules(flow: AbstractMolecularFlow, count: int, seed: int) -> dict[str, Any]:
    """What drawn molecules are like by the distance tables; a failed one passes no test."""
    drawn = flow.draw(count, seed=seed)
    figures: dict[str, Any] = {
        "drawn": count,
        "drawn_failed": sum(status is not Status.SUCCESS for status in drawn.status),
        "sampling_evaluations": int(drawn.evaluations.max()),
    }
    for name, metric in table_metrics(bonds_of(drawn.clouds), seed=seed).items():
        name = name.replace(" ", "_")
        figures |= {name: metric.value, f"{name}_interval": [metric.low, metric.high]}
    return figures


def _log_target(target: AbstractTarget, clouds: Clouds) -> torch.Tensor:
    return target.log_prob(clouds.segments.to_dense(clouds.x.double()))
