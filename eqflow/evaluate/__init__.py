"""Metrics: one concept a module, pure functions."""

from eqflow.evaluate.likelihood import (
    Mean,
    effective_sample_size,
    kl_to_target,
    mean_of,
    negative_log_likelihood,
)

__all__ = [
    "Mean",
    "effective_sample_size",
    "kl_to_target",
    "mean_of",
    "negative_log_likelihood",
]
