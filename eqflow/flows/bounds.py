r"""What a flow of molecules gives back: bounds with their draws, and molecules with their labels.

Of `K` draws of features with bounds :math:`b_k` the importance-weighted bound is
:math:`\log \tfrac1K \sum_k e^{b_k}`; it is never below their mean, and tends to `log p`.

Reference: Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519, eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqflow.flows.ode import Status
from eqflow.flows.results import Drawn, Integrated, Scores, joined_endings
from eqflow.geometry import Clouds

# Named parts of the bound, in nats.
TERMS = ("log_prob_size", "log_prob_base", "log_det_flow", "log_det_actnorm", "minus_log_q")


@dataclass(frozen=True)
class Bound(Integrated):
    """The bound for one draw of features a molecule.

    Attributes:
        terms: The parts named in `TERMS`, which add up to the bound, each shape (B,), in nats.
        z: Latent state, shape (N, d + K).
    """

    terms: dict[str, Tensor]
    z: Tensor

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
        endings: Mapping[str, Any],
        *,
        weighted: bool,
    ) -> BoundScores:
        """Scores of B molecules from K draws each.

        Args:
            terms: Parts of each draw's bound, shape (B, K).
            endings: How each of the B K integrations ended, those of a molecule together, as
                `Integrated.ending`.
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
        return cls(
            log_prob,
            error,
            {name: _mean(term, counted) for name, term in terms.items()}
            | {"importance_gain": log_prob - mean},
            draws,
            **_of_draws(endings, count),
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
        status, solver = [Status.IMPOSSIBLE_SIZE] * count, [""] * count
        for place, each, by in zip(places.tolist(), self.status, self.solver, strict=True):
            status[place], solver[place] = each, by
        return BoundScores(
            impossible.index_copy(0, places, self.log_prob),
            torch.zeros_like(impossible).index_copy(0, places, self.log_prob_se),
            terms,
            impossible.unsqueeze(1)
            .repeat(1, self.draws.shape[1])
            .index_copy(0, places, self.draws),
            evaluations=self.evaluations.new_zeros(count).index_copy(0, places, self.evaluations),
            status=tuple(status),
            time=self.time.new_zeros(count).index_copy(0, places, self.time),
            solver=tuple(solver),
            solver_error=self.time.new_full((count,), math.nan).index_copy(
                0, places, self.solver_error
            ),
        )

    @classmethod
    def join(cls, parts: Sequence[BoundScores]) -> BoundScores:  # type: ignore[override]
        """The scores of consecutive groups, at least one, as one."""
        whole = Scores.join(parts)
        return cls(
            whole.log_prob,
            whole.log_prob_se,
            whole.terms,
            torch.cat([part.draws for part in parts]),
            **whole.ending(),
            log_prob_change=whole.log_prob_change,
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
            torch.cat([part.integers for part in parts]),
            **joined_endings(parts),
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


def _of_draws(endings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """How molecules ended, from how each of their `count` draws did: by the worst of them."""
    ended, solvers = endings["status"], endings["solver"]
    first = range(0, len(ended), count)
    # That of the first draw that failed; where none did, all came to the same time.
    worst = [
        i + next((k for k in range(count) if ended[i + k] is not Status.SUCCESS), 0) for i in first
    ]
    errors = endings["solver_error"].view(-1, count)
    return {
        "evaluations": endings["evaluations"].view(-1, count).sum(1),
        "status": tuple(ended[i] for i in worst),
        "time": endings["time"][worst],
        "solver": tuple(next(filter(None, solvers[i : i + count]), "") for i in first),
        "solver_error": errors.nan_to_num(-math.inf).amax(1).where(~errors.isnan().all(1), math.nan)
        if len(errors)
        else errors.new_zeros(0),
    }
