r"""Radau IIA of order 5: an implicit method, for rates that differ by orders of magnitude.

Where a state decays at a rate `λ` an explicit method must take steps of about `3 / λ` however
smooth the solution is. An implicit one solves for its stages by Newton's method instead, with the
Jacobian of the rows; steps are as long as the solution allows. The steps are SciPy's, in float64 on
the CPU; the right-hand side is evaluated where and as it is.

What a state holds a cloud is taken for integrals along the rows, on which no derivative depends:
its entries of the Jacobian are left at zero, which costs Newton's method an iteration and the
solution nothing.

Reference: Solving Ordinary Differential Equations II (Hairer, Wanner, 1996), section IV.8.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import Radau
from scipy.linalg import LinAlgWarning
from torch import Tensor

from eqflow.flows.evaluation import Evaluator, NonFinite, Stopped
from eqflow.flows.solver import Status

# `(t, y) ↦ ∂ẏ/∂y` of the first entries of a packed state, which are its rows.
Jacobian = Callable[[Tensor, Tensor], Tensor]
FINEST = 1e-12  # SciPy's own limit is 100 times the resolution of float64


@torch.no_grad()
def integrate_radau(
    evaluate: Evaluator,
    y: Tensor,
    times: Sequence[float],
    rtol: float,
    atol: float,
    steps: int,
    jacobian: Jacobian,
) -> list[Tensor]:
    """The state at each of `times`, without derivatives.

    Each entry of the state obeys the tolerance, which is at least what a norm of any of them asks.
    A Jacobian counts as one evaluation.

    Args:
        evaluate: The right-hand side.
        y: State at the first time, shape (M,).
        times: Rising or falling.
        rtol, atol: Tolerances.
        steps: Fewest steps over the whole: what a longer one steps over, its error does not tell.
        jacobian: Of the first K entries of the derivative by the first K of `y`, shape (K, K).

    Raises:
        Stopped: If there were too many evaluations, the steps vanish, or the state is not finite.
    """
    failure: NonFinite | None = None

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(values).to(y)

    def field(t: float, values: Any) -> Any:
        nonlocal failure
        try:
            derivative = evaluate.at(t, tensor(values))
            evaluate.settle(derivative)
        except NonFinite as found:
            failure = found  # a shorter step may not meet it
            return np.full(len(values), math.nan)
        return derivative.double().cpu().numpy()

    def derivatives(t: float, values: Any) -> Any:
        evaluate.count(t)
        rows = jacobian(torch.full((), t, dtype=y.dtype, device=y.device), tensor(values))
        evaluate.settle(rows)
        whole = np.zeros((len(values), len(values)))
        whole[: len(rows), : len(rows)] = rows.double().cpu().numpy()
        return whole

    start = y.double().cpu().numpy()
    # SciPy's norm is a mean over the entries, of which each is to obey.
    share = 1 / math.sqrt(max(len(start), 1))
    states = [y]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", LinAlgWarning)
        first = field(times[0], start)
        if failure is not None:
            raise failure
        walk = Radau(
            field,
            times[0],
            start,
            times[-1],
            rtol=max(rtol * share, FINEST),
            atol=atol * share,
            jac=derivatives,
            max_step=abs(times[-1] - times[0]) / steps,
            first_step=min(
                _first_step(start, first, rtol, atol), abs(times[-1] - times[0]) / steps
            ),
        )
        while len(states) < len(times):
            failure = None
            walk.step()
            if walk.status == "failed":
                raise failure or Stopped(Status.UNDERFLOW, float(walk.t))
            between = walk.dense_output()
            for time in times[len(states) :]:
                if abs(time - times[0]) > abs(walk.t - times[0]):
                    break
                states.append(tensor(walk.y if time == walk.t else between(time)))
    evaluate.settle(states[-1])
    return states


def _first_step(y: Any, slope: Any, rtol: float, atol: float) -> float:
    """A step over which an Euler step moves about a hundredth of the state's size."""
    tolerance = atol + rtol * np.abs(y)
    speed = float(np.max(np.abs(slope) / tolerance, initial=0.0))
    size = float(np.max(np.abs(y) / tolerance, initial=0.0))
    return max(0.01 * size / speed, 1e-10) if size > 1e-5 and speed > 1e-5 else 1e-6
