"""Numbers over molecules with a bootstrap interval: molecules drawn again, with replacement.

The interval is the percentile one of 95 %. Molecules of which a number cannot be computed are
counted: they fail what can be passed or failed, and are left out of means.

Reference: An introduction to the bootstrap (Efron, Tibshirani, 1993), chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow import rng

RESAMPLES = 1000
LEVEL = 0.95
# Draws of molecules held at a time.
DRAWS_AT_ONCE = 4_000_000


class Estimate(NamedTuple):
    """A number over molecules.

    Attributes:
        value: The number; NaN where there is nothing to compute it from.
        low, high: Ends of its interval of 95 %.
        count: How many molecules it is of.
        not_computable: How many molecules could not be judged.
    """

    value: float
    low: float
    high: float
    count: int
    not_computable: int = 0

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def resampled(
    count: int, seed: int, resamples: int = RESAMPLES, of: str = "drawn"
) -> Iterator[Tensor]:
    """Molecules drawn with replacement, some resamples at a time, shapes (R, count).

    Args:
        count: How many molecules there are.
        seed: The resamples are a function of it.
        resamples: How many resamples.
        of: What is drawn from: one name for each independent sample of molecules.
    """
    source = rng.generator(seed, "bootstrap", of, count)
    step = max(1, DRAWS_AT_ONCE // max(count, 1))
    for start in range(0, resamples, step):
        shape = (min(step, resamples - start), count)
        yield torch.randint(count, shape, generator=source)


def interval(statistics: Sequence[float] | Tensor) -> tuple[float, float]:
    """The percentile interval of a number over resamples; NaN where it has no value at all."""
    values = torch.as_tensor(statistics, dtype=torch.float64)
    values = values[~values.isnan()]
    if not values.numel():
        return math.nan, math.nan
    tails = values.new_tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = torch.quantile(values, tails).tolist()
    return low, high


def nothing(not_computable: int = 0) -> Estimate:
    """The estimate where no molecule is left to compute it from."""
    return Estimate(math.nan, math.nan, math.nan, 0, not_computable)


def ratio(
    numerator: Tensor, denominator: Tensor, seed: int = 0, not_computable: int = 0
) -> Estimate:
    r"""`Σ_b a_b / Σ_b c_b` over molecules, a fraction.

    Where all or none pass, every resample says the same. The interval is then that of Clopper and
    Pearson for B molecules, whose limit is :math:`\alpha^{1/B}` or one less it, `α` a tail.

    Args:
        numerator, denominator: Of each molecule, shape (B,), the first not above the second.
        seed: The resamples are a function of it.
        not_computable: How many of the molecules could not be judged.
    """
    count = len(numerator)
    if not count or not denominator.any():
        return nothing(not_computable)
    a, c = numerator.double(), denominator.double()
    value = float(a.sum() / c.sum())
    limit = ((1 - LEVEL) / 2) ** (1 / count)
    if value == 0:
        return Estimate(value, 0.0, 1 - limit, count, not_computable)
    if value == 1:
        return Estimate(value, limit, 1.0, count, not_computable)
    drawn = torch.cat([a[chosen].sum(1) / c[chosen].sum(1) for chosen in resampled(count, seed)])
    return Estimate(value, *interval(drawn), count, not_computable)


def rate(passed: Tensor, seed: int = 0) -> Estimate:
    """Fraction of molecules that pass.

    Args:
        passed: 1 or 0 for each molecule, shape (B,); NaN where it could not be judged, which does
            not pass.
        seed: The resamples are a function of it.

    >>> rate(torch.tensor([1.0, 0.0, 1.0, math.nan]))[0], rate(torch.tensor([math.nan]))[3:]
    (0.5, (1, 1))
    """
    unknown = passed.isnan()
    passed = passed.double().masked_fill(unknown, 0)
    return ratio(passed, torch.ones_like(passed), seed, int(unknown.sum()))


def typical(
    values: Tensor, seed: int = 0, of: Callable[[Tensor], Tensor] | None = None
) -> Estimate:
    """Mean, or another summary, of the values that are finite; the others are not computable.

    Args:
        values: Of each molecule, shape (B,).
        seed: The resamples are a function of it.
        of: Summary of each row, (R, B) to (R,); the mean where None.
    """
    summary = of or (lambda rows: rows.mean(1))
    finite = values.double()[values.isfinite()]
    missing = len(values) - len(finite)
    if not len(finite):
        return nothing(missing)
    drawn = torch.cat([summary(finite[chosen]) for chosen in resampled(len(finite), seed)])
    value = float(summary(finite.unsqueeze(0)))
    return Estimate(value, *interval(drawn), len(finite), missing)
