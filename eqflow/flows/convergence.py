r"""Whether a log-likelihood is that of the equation, or of the steps that were taken.

Scored again by a finer solver, with the same probes, a log-likelihood changes by about the error
that it had: a tenth of the tolerance leaves about a tenth of it, and twice as many steps of a
method of order `p` leave :math:`2^{-p}`. So Euler's method shows half of its error, and all others
show more. An estimated trace keeps its noise, which `log_prob_se` states.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from eqflow.flows.results import Scores
from eqflow.flows.solver import Solver

# Nats that a log-likelihood may change by before people are warned.
CONVERGED = 0.01

AnyScores = TypeVar("AnyScores", bound=Scores)


def refined(solver: Solver) -> Solver:
    """The same method with a tenth of the tolerance and twice the steps, and evaluations for it."""
    return replace(
        solver,
        rtol=solver.rtol / 10,
        atol=solver.atol / 10,
        steps=2 * solver.steps,
        step_limit=10 * solver.step_limit,
    )


def unconverged(change: Tensor) -> Tensor:
    """Which of some changes, shape (B,), are beyond `CONVERGED`; what is not known is not."""
    return change.abs() > CONVERGED


def checked(score: Callable[[Solver], AnyScores], solver: Solver) -> AnyScores:
    """Scores by a solver, with what a finer one changes of them; it warns where that is much.

    Args:
        score: Scores by any solver, with the same draws for each.
        solver: The one asked for, whose `log_prob` is given.

    Returns:
        Its scores; `evaluations` counts those of the finer ones as well.
    """
    scores, finer = score(solver), score(refined(solver))
    change = finer.log_prob.double() - scores.log_prob.double()
    if count := int(unconverged(change).sum()):
        known = change.nan_to_num()
        worst = int(known.abs().argmax())
        warnings.warn(
            f"score: a finer solver changes {count} of {len(change)} log-likelihoods by more than "
            f"{CONVERGED:g} nats (most: structure {worst}, {float(known[worst]):+.3g}). Try a "
            "smaller solver.rtol and solver.atol, or more solver.steps.",
            RuntimeWarning,
            stacklevel=3,
        )
    return replace(
        scores,
        evaluations=scores.evaluations + finer.evaluations,
        log_prob_change=torch.where(change.isfinite(), change, torch.nan),
    )
