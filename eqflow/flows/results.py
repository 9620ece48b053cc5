"""What a flow gives back: log-likelihoods or samples, what they cost and how each solve ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow.errors import SolverFailed, UsageError
from eqflow.flows.ode import Status
from eqflow.geometry import Clouds


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods with everything they are made of.

    Attributes:
        log_prob: Nats, shape (B,); NaN where the integration failed.
        log_prob_se: Standard error of the trace estimate, shape (B,): 0 for the exact trace, NaN
            for a single probe, which cannot tell.
        terms: Named parts that add up to `log_prob`, each shape (B,).
        evaluations: Evaluations of the field, shape (B,).
        status: How each integration ended.
    """

    log_prob: Tensor
    log_prob_se: Tensor
    terms: dict[str, Tensor]
    evaluations: Tensor
    status: tuple[Status, ...]

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of consecutive groups, at least one, as one."""
        return cls(
            torch.cat([part.log_prob for part in parts]),
            torch.cat([part.log_prob_se for part in parts]),
            {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
            torch.cat([part.evaluations for part in parts]),
            tuple(status for part in parts for status in part.status),
        )

    @property
    def failures(self) -> str:
        """How many integrations failed and how the first of them did; empty where none."""
        return _failures(self.status)


@dataclass(frozen=True)
class Drawn:
    """Samples and how each integration ended; failed ones have NaN positions.

    Attributes:
        clouds: Positions in the unit of the data.
        log_prob: Nats, shape (B,), where asked for.
        evaluations: Evaluations of the field, shape (B,).
        status: How each integration ended.
    """

    clouds: Clouds
    log_prob: Tensor | None
    evaluations: Tensor
    status: tuple[Status, ...]

    @classmethod
    def join(cls, parts: Sequence[Drawn]) -> Drawn:
        """The draws of consecutive groups, at least one, as one."""
        log_prob = [part.log_prob for part in parts if part.log_prob is not None]
        return cls(
            Clouds.join([part.clouds for part in parts]),
            torch.cat(log_prob) if log_prob else None,
            torch.cat([part.evaluations for part in parts]),
            tuple(status for part in parts for status in part.status),
        )

    @property
    def failures(self) -> str:
        """How many integrations failed and how the first of them did; empty where none."""
        return _failures(self.status)

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


def _failures(status: tuple[Status, ...]) -> str:
    failed = [i for i, each in enumerate(status) if each.failed]
    if not failed:
        return ""
    return (
        f"{len(failed)} of {len(status)} structures failed "
        f"(first: {failed[0]}, {status[failed[0]].value})"
    )
