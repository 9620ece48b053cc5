r"""What a flow of molecules gives back: bounds with their draws, and molecules with their labels.

Of `K` draws of features with bounds :math:`b_k` the importance-weighted bound is
:math:`\log \tfrac1K \sum_k e^{b_k}`; it is never below their mean, and tends to `log p`.

Reference: Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519, eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow.flows.ode import Status
from eqflow.flows.results import Drawn, Scores
from eqflow.geometry import Clouds

# Named parts of the bound, in nats.
TERMS = ("log_prob_size", "log_prob_base", "log_det_flow", "log_det_actnorm", "minus_log_q")


@dataclass(frozen=True)
class Bound:
    """The bound for one draw of features a molecule.

    Attributes:
        terms: The parts named in `TERMS`, which add up to the bound, each shape (B,), in nats.
        z: Latent state, shape (N, d + K).
        evaluations: Evaluations of the field, shape (B,).
        status: How each integration ended.
    """

    terms: dict[str, Tensor]
    z: Tensor
    evaluations: Tensor
    status: tuple[Status, ...]

    @property
    def total(self) -> Tensor:
        """The bound, shape (B,)."""
        return torch.stack(list(self.terms.values())).sum(0)


@dataclass(frozen=True)
class BoundScores(Scores):
    """Lower bounds on log-likelihoods.

    `log_prob` is the bound of all draws, `log_prob_se` its standard error over draws (of features,
    and of probes where the trace is estimated), NaN for a single one; by the jackknife where draws
    are weighted, and still too small where few of them have all the weight (`effective_draws`).
    `terms` are means over draws, of weighted ones over those that count at all, and
    `importance_gain` is what weighting the draws adds.

    Attributes:
        draws: The bound of each draw, shape (B, K); their spread says how loose it is.
    """

    draws: Tensor

    @property
    def effective_draws(self) -> Tensor:
        """How many draws of equal weight would tell as much, `(Σ w)² / Σ w²`, shape (B,)."""
        weights = self.draws.softmax(1)
        return 1 / weights.square().sum(1)

    @classmethod
    def of_draws(
        cls,
        terms: dict[str, Tensor],
        evaluations: Tensor,
        status: Sequence[Status],
        *,
        weighted: bool,
    ) -> BoundScores:
        """Scores of B molecules from K draws each.

        Args:
            terms: Parts of each draw's bound, shape (B, K).
            evaluations: Evaluations of the field in each draw, shape (B, K).
            status: How each of the B K integrations ended, those of a molecule together.
            weighted: Weight draws by importance; else their mean is taken.
        """
        draws = torch.stack(list(terms.values())).sum(0)
        count = draws.shape[1]
        counted = torch.ones_like(draws, dtype=torch.bool)
        if weighted:
            # A draw that stands for another label has no weight, but its terms are infinite.
            lost = draws == -math.inf
            counted = ~lost | lost.all(1, keepdim=True)
        mean = _mean(draws, counted)
        log_prob = draws.logsumexp(1) - math.log(count) if weighted else mean
        error = torch.full_like(mean, float("nan"))
        if draws.numel() and count > 1:
            error = _jackknife(draws) if weighted else draws.std(1) / math.sqrt(count)
        ended = [status[i : i + count] for i in range(0, len(status), count)]
        return cls(
            log_prob,
            error,
            {name: _mean(term, counted) for name, term in terms.items()}
            | {"importance_gain": log_prob - mean},
            evaluations.sum(1),
            tuple(_worst(each) for each in ended),
            draws,
        )

    def among(self, places: Tensor, count: int) -> BoundScores:
        """These scores at their places among `count`; the sizes of the others are impossible.

        Their `log_prob` is −∞, by its size's term, and terms that were not computed are NaN.

        Args:
            places: Place of each score, rising, shape (B,).
            count: How many there are with those of impossible sizes.
        """
        impossible = self.log_prob.new_full((count,), -math.inf)
        unknown = torch.full_like(impossible, math.nan)
        terms = {
            name: (impossible if name == "log_prob_size" else unknown).index_copy(0, places, term)
            for name, term in self.terms.items()
        }
        status = [Status.IMPOSSIBLE_SIZE] * count
        for place, each in zip(places.tolist(), self.status, strict=True):
            status[place] = each
        return BoundScores(
            impossible.index_copy(0, places, self.log_prob),
            torch.zeros_like(impossible).index_copy(0, places, self.log_prob_se),
            terms,
            self.evaluations.new_zeros(count).index_copy(0, places, self.evaluations),
            tuple(status),
            impossible.unsqueeze(1)
            .repeat(1, self.draws.shape[1])
            .index_copy(0, places, self.draws),
        )

    @classmethod
    def join(cls, parts: Sequence[BoundScores]) -> BoundScores:  # type: ignore[override]
        """The scores of consecutive groups, at least one, as one."""
        whole = Scores.join(parts)
        return cls(
            whole.log_prob,
            whole.log_prob_se,
            whole.terms,
            whole.evaluations,
            whole.status,
            torch.cat([part.draws for part in parts]),
        )


@dataclass(frozen=True)
class DrawnMolecules(Drawn):
    """Sampled molecules, `clouds.numbers` being the elements of their largest features.

    Attributes:
        integers: Integers of each atom, shape (N, I), int64.
    """

    integers: Tensor

    @classmethod
    def join(cls, parts: Sequence[DrawnMolecules]) -> DrawnMolecules:  # type: ignore[override]
        """The draws of consecutive groups, at least one, as one."""
        return cls(
            Clouds.join([part.clouds for part in parts]),
            None,
            torch.cat([part.evaluations for part in parts]),
            tuple(status for part in parts for status in part.status),
            torch.cat([part.integers for part in parts]),
        )


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of those values (B, K) that are counted, shape (B,)."""
    return torch.where(counted, values, torch.zeros_like(values)).sum(1) / counted.sum(1)


def _jackknife(draws: Tensor) -> Tensor:
    """Standard error of the weighted bound of K draws (B, K), each left out in turn.

    Reference: An introduction to the bootstrap (Efron, Tibshirani, 1993), eq. 11.5.
    """
    count = draws.shape[1]
    without = draws.unsqueeze(1).repeat(1, count, 1)
    without.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    each = without.logsumexp(2)
    return (each.var(1, correction=0) * (count - 1)).sqrt()


def _worst(status: Sequence[Status]) -> Status:
    return next((each for each in status if each is not Status.SUCCESS), Status.SUCCESS)
