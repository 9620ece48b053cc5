"""What a solve of a diffusion has cost so far, and its limit."""

from __future__ import annotations

from dataclasses import dataclass

from eqflow.flows.evaluation import Stopped
from eqflow.flows.solver import Status


class ProductLimit(Stopped):
    """Ends a solve that would apply its operator more often than it may.

    Attributes:
        reason: In place of what the status says of evaluations.
    """

    def __init__(self, time: float, limit: int) -> None:
        super().__init__(Status.STEP_LIMIT, time)
        self.reason = f"more products with its matrix than solver.step_limit={limit}"


@dataclass
class Effort:
    """Counts that a solver adds to.

    Attributes:
        limit: Most products there may be, or None.
        products: How often the operator of a diffusion was applied to a state: each goes once
            through all edges.
        evaluations: How often coefficients, such as attention, were computed.
        time: Last time reached.
    """

    limit: int | None = None
    products: int = 0
    evaluations: int = 0
    time: float = float("nan")

    def spend(self, products: int) -> None:
        """Count products about to be made.

        Raises:
            Stopped: If they are more than the limit.
        """
        if self.limit is not None and self.products + products > self.limit:
            raise ProductLimit(self.time, self.limit)
        self.products += products

    def evaluate(self, time: float) -> None:
        """Count an evaluation of coefficients at a time."""
        self.evaluations += 1
        self.time = time
