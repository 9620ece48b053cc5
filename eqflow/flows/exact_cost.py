r"""What an exact trace costs: counted, to decide by, and timed, to tell people.

Decisions are made by counts of multiplications alone, so that which structures get an exact trace
is a function of model and structure, and not of a machine or of what else runs on it. For `n`
points with `w = d + K` directions each, `L` layers of width `F` and complete graphs, the trace of a
field that has a way of its own takes about

.. math::
    F^2 n^2 \big( w n \max(L - 2, 0) + 2 w + 2 L \big)

multiplications, see `eqflow.nn.exact_trace`; forward tangents take :math:`2 L F^2 n^2 (1 + w n)`.
"""

from __future__ import annotations

import time

import torch

from eqflow import rng
from eqflow.flows.continuous import ContinuousFlow
from eqflow.flows.exact import Exact
from eqflow.geometry import Segments
from eqflow.nn import EGCL
from eqflow.nn.field import AbstractField

# About a quarter of a second on one thread of a CPU with AVX-512; a score takes a hundred of them.
AFFORDABLE = 10**10
TIMED_POINTS = 20


def multiplications(field: AbstractField, points: int, dimension: int) -> int:
    """How many an exact trace takes for one structure; as if all its points were connected."""
    layers = max(sum(isinstance(part, EGCL) for part in field.modules()), 1)
    directions = dimension + field.state_features
    scale = field.message_width**2 * points**2
    if field.traces_itself and field.cutoff is None:
        return scale * (directions * points * max(layers - 2, 0) + 2 * directions + 2 * layers)
    return scale * 2 * layers * (1 + directions * points)


def affordable_points(field: AbstractField, dimension: int, budget: int = AFFORDABLE) -> int:
    """Most points of a structure whose exact trace takes at most `budget` multiplications.

    >>> from eqflow.nn import EGNNField, JointEGNNField
    >>> affordable_points(EGNNField(width=64, layers=6), 3)
    58
    >>> affordable_points(JointEGNNField(6, width=64, layers=6), 3)
    40
    """
    points = 1
    while multiplications(field, points + 1, dimension) <= budget:
        points += 1
    return points


def seconds_of_trace(flow: ContinuousFlow, points: int, dimension: int) -> float:
    """About how long an exact trace of one structure takes here and now, with its velocity.

    Beyond some points it is that of fewer, times the ratio of counts.
    """
    fewer = min(points, TIMED_POINTS)
    counts = [multiplications(flow.field, n, dimension) for n in (points, fewer)]
    return _timed(flow, fewer, dimension) * counts[0] / counts[1]


def _timed(flow: ContinuousFlow, points: int, dimension: int) -> float:
    _once(flow, min(points, 2), dimension)  # the first backward pass of a process starts threads
    return _once(flow, points, dimension)


@torch.no_grad()
def _once(flow: ContinuousFlow, points: int, dimension: int) -> float:
    like = next(flow.parameters())
    clouds = Segments.of_lengths(torch.tensor([points], device=like.device))
    z = flow.base.sample(clouds, dimension, like, rng.generator(0, "cost", device=like.device))
    context = like.new_zeros(points, flow.field.context_features)
    velocity = flow.dynamics(clouds, context if flow.field.context_features else None)(
        torch.tensor(0.5, dtype=like.dtype, device=like.device), z
    )
    started = time.perf_counter()
    # Reading it waits for a GPU.
    float(Exact()(velocity, z, clouds, z.new_zeros(0)).estimates)
    return time.perf_counter() - started
