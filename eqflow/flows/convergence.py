r"""Whether a log-likelihood is that of the equation, or of the steps that were taken.

Scored again by a finer solver, with the same probes, a log-likelihood changes by about the error
that it had: a tenth of the tolerance leaves about a tenth of it, and twice as many steps of a
method of order `p` leave :math:`2^{-p}`. So Euler's method shows half of its error, and all others
show more. An estimated trace keeps its noise, which `log_prob_se` states.

Below `finest` of a dtype error estimates are of rounding, and no tolerance is taken further. Where
that leaves no room for half of the tolerance asked for, there is no finer solver to tell by.
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
# An error estimate cannot be told from rounding at a tolerance below this times the resolution.
ROUNDING = 10

AnyScores = TypeVar("AnyScores", bound=Scores)


def finest(dtype: torch.dtype) -> float:
    """The smallest tolerance at which a solver of states of this dtype sees its own error.

    >>> f"{finest(torch.float32):.1e}"
    '1.2e-06'
    """
    return ROUNDING * torch.finfo(dtype).eps


def refined(solver: Solver, dtype: torch.dtype) -> Solver:
    """The same method with a tenth of the tolerance and twice the steps, and evaluations for it.

    A tolerance is not taken below `finest`, and one that is below it already stays.
    """
    least = finest(dtype)
    return replace(
        solver,
        rtol=max(solver.rtol / 10, min(solver.rtol, least)),
        atol=max(solver.atol / 10, min(solver.atol, least)),
        steps=2 * solver.steps,
        step_limit=10 * solver.step_limit,
    )


def can_be_refined(solver: Solver, dtype: torch.dtype) -> bool:
    """Whether `refined` leaves at most about half of the error, so that the change shows the rest.

    States are of size one, where a relative and an absolute tolerance allow their sum.
    """
    finer = refined(solver, dtype)
    return not solver.is_adaptive or finer.rtol + finer.atol <= (solver.rtol + solver.atol) / 2


def unresolved(solver: Solver, dtype: torch.dtype) -> str:
    """Why a solver that cannot be refined cannot be checked, and what to do."""
    return (
        f"no finer solver than {solver.method} at {max(solver.rtol, solver.atol):g} can be told "
        f"from rounding in {str(dtype).removeprefix('torch.')}, so convergence is not known. Take "
        f"solver.rtol and solver.atol of {2 * finest(dtype):.1e} or more, or float64"
    )


def unconverged(change: Tensor) -> Tensor:
    """Which of some changes, shape (B,), are beyond `CONVERGED`; what is not known is not."""
    return change.abs() > CONVERGED


def checked(score: Callable[[Solver], AnyScores], solver: Solver, dtype: torch.dtype) -> AnyScores:
    """Scores by a solver, with what a finer one changes of them; it warns where that is much.

    Where numbers do not resolve a finer one, it warns of that, and no change is known.

    Args:
        score: Scores by any solver, with the same draws for each.
        solver: The one asked for, whose `log_prob` is given.
        dtype: Of the states.

    Returns:
        Its scores; `evaluations` counts those of the finer ones as well.
    """
    scores = score(solver)
    if not can_be_refined(solver, dtype):
        warnings.warn(f"score: {unresolved(solver, dtype)}.", RuntimeWarning, stacklevel=3)
        return replace(scores, log_prob_change=torch.full_like(scores.log_prob, torch.nan).double())
    finer = score(refined(solver, dtype))
    change = finer.log_prob.double() - scores.log_prob.double()
    if count := int(unconverged(change).sum()):
        known = change.nan_to_num()
        worst = int(known.abs().argmax())
        of = int((~change.isnan()).sum())
        warnings.warn(
            f"score: a finer solver changes {count} of {of} log-likelihoods by more than "
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
