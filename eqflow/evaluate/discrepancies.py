r"""How far two distributions over molecules are apart, with bootstrap intervals over the molecules.

Numbers by the Wasserstein-1 distance :math:`\int |F_1 - F_2|`, in their unit; categories by the
Jensen–Shannon divergence in bits, 0 for equal ones and 1 for those without a category in common.

Both are positive even between two samples of one distribution, and larger between resamples than
between the samples themselves. What a distance means is seen beside that of two samples of data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eqflow.evaluate.estimates import Estimate, interval, nothing, resampled
from eqflow.evaluate.internal_coordinates import Spread

RESAMPLES = 200


def wasserstein(drawn: Spread, reference: Spread, seed: int = 0) -> Estimate:
    """Wasserstein-1 distance of the numbers of all molecules together, in their unit.

    Args:
        drawn, reference: Numbers with the molecules they are of.
        seed: The resamples, of both, are a function of it.
    """
    values = torch.cat([drawn.values, reference.values]).double()
    owner = torch.cat([drawn.owner, reference.owner + drawn.count])
    values, order = values.sort()
    owner, gaps = owner[order], values.diff()
    sizes = [torch.bincount(one.owner, minlength=one.count) for one in (drawn, reference)]

    def distance(weights: Tensor, other_weights: Tensor) -> float:
        """With so many copies of each molecule."""
        totals = [
            float((w * n).sum()) for w, n in zip((weights, other_weights), sizes, strict=True)
        ]
        if not all(totals):
            return math.nan
        step = torch.cat([weights / totals[0], -other_weights / totals[1]])
        return float(step[owner].cumsum(0)[:-1].abs() @ gaps)

    return _estimate(distance, drawn.count, reference.count, drawn.not_computable, seed)


def jensen_shannon(
    drawn: Tensor, reference: Tensor, seed: int = 0, not_computable: int = 0
) -> Estimate:
    """Jensen–Shannon divergence in bits of the categories of all molecules together.

    Args:
        drawn, reference: How often each molecule has each category, shapes (A, K) and (B, K).
        seed: The resamples, of both, are a function of it.
        not_computable: How many drawn molecules could not be judged.
    """
    one, other = drawn.double(), reference.double()

    def divergence(weights: Tensor, other_weights: Tensor) -> float:
        p, q = weights @ one, other_weights @ other
        if not (p.any() and q.any()):
            return math.nan
        p, q = p / p.sum(), q / q.sum()
        mean = (p + q) / 2
        bits = (_entropy(mean) - (_entropy(p) + _entropy(q)) / 2) / math.log(2)
        return max(0.0, float(bits))

    return _estimate(divergence, len(drawn), len(reference), not_computable, seed)


def _estimate(
    of: Callable[[Tensor, Tensor], float], drawn: int, reference: int, missing: int, seed: int
) -> Estimate:
    ones = [torch.ones(count, dtype=torch.float64) for count in (drawn, reference)]
    if not (drawn and reference) or math.isnan(value := of(*ones)):
        return nothing(missing)
    copies = [_copies(drawn, seed, "drawn"), _copies(reference, seed, "reference")]
    low, high = interval([of(w, v) for w, v in zip(*copies, strict=True)])
    return Estimate(value, low, high, drawn - missing, missing)


def _copies(count: int, seed: int, of: str) -> list[Tensor]:
    """How often each of `count` molecules was drawn in each resample, shapes (count,)."""
    return [
        torch.bincount(row, minlength=count).double()
        for chosen in resampled(count, seed, RESAMPLES, of)
        for row in chosen
    ]


def _entropy(p: Tensor) -> Tensor:
    """In nats."""
    return torch.special.entr(p).sum()
