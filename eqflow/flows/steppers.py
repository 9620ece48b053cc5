r"""Explicit Runge-Kutta methods with fixed steps, as plain loops.

:math:`k_i = f(t + c_i h, \; y + h \sum_{j < i} a_{ij} k_j), \quad y' = y + h \sum_i b_i k_i`.

Times are Python numbers: no step waits for a GPU. The coefficients are torchdiffeq's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from eqflow.flows.evaluation import Evaluator

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit method.

    Attributes:
        nodes: `c`.
        rows: The lower triangle of `a`; the first row is empty.
        weights: `b`.
    """

    nodes: Weights
    rows: tuple[Weights, ...]
    weights: Weights


TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    # The 3/8 rule of Kutta (1901), of a smaller error than the classical one.
    "rk4": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}


def advance(y: Tensor, h: float, weights: Weights, stages: Sequence[Tensor]) -> Tensor:
    """`y + h Σ wᵢ kᵢ`."""
    moved = y
    for weight, stage in zip(weights, stages, strict=True):
        if weight == 0:
            continue
        # A sum keeps nothing of its terms for the derivative, so it may be added to in place.
        moved = (
            torch.add(y, stage, alpha=h * weight)
            if moved is y
            else moved.add_(stage, alpha=h * weight)
        )
    return moved


def take_step(evaluate: Evaluator, tableau: Tableau, start: float, end: float, y: Tensor) -> Tensor:
    """The state, shape (M,), at `end` from that at `start` in one step."""
    h = end - start
    stages: list[Tensor] = []
    for node, row in zip(tableau.nodes, tableau.rows, strict=True):
        time = end if node == 1 else start + node * h
        stages.append(evaluate.at(time, advance(y, h, row, stages)))
    return advance(y, h, tableau.weights, stages)


def equal_steps(start: float, end: float, size: float) -> list[float]:
    """Times from `start` to `end` in equal steps of at most `size`."""
    # A thousandth of a step more is rounding, not another step.
    count = max(math.ceil(abs(end - start) / size - 1e-3), 1)
    return [start + (end - start) * place / count for place in range(count)] + [end]


def integrate_fixed(
    evaluate: Evaluator, method: str, y: Tensor, times: Sequence[float], steps: int
) -> list[Tensor]:
    """The state at each of `times`, in `steps` steps over the whole of them.

    Args:
        evaluate: The right-hand side.
        method: Name of a tableau.
        y: State at the first time, shape (M,).
        times: Rising or falling.
        steps: More where times in between are not on that grid.

    Raises:
        Stopped: If there were too many evaluations, or a value is not finite.
    """
    size = abs(times[-1] - times[0]) / steps
    states = [y]
    for start, end in pairwise(times):
        for here, there in pairwise(equal_steps(start, end, size)):
            y = take_step(evaluate, TABLEAUS[method], here, there, y)
        states.append(y)
    return states
