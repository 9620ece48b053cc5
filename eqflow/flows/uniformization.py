r"""Linear diffusion solved exactly: a series of sparse products instead of an ODE solver.

With constant coefficients, :math:`\dot x = L x + s` has the solution

.. math::
    x(t) = x(0) + \int_0^t e^{uL} v \, du, \qquad v = L x(0) + s .

Shifted by :math:`\mu` and divided by a bound :math:`m \ge \lVert L - \mu \rVert`, the operator is a
contraction :math:`P = (L - \mu) / m`, and

.. math::
    x(t) = x(0) + \sum_{k \ge 0} b_k(t) \, P^k v, \qquad
    b_k(t) = \int_0^t e^{\mu u} \frac{(m u)^k}{k!} \, du .

One sequence of vectors, one product a term, serves the source and every time. A constant is no part
of `v`, so a shift of all features shifts the solution and costs no digits.

For weights that are not negative and no mixing of channels, :math:`\mu` is the least entry on the
diagonal: `P` has no negative entry, nothing cancels, and `mt + O(√(mt))` terms are enough for any
`t`; this is uniformization of a Markov chain. Elsewhere terms cancel, and `t` is cut into steps
short enough that they cancel less than the tolerance allows.

References: Markoff chains as an aid in the study of Markoff processes (Jensen, 1953);
Computing the Action of the Matrix Exponential (Al-Mohy, Higham, 2011), for cut times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.flows.effort import Effort
from eqflow.flows.evaluation import NonFinite, is_finite
from eqflow.flows.operator_bound import Bound, bound
from eqflow.flows.power_series import combine_powers
from eqflow.nn.diffusion.operator import Coefficients


class Propagated(NamedTuple):
    """States of a linear diffusion.

    Attributes:
        states: At each time asked for, shape (T, N, C).
        products: How often the operator was applied.
    """

    states: Tensor
    products: int


def propagate(
    coefficients: Coefficients,
    x: Tensor,
    times: Sequence[float] | Tensor,
    *,
    tolerance: float = 1e-6,
    effort: Effort | None = None,
) -> Propagated:
    r"""The exact solution of :math:`\dot x = L x + s` at several times.

    With `c = μ + m`, the fastest growth there can be, the error of leaving out terms is at most
    :math:`\epsilon (e^{cT} \lVert x(0) \rVert + 2 \lVert s \rVert \int_0^T e^{cu} du)` in the
    norm of `bound`, with `ε` the tolerance. Where rows or columns of weights are normalised,
    `c = 0`. Rounding comes on top. A bound belongs to a whole batch: another graph beside may
    change a result within the tolerance.

    It can be differentiated by the state, everything in the coefficients, and the last time where
    it asks for a gradient.

    Args:
        coefficients: Of the diffusion, constant over these times.
        x: State at the first time, shape (N, C).
        times: Rising, two or more.
        tolerance: `ε`; below the resolution of the type of `x` it is that.
        effort: Where products are counted and limited.

    Raises:
        UsageError: If the times do not rise, or the tolerance is not positive.
        NonFinite: If the state or a coefficient is not finite.
        Stopped: If more products are needed than may be.

    >>> from eqflow.edges import Edges
    >>> edges = Edges.from_index(torch.tensor([[0, 1], [1, 0]]), 2)
    >>> pair = Coefficients(edges, torch.ones(2))
    >>> x = torch.tensor([[1.0], [-1.0]])
    >>> propagate(pair, x, [0.0, 0.5]).states[-1].squeeze(1)  # exp(−2 t) = 0.3679
    tensor([ 0.3679, -0.3679])
    """
    places = times.detach().tolist() if isinstance(times, Tensor) else [float(t) for t in times]
    if len(places) < 2 or not all(a < b < math.inf for a, b in pairwise(places)):
        raise UsageError(f"propagate: found times {places}, expected two or more, rising.")
    if not tolerance > 0:
        raise UsageError(f"propagate: found tolerance {tolerance}, expected a number above 0.")
    if isinstance(times, Tensor) and times.requires_grad:
        # Stretching time is the same as scaling the right-hand side.
        span = places[-1] - places[0]
        coefficients = scaled(coefficients, (times[-1] - times[0]) / span)
    effort = Effort() if effort is None else effort
    before = effort.products
    limits = bound(coefficients)
    precision = torch.finfo(x.dtype).eps
    if not (math.isfinite(limits.norm) and math.isfinite(limits.shift) and is_finite(x)):
        raise NonFinite(places[0], coefficients.velocity(x.detach()).detach() + x.detach())
    longest = limits.longest_step(tolerance, precision)
    steps = max(math.ceil((places[-1] - places[0]) / longest - 1e-9), 1)
    step = (places[-1] - places[0]) / steps
    target = max(tolerance / steps, precision)

    states, waiting = [x], places[1:]
    for number in range(steps):
        start = places[0] + number * step
        end = places[-1] if number + 1 == steps else start + step
        asked = [t for t in waiting if t <= end]
        waiting = waiting[len(asked) :]
        offsets = [t - start for t in (asked if asked and asked[-1] == end else [*asked, end])]
        moved = _expand(coefficients, limits, x, offsets, target, effort)
        states += moved[: len(asked)]
        x = moved[-1]
        effort.time = end
        if not is_finite(x):
            raise NonFinite(end, x)
    return Propagated(torch.stack(states), effort.products - before)


def _expand(
    coefficients: Coefficients,
    limits: Bound,
    x: Tensor,
    offsets: list[float],
    target: float,
    effort: Effort,
) -> Sequence[Tensor]:
    """The state after each of `offsets`, by one series."""
    weights, rest = series_weights(limits, offsets, target)
    is_plain = coefficients.weight.dim() == 1 and coefficients.mixing is None
    if is_plain and coefficients.damping is None and limits.is_positive:
        effort.spend(len(rest))
        v = coefficients.velocity(x)
        part = coefficients.edges, coefficients.weight, coefficients.gain
        found = combine_powers(*part, v, weights, limits.shift, limits.norm)
        return [x + moved for moved in found]

    of_state, of_source = limits.least_growth(offsets[-1])
    enough = target * of_state * limits.size(x)
    if coefficients.source is not None:
        enough += target * of_source * limits.size(coefficients.source)
    P = contraction(coefficients, limits)
    moved = [x] * len(weights)
    for k, column in enumerate(weights.T.tolist()):
        effort.spend(1)
        v = P(v) if k else coefficients.velocity(x)
        moved = [torch.add(y, v, alpha=b) for y, b in zip(moved, column, strict=True)]
        # Bounds of what mixes channels are coarse, and powers of `v` shrink faster than they say;
        # not those of its derivatives, which another direction may have to pass.
        if not v.requires_grad and float(rest[k]) * limits.size(v) <= enough:
            break
    return moved


def contraction(coefficients: Coefficients, limits: Bound) -> Callable[[Tensor], Tensor]:
    """`P = (L − μ) / m`."""
    shrunk = scaled(coefficients, 1 / limits.norm) if limits.norm else coefficients
    back = limits.shift / limits.norm if limits.norm else 0.0
    return lambda v: torch.sub(shrunk.linear(v), v, alpha=back)


def scaled(coefficients: Coefficients, factor: Tensor | float) -> Coefficients:
    """The coefficients of the right-hand side times a number."""

    def times(part: Tensor | None) -> Tensor | None:
        return None if part is None else part * factor

    return Coefficients(
        coefficients.edges,
        coefficients.weight * factor,
        times(coefficients.gain),
        coefficients.mixing,
        times(coefficients.damping),
        times(coefficients.source),
    )


def series_weights(
    limits: Bound, offsets: Sequence[float], target: float
) -> tuple[np.ndarray, np.ndarray]:
    r"""The weights of the series, as many as matter, and the sum of those that follow each.

    :math:`b_k = e^z t \frac{(m t)^k}{(k + 1)!} V_k`, `z = μ t`, with
    :math:`V_k = 1 - \frac{z}{k + 2} V_{k + 1}`, a sum of positive numbers for `z < 0`.

    Args:
        limits: `μ` and `m`.
        offsets: Times `t`, rising.
        target: Least part of the state, and of what the source adds, that matters.

    Returns:
        `b_k(t)` for each offset, shape (J, K); and for the last `Σ_{l > k} b_l`, shape (K,).
    """
    rows = [_weights_at(limits, t) for t in offsets]
    largest = rows[-1]
    rest = np.append(np.cumsum(largest[::-1])[::-1][1:], 0.0)
    of_state, of_source = limits.least_growth(offsets[-1])
    # The velocity is at most so many times the state, and once the source.
    speed = abs(limits.shift) + limits.norm
    count = int(np.argmax(rest * max(speed / of_state, 1 / of_source) <= target)) + 1
    weights = [np.pad(row[:count], (0, max(count - len(row), 0))) for row in rows]
    return np.stack(weights), rest[:count]


def _weights_at(limits: Bound, t: float) -> np.ndarray:
    z, mean = limits.shift * t, limits.norm * t
    if t == 0:
        return np.zeros(1)
    count = int(mean + 12 * math.sqrt(mean) + 80) if mean > 0 else 1
    V = 1.0
    values = np.empty(count)
    for k in range(max(count, int(2 * abs(z))) + 60, -1, -1):
        V = 1 - z / (k + 2) * V
        if k < count:
            values[k] = V
    place = np.arange(count)
    powers = place * math.log(mean) if mean > 0 else np.zeros(1)
    return np.exp(z + math.log(t) + powers - gammaln(place + 2) + np.log(values))
