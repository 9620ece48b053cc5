"""How good a density is, where the truth is known and where it is not."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean with its standard error and the number of values it is of."""

    value: float
    se: float
    count: int

    def __str__(self) -> str:
        error = "" if math.isnan(self.se) else f" ± {self.se:.2g}"
        return f"{self.value:.4g}{error}"


def mean_of(values: Tensor) -> Mean:
    """Mean and standard error of the finite values; NaN where there are none."""
    finite = values.double()[values.isfinite()]
    count = finite.numel()
    if count == 0:
        return Mean(math.nan, math.nan, 0)
    se = float(finite.std()) / math.sqrt(count) if count > 1 else math.nan
    return Mean(float(finite.mean()), se, count)


def negative_log_likelihood(log_prob: Tensor) -> Mean:
    """`⟨−log p_model(x)⟩` in nats over data, shape (B,)."""
    return mean_of(-log_prob)


def kl_to_target(log_target: Tensor, log_model: Tensor) -> Mean:
    """`KL(target ‖ model) = ⟨log p(x) − log p_model(x)⟩` in nats over exact samples of the target.

    Pairing the two log-densities on the same points cancels most of the noise of an NLL.

    Args:
        log_target: Normalised log-density of the target, shape (B,).
        log_model: Log-density of the model, shape (B,).
    """
    return mean_of(log_target.double() - log_model.double())


def effective_sample_size(log_target: Tensor, log_model: Tensor) -> float:
    """Fraction of the model's samples that importance weighting leaves effective, in (0, 1].

    Kish's `(Σ w)² / (B Σ w²)` with `w = p(x) / p_model(x)`; constants in either density cancel.
    A sample outside the target's support has weight 0 and counts; one without a density (NaN or
    +∞) does not.

    Args:
        log_target, log_model: Log-densities of the model's own samples, shape (B,).

    Returns:
        The fraction; NaN where no sample has a weight.
    """
    log_weight = log_target.double() - log_model.double()
    log_weight = log_weight[log_weight < math.inf]
    if not log_weight.isfinite().any():
        return math.nan
    both = 2 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2 * log_weight, 0)
    return float(both.exp()) / log_weight.numel()
