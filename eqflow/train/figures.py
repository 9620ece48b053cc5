"""The figures a run ends with: likelihoods of held-out structures, and what draws are like.

On a target these are KL and ESS, of whole molecules the metrics of the distance tables.
"""

from __future__ import annotations

from typing import Any

import torch

from eqflow import rng
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
from eqflow.flows.results import Drawn
from eqflow.geometry import Clouds
from eqflow.halving import by_halves
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
        `<name>_se`. `too_large` counts structures for which memory did not suffice, which are in
        no figure.
    """
    if isinstance(flow, MaskedMolecularFlow):
        return _of_molecules(flow, most, seed)
    figures: dict[str, Any] = {"divergence": type(divergence).__name__.lower()}
    too_large = 0
    for part, name in (("validation", "val_nll"), ("test", "test_nll")):
        clouds = dataset.parts[part][:most]
        log_prob, evaluations, left_out = _scored(flow, clouds, divergence, seed)
        too_large += left_out
        nll = negative_log_likelihood(log_prob)
        figures |= {name: nll.value, f"{name}_se": nll.se, f"{name}_count": nll.count}
        figures[f"{name}_left_out"] = len(clouds) - nll.count
        figures[f"{name}_evaluations"] = evaluations
    if isinstance(flow, AbstractMolecularFlow):
        figures |= _of_molecules(flow, most, seed)
    if dataset.target is not None and isinstance(flow, Flow):
        kl = kl_to_target(_log_target(dataset.target, clouds), log_prob)
        figures |= {"kl": kl.value, "kl_se": kl.se, "log_z_se": dataset.target.log_z.error}
        drawn, left_out = _drawn(flow, most, seed, with_log_prob=True, divergence=divergence)
        too_large += left_out
        if drawn is not None and drawn.log_prob is not None:
            log_target = _log_target(dataset.target, drawn.clouds)
            figures["ess"] = effective_sample_size(log_target, drawn.log_prob)
            figures["sampling_evaluations"] = int(drawn.evaluations.max())
    return figures | {"too_large": too_large + figures.get("too_large", 0)}


def _scored(
    flow: AbstractFlow, clouds: Clouds, divergence: AbstractDivergence, seed: int
) -> tuple[torch.Tensor, int, int]:
    """Log-likelihoods, NaN where memory does not suffice; most evaluations; how many these are."""
    options: dict[str, Any] = {"draws": DRAWS} if isinstance(flow, MolecularFlow) else {}

    def score(some: list[int]) -> Scores:
        chosen = clouds if len(some) == len(clouds) else clouds[some]
        return flow.score(chosen, divergence=divergence, seed=seed, **options)

    parts, too_large = by_halves(range(len(clouds)), score)
    log_prob = torch.full((len(clouds),), torch.nan, dtype=torch.float64)
    for some, scores in parts:
        log_prob[some] = scores.log_prob.double().cpu()
    evaluations = max((int(scores.evaluations.max()) for _, scores in parts), default=0)
    return log_prob, evaluations, len(too_large)


def _drawn(flow: AbstractFlow, count: int, seed: int, **options: Any) -> tuple[Drawn | None, int]:
    """Draws, in halves where memory does not suffice, and how many it did not suffice for."""

    def draw(some: list[int]) -> Drawn:
        own = seed if len(some) == count else rng.derived_seed(seed, "from", some[0], len(some))
        return flow.draw(len(some), seed=own, **options)

    parts, too_large = by_halves(range(count), draw)
    return Drawn.join([part for _, part in parts]) if parts else None, len(too_large)


def _of_molecules(flow: AbstractMolecularFlow, count: int, seed: int) -> dict[str, Any]:
    """What drawn molecules are like by the distance tables; a failed one passes no test."""
    drawn, too_large = _drawn(flow, count, seed)
    figures: dict[str, Any] = {"drawn": count - too_large, "too_large": too_large}
    if drawn is None:
        return figures
    figures |= {
        "drawn_failed": sum(status is not Status.SUCCESS for status in drawn.status),
        "sampling_evaluations": int(drawn.evaluations.max()),
    }
    for name, metric in table_metrics(bonds_of(drawn.clouds), seed=seed).items():
        name = name.replace(" ", "_")
        figures |= {name: metric.value, f"{name}_interval": [metric.low, metric.high]}
    return figures


def _log_target(target: AbstractTarget, clouds: Clouds) -> torch.Tensor:
    return target.log_prob(clouds.segments.to_dense(clouds.x.double()))
