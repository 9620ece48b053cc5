"""What a flow gives back: log-likelihoods or samples, what they cost and how each solve ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqflow.errors import SolverFailed, UsageError
from eqflow.flows.ode import Status
from eqflow.geometry import Clouds


@dataclass(frozen=True, kw_only=True)
class Integrated:
    """How the integration of each structure ended, and what it cost.

    Attributes:
        evaluations: Evaluations of the field, those of attempts that failed among them, shape (B,),
            int64.
        status: How it ended.
        time: Time of the flow at which it ended, shape (B,), float64: of one that failed, how far
            it came.
        solver: What gave the result in place of the solver asked for, where that failed; else
            empty. See `eqflow.flows.fallback`.
        solver_error: How much that result may be off, shape (B,), float64: in nats where there is a
            log-likelihood, and in standardised units of positions, whichever is larger. NaN where
            it is as asked, with the accuracy that was asked for.
    """

    evaluations: Tensor
    status: tuple[Status, ...]
    time: Tensor
    solver: tuple[str, ...]
    solver_error: Tensor

    def ending(self) -> dict[str, Any]:
        """These by name, for a result that is made of this one."""
        return {
            "evaluations": self.evaluations,
            "status": self.status,
            "time": self.time,
            "solver": self.solver,
            "solver_error": self.solver_error,
        }

    @property
    def failures(self) -> str:
        """How many integrations failed and how the first of them did; empty where none."""
        failed = [i for i, each in enumerate(self.status) if each.failed]
        if not failed:
            return ""
        first = failed[0]
        return (
            f"{len(failed)} of {len(self.status)} structures failed "
            f"(first: {first}, {self.status[first].value}, at t = {float(self.time[first]):.3g})"
        )


def joined_endings(parts: Sequence[Integrated]) -> dict[str, Any]:
    """`Integrated.ending` of consecutive groups as one."""
    none = torch.zeros(0, dtype=torch.float64)
    return {
        "evaluations": torch.cat([none.long(), *(part.evaluations for part in parts)]),
        "status": tuple(status for part in parts for status in part.status),
        "time": torch.cat([none, *(part.time for part in parts)]),
        "solver": tuple(solver for part in parts for solver in part.solver),
        "solver_error": torch.cat([none, *(part.solver_error for part in parts)]),
    }


def travelled(before: dict[str, Any] | None, now: Integrated) -> dict[str, Any]:
    """`Integrated.ending` of two stretches of one way; what failed first stays as it failed."""
    then = now.ending()
    if before is None:
        return then
    lasts = torch.tensor([status is Status.SUCCESS for status in before["status"]])
    status = zip(before["status"], then["status"], strict=True)
    return {
        "evaluations": before["evaluations"] + then["evaluations"],
        "status": tuple(late if early is Status.SUCCESS else early for early, late in status),
        "time": torch.where(lasts, then["time"], before["time"]),
        "solver": tuple(
            early or late for early, late in zip(before["solver"], then["solver"], strict=True)
        ),
        # Errors of stretches add up, and one as asked adds nothing that is known of.
        "solver_error": torch.where(
            before["solver_error"].isnan() & then["solver_error"].isnan(),
            then["solver_error"],
            before["solver_error"].nan_to_num() + then["solver_error"].nan_to_num(),
        ),
    }


@dataclass(frozen=True)
class Scores(Integrated):
    """Log-likelihoods with everything they are made of.

    Attributes:
        log_prob: Nats, shape (B,); NaN where the integration failed.
        log_prob_se: Standard error of the trace estimate, shape (B,): 0 for the exact trace, NaN
            for a single probe, which cannot tell.
        terms: Named parts that add up to `log_prob`, each shape (B,).
        log_prob_change: By how much a finer solver changes `log_prob`, shape (B,), where that was
            asked for; NaN where either failed, or numbers do not resolve a finer one. See
            `eqflow.flows.convergence`.
    """

    log_prob: Tensor
    log_prob_se: Tensor
    terms: dict[str, Tensor]
    log_prob_change: Tensor | None = field(default=None, kw_only=True)

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of consecutive groups, at least one, as one."""
        return cls(
            torch.cat([part.log_prob for part in parts]),
            torch.cat([part.log_prob_se for part in parts]),
            {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
            **joined_endings(parts),
            log_prob_change=joined_changes(parts),
        )


def joined_changes(parts: Sequence[Scores]) -> Tensor | None:
    """`log_prob_change` of consecutive groups."""
    changes = [part.log_prob_change for part in parts if part.log_prob_change is not None]
    return torch.cat(changes) if changes else None


@dataclass(frozen=True)
class Drawn(Integrated):
    """Samples and how each integration ended; failed ones have NaN positions.

    Attributes:
        clouds: Positions in the unit of the data.
        log_prob: Nats, shape (B,), where asked for.
    """

    clouds: Clouds
    log_prob: Tensor | None

    @classmethod
    def join(cls, parts: Sequence[Drawn]) -> Drawn:
        """The draws of consecutive groups, at least one, as one."""
        log_prob = [part.log_prob for part in parts if part.log_prob is not None]
        return cls(
            Clouds.join([part.clouds for part in parts]),
            torch.cat(log_prob) if log_prob else None,
            **joined_endings(parts),
        )

    def require_success(self) -> None:
        """Raise `SolverFailed` where an integration failed."""
        if self.failures:
            raise SolverFailed(
                f"sample: {self.failures}. Try a fixed-step method or a larger solver.step_limit; "
                "flow.draw returns the others."
            )

    def scored(self) -> Tensor:
        """The log-likelihoods.

        Raises:
            UsageError: If they were not asked for.
        """
        if self.log_prob is None:
            raise UsageError("draw: no log-likelihoods; pass with_log_prob=True.")
        return self.log_prob
